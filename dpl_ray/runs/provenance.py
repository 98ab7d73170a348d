"""What a number was measured with: commit, versions, hardware, data."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import Splits

PACKAGES = ("torch", "torchvision", "ray", "mlflow", "numpy")
CHANGES = "+changes"  # behind a commit whose checkout has some


def describe_run(splits: Splits) -> dict[str, str]:
    """Commit, versions, hardware and data fingerprint, as tags."""
    tags = describe_code()
    tags |= {
        "data.fingerprint": splits.fingerprint(),
        "data.num_labeled": str(len(splits.labeled)),
        "data.num_pseudo_labeled": str(splits.num_pseudo_labeled),
        "data.num_unlabeled": str(len(splits.unlabeled)),
        "data.num_bad": str(len(splits.bad)),
    }
    return tags | ({"data.pool": splits.shaped} if splits.shaped else {})


def describe_code() -> dict[str, str]:
    """Commit, versions and hardware."""
    return {f"version.{package}": _version(package) for package in PACKAGES} | {
        "version.python": platform.python_version(),
        "commit": git_commit(),
        "hardware": hardware(),
    }


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a cell of a comparison needs neither Ray nor MLflow
        return "none"


def describe_config(config: Config) -> dict[str, str]:
    """The resolved configuration as flat `section.field` -> text."""
    return dict(_flatten(config.model_dump(mode="json")))


def _flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        rows += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, str(value))]
    return rows


@cache
def git_commit() -> str:
    """Short hash of the checkout that runs, with `+changes` where its code has any; `unknown` outside of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed package may lie below another project's checkout
        return "unknown"
    try:
        run = [
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True)
            for words in (
                ["rev-parse", "--short", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs"],
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return run[0].stdout.strip() + (CHANGES if run[1].stdout.strip() else "")


@cache
def hardware() -> str:
    """CPU model and number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    models = (
        [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    return f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
