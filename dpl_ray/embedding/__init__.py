"""What a frozen backbone says of every image of a pool, written once: features that classifiers are trained on.

May import: store, config, models, page, data, training, runs, cluster, labeling, checking, torch.
"""
