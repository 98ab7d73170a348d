"""Checks before a training: copies, names, shares, files, what the views do, and what the run will take.

May import: store, config, algorithm, models, page, data, training, torch.
"""
