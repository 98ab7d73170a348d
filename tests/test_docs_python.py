"""Every block of Python in README.md and docs/ compiles; the names, arguments and fields of dpl_ray in it exist."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dpl_ray import (
    CompareConfig,
    Config,
    LabelConfig,
    SearchConfig,
    SelfTrainConfig,
    compare,
    fit,
    fit_arrays,
    label_pool,
    load_config,
    search,
    self_train,
)
from dpl_ray.config.given import read_given
from dpl_ray.config.section import Section, validated
from dpl_ray.studies.comparison.config import load_comparison
from dpl_ray.studies.self_training.config import load_self_training
from dpl_ray.studies.tuning.config import GROUPS, load_search
from tests.documents import Document, documents

OWN = ("dpl_ray", "pipelines", "benchmarks")
#: Function that takes a configuration -> what reads it, its class, and that of the fields beside it.
LOADERS: dict[Any, tuple[Any, type[Section], type[Section]]] = {
    fit: (load_config, Config, Config),
    fit_arrays: (load_config, Config, Config),
    compare: (load_comparison, Config, CompareConfig),
    search: (load_search, Config, SearchConfig),
    self_train: (load_self_training, Config, SelfTrainConfig),
    label_pool: (LabelConfig.load, LabelConfig, LabelConfig),
}


class Reader(ast.NodeVisitor):
    """Reads a block in its order; `mistakes` has what is wrong with it."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}  # name -> what it was imported as
        self.types: dict[str, type] = {}  # variable -> class of what is in it
        self.mistakes: list[str] = []

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            root = alias.name.partition(".")[0]
            if found := self._module(alias.name):
                self.names[alias.asname or root] = found if alias.asname else import_module(root)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if module := self._module(str(node.module)):
            for alias in node.names:
                if not hasattr(module, alias.name):
                    self.mistakes.append(f"{node.module} has no {alias.name}")
                self.names[alias.asname or alias.name] = getattr(module, alias.name, None)

    def _module(self, name: str) -> Any:
        """The module, where it is one of ours; others are only looked for."""
        try:
            if name.partition(".")[0] in OWN:
                return import_module(name)
            if not find_spec(name.partition(".")[0]):
                self.mistakes.append(f"{name}: there is no such module")
        except ImportError as error:
            self.mistakes.append(str(error))
        return None

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        if isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            made = _made_by(self._resolve(node.value.func))
            self.types.pop(node.targets[0].id, None)
            if made:
                self.types[node.targets[0].id] = made

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        owner = self._resolve(node.value)
        if owner is not None and not _has(owner, node.attr):
            self.mistakes.append(f"{ast.unparse(node)}: {getattr(owner, '__name__', owner)} has no {node.attr}")

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = self._resolve(node.func)
        if not callable(called) or any(isinstance(argument, ast.Starred) for argument in node.args):
            return
        keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        is_method = isinstance(node.func, ast.Attribute) and isinstance(self._resolve(node.func.value), type)
        try:
            inspect.signature(called).bind(*[None] * (len(node.args) + is_method), **dict.fromkeys(keywords))
            if called is load_config and node.args:
                load_config(ast.literal_eval(node.args[0]))
            elif called in LOADERS:
                self._check_configuration(called, node.args, keywords)
            elif isinstance(called, type) and issubclass(called, Section):
                validated(called, {name: ast.literal_eval(value) for name, value in keywords.items()})
        except TypeError as error:
            self.mistakes.append(f"{ast.unparse(node.func)}(): {error}")
        except ValueError as error:
            if "malformed node" not in str(error):  # a variable is among the arguments
                self.mistakes.append(f"{ast.unparse(node.func)}(): {error}")

    def _check_configuration(self, called: Any, arguments: list[ast.expr], keywords: dict[str, ast.expr]) -> None:
        """Overrides and keywords of a function that takes them."""
        load, kind, own = LOADERS[called]
        others = {name: node for name, node in keywords.items() if name not in inspect.signature(called).parameters}
        if unknown := others.keys() - {*kind.model_fields, *own.model_fields, *GROUPS}:
            self.mistakes.append(f"{called.__name__}(): there is no {', '.join(sorted(unknown))}")
            return
        given = ast.literal_eval(arguments[0]) if arguments and called is not fit_arrays else ()
        read_given(given, {name: ast.literal_eval(node) for name, node in others.items()}, load, kind)

    def _resolve(self, node: ast.expr) -> Any:
        """What an expression stands for, or the class of what is in a variable; None where that is not known."""
        if isinstance(node, ast.Name):
            return self.types.get(node.id, self.names.get(node.id))
        if isinstance(node, ast.Attribute):
            return getattr(self._resolve(node.value), node.attr, None)
        return None


def _made_by(called: Any) -> type | None:
    """The class of what a call gives, where it is ours."""
    if isinstance(called, type):
        return called if called.__module__.startswith(OWN) else None
    name = getattr(called, "__annotations__", {}).get("return")
    found = getattr(called, "__globals__", {}).get(name) if isinstance(name, str) else name
    return _made_by(found) if isinstance(found, type) else None


def _has(owner: Any, name: str) -> bool:
    annotated = {key for each in getattr(owner, "__mro__", ()) for key in getattr(each, "__annotations__", {})}
    in_constructor = isinstance(owner, type) and re.search(rf"\bself\.{name}\b[^=\n]* = ", inspect.getsource(owner))
    return hasattr(owner, name) or name in annotated or bool(in_constructor)


def mistakes(document: Document) -> list[str]:
    found = []
    for block in document.blocks:
        if block.language in ("python", "py"):
            reader = Reader()
            try:
                reader.visit(ast.parse(block.text))
            except SyntaxError as error:
                reader.mistakes.append(str(error))
            found += [f"{document.name}:{block.line}: {mistake}" for mistake in reader.mistakes]
    return found


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_what_python_takes_from_the_package_exists(document: Document) -> None:
    assert mistakes(document) == []


PAGE = """
```python
import dpl_ray
import torch
from dpl_ray import CompareConfig, compare, fit, load_checkpoint, load_config

result = fit(load_config(["data=digits", "train.num_steps=3"]))
print(result.metrics["eval/accuracy"], result.checkpoint)
compared = compare(load_config(), CompareConfig(policies=("dpl", "fixmatch"), subsets=5), console=None)
print([row.label for row in compared.rows])
config = load_config(overrides)
model = load_checkpoint("runs/my-run")
found = model.predict(torch.zeros(1, 1, 8, 8))
print(found.names)
dpl_ray.label_pool(dpl_ray.LabelConfig(checkpoint="a", pool="b", output="c"))
fit(["data=digits"], policy="dpl", train={"mu": 5})
compare(policies=["dpl", "fixmatch"], subsets=7, console=True)
```
"""


def test_what_is_right_is_accepted() -> None:
    assert mistakes(Document(Path("page.md"), PAGE)) == []


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("import torch", "import torchh", "torchh: there is no such module"),
        ("compare, fit", "compare, fitt", "dpl_ray has no fitt"),
        ("train.num_steps=3", "train.num_step=3", "there is no field train.num_step"),
        ("result.checkpoint", "result.checkpoints", "FitResult has no checkpoints"),
        ("compared.rows", "compared.row", "CompareResult has no row"),
        ("subsets=5", "subsets=0", "subsets=0"),
        ("subsets=5", "seed=5", "seed"),
        ("console=None", "consol=None", "consol"),
        ('["data=digits"]', '["data=digit"]', "data=digit: there is no such data"),
        ('policy="dpl"', 'policy="dpll"', "policy=dpll: there is no such policy"),
        ('{"mu": 5}', '{"nu": 5}', "there is no field train.nu"),
        ("subsets=7", "subsets=0", "subsets=0"),
        ('("runs/my-run")', '("runs/my-run", "teacher", 3)', "too many positional arguments"),
        ("model.predict", "model.predicts", "Predictor has no predicts"),
        ("found.names", "found.labels", "Predictions has no labels"),
        ("predict(torch.zeros(1, 1, 8, 8))", "predict()", "missing a required argument"),
        ("dpl_ray.label_pool", "dpl_ray.label_pol", "dpl_ray has no label_pol"),
        ("print(result", "print((result", "was never closed"),
    ],
)
def test_a_mistake_is_found(right: str, wrong: str, message: str) -> None:
    assert right in PAGE
    found = mistakes(Document(Path("page.md"), PAGE.replace(right, wrong)))
    assert found
    assert message in found[0]
