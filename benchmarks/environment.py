"""The line that every measurement ends with: hardware, versions, commit."""

from __future__ import annotations

from importlib.metadata import version

from dpl_ray.provenance import PACKAGES, git_commit, hardware


def environment_line() -> str:
    """`AMD EPYC, 2 cores; torch 2.14.1, ...; commit abc1234`."""
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return f"{hardware()}; {versions}; commit {git_commit()}"
