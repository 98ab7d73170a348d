"""`dpl-ray self-train` in a checkout: `python -m pipelines.self_train`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("self-train")
