"""The folder of a run, and where its numbers come from.

May import: store, config, data, training.
"""
