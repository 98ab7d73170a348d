"""`dpl-ray sync-tracking` in a checkout: `python -m pipelines.sync_tracking`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main("sync-tracking")
