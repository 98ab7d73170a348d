"""`dpl-ray suggest` in a checkout: `python -m pipelines.suggest`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("suggest")
