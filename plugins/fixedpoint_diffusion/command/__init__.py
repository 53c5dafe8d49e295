"""``fixedpoint invert``: files read, batches inverted, the folder written."""
