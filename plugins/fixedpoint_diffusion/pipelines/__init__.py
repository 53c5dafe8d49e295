"""Pipelines of diffusers as joint fixed points: their own code, run again and again, with all network calls merged."""
