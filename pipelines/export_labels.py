"""`dpl-ray export-labels` in a checkout: `python -m pipelines.export_labels`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("export-labels")
