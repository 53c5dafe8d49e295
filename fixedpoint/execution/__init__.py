"""Cells of a run, the executors that compute them, and their results: plain values that any process can receive."""
