"""The conformance suite for gradient estimators: benches and checks."""
