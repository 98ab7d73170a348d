"""`dpl-ray predict` in a checkout: `python -m pipelines.predict`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("predict")
