"""The line that every measurement ends with: hardware, versions, commit."""

from __future__ import annotations

from dpl_ray.runs.provenance import PACKAGES, describe_code


def environment_line() -> str:
    """`AMD EPYC, 2 cores; torch 2.14.1, ...; commit abc1234`."""
    code = describe_code()
    versions = ", ".join(f"{package} {code[f'version.{package}']}" for package in PACKAGES)
    return f"{code['hardware']}; {versions}; commit {code['commit']}"
