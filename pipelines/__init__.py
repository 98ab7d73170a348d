"""The jobs as commands: `python -m pipelines.train`."""
