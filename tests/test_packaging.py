"""What is installed: the wheel holds all that the commands need, and its dependencies are those that are imported."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: What tests do without -> the distribution that has it.
NOT_INSTALLED = {"lance": ["pylance"]}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def imported() -> set[str]:
    """Top-level names of all that dpl_ray imports, anywhere in it."""
    names: set[str] = set()
    for path in (ROOT / "dpl_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"dpl_ray"}


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    extras = PROJECT["optional-dependencies"]
    declared, optional = (
        {normal(re.split(r"[\[><=~!; ]", text)[0]) for text in texts}
        for texts in (PROJECT["dependencies"], extras["onnx"] + extras["lora"] + extras["lance"])
    )
    distributions = NOT_INSTALLED | packages_distributions()
    provided = {name: {normal(each) for each in distributions[name]} for name in imported()}
    assert {name: providers for name, providers in provided.items() if not providers & (declared | optional)} == {}
    assert declared <= set().union(*provided.values())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, since the build leaves files beside what it is made of."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("dpl_ray", "conf"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*PIP, "wheel", *offline, "--wheel-dir", str(folder), str(folder / "source")], check=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {
        path for path in (ROOT / "dpl_ray").rglob("*.*") if path.suffix in (".py", ".html", ".css", ".js", ".typed")
    }
    inside = {str(path.relative_to(ROOT)) for path in files}
    assert names == inside | {f"dpl_ray/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}


@pytest.mark.slow
def test_the_wheel_trains_the_digits_from_another_folder_and_without_a_home(wheel: Path, tmp_path: Path) -> None:
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", str(installed), str(wheel)], check=True)

    def answer(*command: str) -> str:
        # A home below a file: not even root can write there.
        environment = os.environ | {"PYTHONPATH": str(installed), "HOME": str(wheel / "home")}
        found = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        return found.stdout

    where = answer(sys.executable, "-P", "-c", "import dpl_ray; print(dpl_ray.__file__)")
    assert Path(where.strip()) == installed / "dpl_ray" / "__init__.py"
    small = ["data=digits", "scale.num_workers=0", "tracking.enabled=false", "run.name=first", "model.width=1"]
    small += ["train.num_steps=2", "train.batch_size=4", "train.mu=1", "train.baseline=false", "train.curve_images=0"]
    assert "runs/first" in answer(sys.executable, "-P", str(installed / "bin" / "dpl-ray"), "train", *small)
    assert (elsewhere / "runs" / "first" / "report.html").exists()
    assert "Usage: dpl-ray label" in answer(sys.executable, "-P", "-m", "dpl_ray", "label", "--help")
