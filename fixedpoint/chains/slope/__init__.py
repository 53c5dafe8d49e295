"""Models of the derivatives of steps: preconditioners, linear parts, scans and secants."""
