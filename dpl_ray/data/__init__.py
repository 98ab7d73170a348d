"""From files and arrays to batches of views. The files here are what its rooms share; they import none of the rooms.

May import: store, config, torch.
"""
