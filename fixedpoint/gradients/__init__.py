"""The gradient estimators, one per file: they differentiate a fixed point by the tensors that ``f`` depends on."""
