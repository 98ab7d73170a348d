"""Comparing policies over labelled subsets and seeds.

May import: store, config, page, tracking, data, checking, training, runs, cluster, report, torch, ray.
"""
