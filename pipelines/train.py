"""`dpl-ray train` in a checkout: `python -m pipelines.train`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("train")
