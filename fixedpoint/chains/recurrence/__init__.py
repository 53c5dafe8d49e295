"""Recurrences: how the inputs of a chain follow from its start and its earlier predictions."""
