"""Reports: the records of a run folder as a table, plots, pictures and an HTML page.

No other package of the library draws.
"""
