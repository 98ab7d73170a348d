"""From files and arrays to batches of views.

May import: store, config, torch.
"""
