"""Models that run files can name, and model folders."""
