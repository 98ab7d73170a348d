"""Imports go one way, and the front door is light: parsed from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("dpl_ray", "pipelines")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
#: Those that know Ray, in any way.
MAY_IMPORT_RAY = {
    "dpl_ray.cluster",
    "dpl_ray.ray_train",
    "dpl_ray.ray_stream",
    "dpl_ray.launch",
    "dpl_ray.comparison.job",
    "dpl_ray.labeling.on_ray",
    "dpl_ray.tuning.on_ray",
}
#: What a part of the package may not import, by the longest prefix that fits.
FORBIDDEN = {
    "dpl_ray.config": ("dpl_ray", "torch"),
    "dpl_ray.models": ("dpl_ray.data", "dpl_ray.training", "dpl_ray.launch", "dpl_ray.tracking", "dpl_ray.console"),
    "dpl_ray.data": ("dpl_ray.training", "dpl_ray.launch", "dpl_ray.tracking", "dpl_ray.console", "dpl_ray.models"),
    "dpl_ray.training": (
        "dpl_ray.launch",
        "dpl_ray.tracking",
        "dpl_ray.console",
        "dpl_ray.report",
        "dpl_ray.html",
        "dpl_ray.plots",
        "dpl_ray.ray_train",
    ),
    "dpl_ray": ("pipelines", "tests", "benchmarks"),
}
STANDARD_LIBRARY = sys.stdlib_module_names


def imports(module: str) -> set[str]:
    """Full names of what a module imports, anywhere in it: `from a.b import c` is a.b and a.b.c."""
    path = MODULES[module]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_the_parser_sees_imports() -> None:
    assert "torch" in imports("dpl_ray.data.augment")
    assert "dpl_ray.storage.Storage" in imports("dpl_ray.run_folder")
    assert "ray" in imports("dpl_ray.cluster"), "inside functions too"


@pytest.mark.parametrize("module", [name for name in MODULES if is_below(name, "dpl_ray.algorithm")])
def test_the_method_knows_torch_alone(module: str) -> None:
    for name in imports(module):
        assert name.partition(".")[0] in STANDARD_LIBRARY | {"torch"} or is_below(name, "dpl_ray.algorithm"), name


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    for part, packages in FORBIDDEN.items():
        if is_below(module, part):
            wrong = {name for name in imports(module) for package in packages if is_below(name, package)}
            wrong -= {name for name in wrong if part == "dpl_ray.config" and is_below(name, "dpl_ray.config")}
            assert not wrong


@pytest.mark.parametrize("module", MODULES)
def test_few_know_ray(module: str) -> None:
    if module not in MAY_IMPORT_RAY:
        assert not {name for name in imports(module) if is_below(name, "ray")}


def test_there_is_no_circle() -> None:
    # The package itself imports nothing until it is asked for a name.
    modules = MODULES.keys() - {"dpl_ray"}
    graph = {module: imports(module) & modules - {module} for module in modules}
    while leaves := {module for module, needs in graph.items() if not needs & graph.keys()}:
        graph = {module: needs for module, needs in graph.items() if module not in leaves}
    assert not graph


def test_configuration_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, dpl_ray.compose as c, dpl_ray.labeling.job, pipelines.cli, pipelines.label, pipelines.train;"
        "c.load_config(['data=cifar10']);"
        "print(sorted({'torch', 'ray', 'mlflow', 'torchvision'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
