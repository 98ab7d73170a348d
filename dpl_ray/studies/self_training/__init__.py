"""Rounds of training and labelling.

May import: store, config, page, tracking, data, training, runs, inference, cluster, report, labeling, jobs.
"""
