"""Runs: a run file's grid becomes cells, an executor carries them out, a folder keeps their records."""
