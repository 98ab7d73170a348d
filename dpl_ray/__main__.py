"""`python -m dpl_ray` is the command `dpl-ray`."""

from dpl_ray.commands.cli import main

if __name__ == "__main__":
    main()
