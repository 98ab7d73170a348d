"""`dpl-ray export` in a checkout: `python -m pipelines.export`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("export")
