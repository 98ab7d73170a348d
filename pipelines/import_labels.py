"""`dpl-ray import-labels` in a checkout: `python -m pipelines.import_labels`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("import-labels")
