"""`dpl-ray check` in a checkout: `python -m pipelines.check`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("check")
