"""Execution: cells, what carries them out, and what comes of them; plain values that can go to any process."""
