"""What a number was measured with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dpl_ray.runs import provenance


def test_an_installed_package_does_not_name_the_commit_of_the_checkout_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    git("commit", "--allow-empty", "--message=x")
    found = {}
    for place in (tmp_path, tmp_path / "venv" / "site-packages"):
        place.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(provenance, "__file__", str(place / "dpl_ray" / "runs" / "provenance.py"))
        found[place.name] = provenance.git_commit.__wrapped__()
    assert found == {tmp_path.name: git("rev-parse", "--short", "HEAD"), "site-packages": "unknown"}
