"""`dpl-ray embed` in a checkout: `python -m pipelines.embed`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("embed")
