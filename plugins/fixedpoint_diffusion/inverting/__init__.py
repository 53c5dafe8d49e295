"""What ``fixedpoint invert`` does: files read, images inverted in batches, edits, what is in between, the folder."""
