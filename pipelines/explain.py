"""`dpl-ray explain` in a checkout: `python -m pipelines.explain`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("explain")
