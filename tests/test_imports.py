"""Imports go one way, and the front door is light: parsed from the sources."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("dpl_ray", "pipelines")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
ROOMS = {name.split(".")[1] for name in MODULES if name.count(".") > 1}
#: Rooms that have rooms of their own, and these.
OUTER = ("data", "studies")
INNER = {
    name.removeprefix("dpl_ray.")
    for name, path in MODULES.items()
    if re.fullmatch(rf"dpl_ray\.({'|'.join(OUTER)})\.\w+", name) and path.name == "__init__.py"
}
#: Libraries that only the rooms may import whose docstrings name them.
WATCHED = {"torch", "ray", "mlflow"}
STANDARD_LIBRARY = sys.stdlib_module_names


@cache
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
    assert "torch" in imports("dpl_ray.data.batches.augment")
    assert "dpl_ray.store.storage.Storage" in imports("dpl_ray.runs.folder")
    assert "ray" in imports("dpl_ray.cluster.connect"), "inside functions too"


def may_import(room: str) -> set[str]:
    """What the docstring of a room allows."""
    doc = ast.get_docstring(ast.parse(MODULES[f"dpl_ray.{room}"].read_text())) or ""
    allowed = re.fullmatch(r"\S.*\n\nMay import: ([\w., \n]+)\.", doc, re.DOTALL)
    assert allowed, f"dpl_ray.{room} says in a docstring what lives there, and `May import: rooms, libraries.`"
    names = set(re.split(r",\s+", allowed[1])) - {"nothing of the package"}
    assert names <= ROOMS | INNER | WATCHED
    return names


@pytest.mark.parametrize("room", sorted(ROOMS | INNER))
def test_a_room_imports_what_its_docstring_says(room: str) -> None:
    allowed = may_import(room) | {room}
    outer = room.partition(".")[0]
    own = {other for other in INNER if is_below(other, outer)}  # those that it is one of
    others = ROOMS - {outer} | own if room in INNER else ROOMS
    for module in MODULES:
        if is_below(module, f"dpl_ray.{room}"):
            names = imports(module)
            assert {
                other for other in others if any(is_below(name, f"dpl_ray.{other}") for name in names)
            } <= allowed, module
            assert {name.partition(".")[0] for name in names} & WATCHED <= allowed, module


@pytest.mark.parametrize("outer", OUTER)
def test_what_the_rooms_of_a_room_share_imports_none_of_them(outer: str) -> None:
    for path in (ROOT / "dpl_ray" / outer).glob("*.py"):
        names = imports(f"dpl_ray.{outer}.{path.stem}".removesuffix(".__init__"))
        assert not any(is_below(name, f"dpl_ray.{room}") for name in names for room in INNER), path


@pytest.mark.parametrize("rooms", [ROOMS, INNER])
def test_the_rooms_are_in_an_order(rooms: set[str]) -> None:
    # What a room may import, its imports may not: there is an order in which the rooms can be read.
    graph = {room: may_import(room) & rooms for room in rooms}
    while leaves := {room for room, needs in graph.items() if not needs & graph.keys()}:
        graph = {room: needs for room, needs in graph.items() if room not in leaves}
    assert not graph


def test_the_method_knows_torch_alone() -> None:
    for module in MODULES:
        if is_below(module, "dpl_ray.algorithm"):
            for name in imports(module):
                library = name.partition(".")[0]
                assert library in STANDARD_LIBRARY | {"torch"} or is_below(name, "dpl_ray.algorithm"), (module, name)


def test_the_package_imports_no_command() -> None:
    wrong = {"pipelines", "tests", "benchmarks"}
    for module in MODULES:
        assert not (is_below(module, "dpl_ray") and {name.partition(".")[0] for name in imports(module)} & wrong), (
            module
        )


def test_there_is_no_circle() -> None:
    # The package itself imports nothing until it is asked for a name.
    modules = MODULES.keys() - {"dpl_ray"}
    graph = {module: imports(module) & modules - {module} for module in modules}
    while leaves := {module for module, needs in graph.items() if not needs & graph.keys()}:
        graph = {module: needs for module, needs in graph.items() if module not in leaves}
    assert not graph


def test_configuration_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, dpl_ray.config.compose as c, dpl_ray.labeling.job, dpl_ray.commands.cli, dpl_ray.commands.label;"
        "import dpl_ray.commands.train;"
        "c.load_config(['data=cifar10']);"
        "print(sorted({'torch', 'ray', 'mlflow', 'torchvision'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_the_map_of_the_readme_names_every_room() -> None:
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^  (\w+)/ ", readme, re.MULTILINE)) == ROOMS
    rooms_of_data = re.search(r"(?s)^  data/ .*? each other: (.*?)^  \w", readme, re.MULTILINE)[1]  # type: ignore[index]
    assert {f"data.{name}" for name in re.findall(r"\w+", re.sub(r"\([^)]*\)", "", rooms_of_data))} == {
        room for room in INNER if is_below(room, "data")
    }


def test_no_file_has_more_than_four_hundred_lines() -> None:
    assert {module for module, path in MODULES.items() if len(path.read_text().splitlines()) > 400} == set()
