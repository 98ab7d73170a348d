"""`dpl-ray review` in a checkout: `python -m pipelines.review`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("review")
