"""Jobs made of several trainings.

May import: store, config, models, page, tracking, data, checking, training, runs, inference, cluster, report,
labeling, jobs, torch, ray.
"""
