"""The files that a run reads and writes: the YAML run file, the run folder, its records, and checkpoints.

No other package of the library imports pydantic or YAML.
"""
