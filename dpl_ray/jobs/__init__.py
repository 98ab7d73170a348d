"""The jobs of one model: train it, explain what it does with an image.

May import: store, config, algorithm, models, page, tracking, data, training, runs, inference, cluster, report, torch,
ray.
"""
