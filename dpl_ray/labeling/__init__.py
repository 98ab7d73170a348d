"""Labelling a pool of files with a trained model, every image exactly once.

May import: store, config, algorithm, models, page, tracking, data, training, runs, inference, report, cluster,
torch, ray.
"""
