"""The conformance suite for gradient estimators: its bench, its checks and their mutants."""
