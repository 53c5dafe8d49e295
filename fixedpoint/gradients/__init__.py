"""Gradient estimators, one a file: how a fixed point depends on what f was closed over."""
