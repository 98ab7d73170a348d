"""The method: pure functions and small modules of tensors.

May import: torch.
"""
