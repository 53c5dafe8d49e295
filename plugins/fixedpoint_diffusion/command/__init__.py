"""The command ``fixedpoint invert``: reads files, inverts batches and writes the output folder."""
