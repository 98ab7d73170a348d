"""`dpl-ray label` in a checkout: `python -m pipelines.label`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("label")
