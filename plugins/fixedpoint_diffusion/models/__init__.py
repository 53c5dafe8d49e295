"""Models a run file can name, and model folders."""
