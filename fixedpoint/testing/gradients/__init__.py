"""The conformance suite for gradient estimators: its bench and its checks."""
