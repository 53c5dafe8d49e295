"""The command ``fixedpoint sample``: samples a pipeline in batches and writes the output folder."""
