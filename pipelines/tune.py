"""`dpl-ray tune` in a checkout: `python -m pipelines.tune`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("tune")
