"""What pyproject.toml cannot say: conf/ lies beside the package in the checkout, and is installed inside it."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["dpl_ray*"]), "dpl_ray.conf"], package_dir={"dpl_ray.conf": "conf"})
