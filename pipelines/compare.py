"""`dpl-ray compare` in a checkout: `python -m pipelines.compare`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("compare")
