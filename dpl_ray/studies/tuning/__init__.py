"""Searching for the best values of fields.

May import: store, config, page, tracking, data, checking, training, runs, cluster, report, ray.
"""
