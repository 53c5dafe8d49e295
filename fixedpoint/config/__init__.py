"""Files a run reads and writes: the YAML run file, the run folder and its records. pydantic and YAML live here."""
