"""`dpl-ray quickstart` in a checkout: `python -m pipelines.quickstart`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("quickstart")
