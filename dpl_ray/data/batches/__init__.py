"""What a step takes: batches, and the weak and the strong views of them.

May import: config, store, data.pool, torch.
"""
