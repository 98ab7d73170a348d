"""The commands of dpl_ray/commands as modules of a checkout: `python -m pipelines.train`."""
