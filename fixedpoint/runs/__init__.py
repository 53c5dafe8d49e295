"""Runs: expands a run file to cells, has an executor compute them, and stores their records in a folder."""
