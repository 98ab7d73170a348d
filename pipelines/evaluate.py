"""`dpl-ray evaluate` in a checkout: `python -m pipelines.evaluate`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("evaluate")
