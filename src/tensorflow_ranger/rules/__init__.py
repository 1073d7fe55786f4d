"""The mathematics of the optimizers: pure functions of tensors and numbers."""
