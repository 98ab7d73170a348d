"""Ray: the cluster that is connected to, Ray Train's workers, and windows of a pool read by Ray Data.

May import: store, config, data, training, torch, ray.
"""
