"""The jobs of one model: train it, predict images, explain what it does with one.

May import: store, config, algorithm, models, page, tracking, data, checking, training, runs, inference, cluster,
report, torch, ray.
"""
