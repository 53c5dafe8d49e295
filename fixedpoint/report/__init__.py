"""Reports: the records of a run folder as a table, plots, pictures and one page. Plotting libraries live here."""
