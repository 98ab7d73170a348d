"""The method: pure functions and small modules of tensors. Imports torch alone."""
