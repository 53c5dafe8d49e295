"""How steps pass a change of their state on: preconditioners, linear parts, scans, secants."""
