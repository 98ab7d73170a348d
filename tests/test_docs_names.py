"""What README.md and docs/ name exists: fields, values and defaults, links, files and modules."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import TypeAdapter

import dpl_ray
from dpl_ray.commands.cli import commands
from dpl_ray.config.compose import load_config
from dpl_ray.config.describe import describe_policies, list_groups
from dpl_ray.config.parse import parse_policy
from dpl_ray.config.schema import Config
from dpl_ray.config.section import Section
from dpl_ray.studies.tuning.config import GROUPS, load_search, resolve
from tests.documents import ROOT, Document, documents

SECTIONS = list(Config.model_fields)
NO_FIELDS = ("config", "data.fingerprint", "field", "group")  # a file, a tag of MLflow, and what stands for all fields
FILES = (".csv", ".db", ".html", ".json", ".jsonl", ".parquet", ".png", ".py", ".yaml")
CODE_FOLDERS = ("dpl_ray", "pipelines", "conf", "tests", "benchmarks", "docs")
#: Files that docs/policies.md has the reader write.
OF_THE_READER = re.compile(r"running_mean")
PAIR = r"`([a-z][\w.]*)=([^`\s]+)`"
FIELD = r"`([a-z][\w.]*)`"
VALUE = r"(`[^`]+`|null|true|false|-?\d+(?:\.\d+)?(?:e-?\d+)?)"
#: How a sentence calls a value a field's default.
CLAIMS = [
    rf"{PAIR}(?:,|\s\()?\s?(?:(?:is|as|which\sis)\s)?(?:the\s|by\s)?default\b",
    rf"\bdefault(?:s\sto|\sis|\sof|\sto|:|,)?\s{PAIR}",
    rf"{FIELD}[^.;`|]*?\((?:the\s)?default:?\s(?:is\s)?{VALUE}",
    rf"{FIELD}\s(?:is\s|\(){VALUE}\sby\sdefault",
    rf"{FIELD}\sdefaults\sto\s{VALUE}",
    rf"\bdefault\sof\s{FIELD}\sis\s{VALUE}",
    rf"\bby\sdefault,?\s{FIELD}\sis\s{VALUE}",
]


@dataclass(frozen=True)
class Field:
    """A field of a command."""

    default: Any
    check: Callable[[Any], object]  # `ValueError` for a value that it does not take


@cache
def fields() -> dict[str, list[Field]]:
    """Dotted name -> fields of that name, of all commands."""
    found: dict[str, list[Field]] = {}
    models = {Config} | {model for command in commands().values() for model in (command.own, command.only) if model}
    for model in models:
        for name, field in _fields(model, ""):
            found.setdefault(name, []).append(field)
    for policy, rows in describe_policies().items():
        for name, _, default, _ in rows:
            check = _policy_check(policy, name.removeprefix("policy."))
            found.setdefault(name, []).append(Field(yaml.safe_load(default), check))
    return found


def _fields(model: type[Section], prefix: str) -> Iterator[tuple[str, Field]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, Field(field.default, TypeAdapter(Annotated[field.annotation, field]).validate_python)


def _policy_check(policy: str, parameter: str) -> Callable[[Any], object]:
    return lambda value: parse_policy({"name": policy, parameter: value})


def named(key: str) -> list[Field]:
    """The fields of this name, whole or without its sections."""
    return fields().get(key) or [field for name, same in fields().items() if name.endswith(f".{key}") for field in same]


@cache
def groups() -> dict[str, dict[str, str]]:
    return list_groups() | list_groups(GROUPS)


# Fields, values, defaults


def check_value(key: str, text: str) -> None:
    """`ValueError` unless the field exists and takes the value."""
    if key in groups():
        if text and not _is_open(text) and text not in groups()[key] and not text.endswith(".yaml"):
            raise ValueError(f"{key}={text}: there is no such {key}")
        return
    found = named(key)
    if not text and any(name.startswith(f"{key}.") for name in fields()):
        return
    if not found:
        raise ValueError(f"{key}={text}: there is no such field")
    if text and not _is_open(text):
        errors = [error for field in found if (error := _error(field, text))]
        if len(errors) == len(found):
            raise ValueError(f"{key}={text}: {errors[0]}")


def _error(field: Field, text: str) -> str:
    for value in (text, yaml.safe_load(text)):
        try:
            field.check(value)
        except ValueError as error:
            message = " ".join(str(error).split())
        else:
            return ""
    return message


def _is_open(text: str) -> bool:
    """Whether the reader puts the value in."""
    return bool(re.search(r"\.\.\.|…|^[A-Z_]+$", text))


def check_default(key: str, text: str) -> None:
    """`ValueError` unless the field has this default."""
    if key in groups():
        load = load_search if key in GROUPS else load_config
        if _resolved(load([f"{key}={text}"])) != _resolved(load([])):
            raise ValueError(f"{key}={text}: is not the default")
        return
    defaults = [list(field.default) if isinstance(field.default, tuple) else field.default for field in named(key)]
    if not defaults:
        raise ValueError(f"{key}: there is no such field")
    if yaml.safe_load(text) not in defaults:
        raise ValueError(f"{key}={text}: the default is {' or '.join(map(str, dict.fromkeys(map(str, defaults))))}")


def _resolved(loaded: Any) -> Any:
    if isinstance(loaded, Config):
        return loaded
    config, options, space = resolve(*loaded)
    return config, options.model_copy(update={"space": None}), space


def values(document: Document) -> Iterator[tuple[str, str]]:
    """(field, value) of every `field=value` in text; (field, "") of every `section.field`."""
    for span in document.spans:
        words = [re.fullmatch(r"'?([a-z][a-z_]*(?:\.[a-z_]+)*)='?(.*?)'?", word) for word in span.text.split()]
        if all(words):
            for pair in filter(None, words):
                if pair[1] not in NO_FIELDS and not pair[1].startswith("space."):
                    yield from ((pair[1], value) for value in pair[2].split("|"))
        elif re.fullmatch(rf"({'|'.join(SECTIONS)})(\.[a-z_]+)+", span.text) and Path(span.text).suffix not in FILES:
            yield from ([] if span.text in NO_FIELDS else [(span.text, "")])


def defaults(document: Document) -> Iterator[tuple[str, str]]:
    """(field, value) of everything that the document calls a default."""
    for paragraph in document.paragraphs:
        for claim in CLAIMS:
            yield from re.findall(claim, paragraph.text, re.IGNORECASE)
    for head, *rows in document.tables:
        columns = [cell.lower() for cell in head]
        for row in rows:
            if "default" in columns and (field := re.match(r"`([\w.]+)`", row[0])):
                yield field[1], row[columns.index("default")]
            elif columns[0] == "field":
                yield from ((key, value) for key, value in re.findall(PAIR, row[0]) if key not in groups())


# Links, files, modules


def check_link(document: Document, target: str) -> None:
    if re.match(r"\w+:", target):
        return  # somewhere else
    name, _, anchor = target.partition("#")
    path = document.path.parent / name
    if name and not path.exists():
        raise ValueError(f"{target}: there is no such file")
    if anchor and anchor not in (Document(path, path.read_text()) if name else document).anchors:
        raise ValueError(f"{target}: there is no such heading")


def check_file(document: Document, text: str) -> None:
    """`ValueError` where `text` looks like a file of this project and is none."""
    name, _, test = text.partition("::")
    if not re.fullmatch(r"[\w*.-]+(/[\w*.-]+)*/?", name) or OF_THE_READER.search(name):
        return
    if name.split("/")[0] in CODE_FOLDERS and "/" in name:
        found = [*ROOT.glob(name), *document.path.parent.glob(name)]
    elif name.endswith((".py", ".md")):
        found = [*ROOT.glob(name)] + [path for folder in CODE_FOLDERS for path in (ROOT / folder).glob(f"**/{name}")]
    else:
        return
    if not found:
        raise ValueError(f"{text}: there is no such file")
    if test and f"def {test}(" not in found[0].read_text():
        raise ValueError(f"{text}: there is no such test")


def check_modules(text: str) -> None:
    for name in re.findall(r"\b(?:dpl_ray|pipelines|benchmarks)(?:\.[A-Za-z_]\w*)+", text):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{name}: {error}") from None


def mistakes(document: Document) -> list[str]:
    checks: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
    checks += [(check_value, pair) for pair in values(document)]
    checks += [(check_default, (key, text.strip("`").rstrip("."))) for key, text in defaults(document)]
    checks += [(check_link, (document, link.text)) for link in document.links]
    checks += [(check_file, (document, span.text)) for span in document.spans]
    checks += [(check_modules, (span.text,)) for span in document.spans]
    found = []
    for check, arguments in checks:
        try:
            check(*arguments)
        except ValueError as error:
            found.append(f"{document.name}: {error}")
    return found


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_what_a_document_names_exists(document: Document) -> None:
    assert mistakes(document) == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_readme_promises_bits_for_cpus_alone() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    assert text.count("bit for bit") == text.count("on CPUs of one kind bit for bit; on a GPU within rounding") == 1


def test_fields_are_called_defaults_in_many_places() -> None:
    assert sum(1 for document in documents() for _ in defaults(document)) > 10
    assert dpl_ray.__all__


PAGE = """
# What it names

`data.pool.mode=memory|stream` and `policy.cut=own`, `rounds=4`, `data=cifar10`, `registry.name=…`, `run.json`,
`--size=3`, `RAY_ADDRESS=auto`, `data.pool`. `train.mu=7` is the default, `train.batch_size` is 16 by default, and the
share `policy.classifier_from` (default 0) is another. By default, `train.seed` is 0. `tune=random` is the default.

| field | meaning |
|---|---|
| `data.pool.shuffle_rows=8192` | rows |
| `data=parquet` | a group |

| name | default |
|---|---|
| `train.keep_checkpoints` | 2 |

[The README](README.md), [this](#what-it-names) and [METHOD](docs/method.md); `training/step.py`, `tests/documents.py`,
`tests/test_docs_names.py::test_a_mistake_is_found`, `docs/method.md`, `dpl_ray.fit(config)`, `s3://bucket/pool.py`.
"""


def test_what_is_right_is_accepted() -> None:
    document = Document(ROOT / "page.md", PAGE)
    assert mistakes(document) == []
    assert sorted(defaults(document)) == [
        ("data.pool.shuffle_rows", "8192"),
        ("policy.classifier_from", "0"),
        ("train.batch_size", "16"),
        ("train.keep_checkpoints", "2"),
        ("train.mu", "7"),
        ("train.seed", "0"),
        ("tune", "random"),
    ]
    named_alone = {key for key, value in values(document) if not value}
    assert named_alone == {
        "data.pool",
        "train.batch_size",
        "policy.classifier_from",
        "train.seed",
        "train.keep_checkpoints",
    }


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("memory|stream", "memory|strem", "data.pool.mode=strem"),
        ("policy.cut=own", "policy.cut=none_", "policy.cut"),
        ("policy.cut=own", "policy.cuts=own", "policy.cuts=own: there is no such field"),
        ("rounds=4", "rounds=0", "rounds=0"),
        ("`data.pool`", "`data.pools`", "data.pools"),
        ("data=cifar10", "data=cifar11", "data=cifar11: there is no such data"),
        ("registry.name", "registry.named", "registry.named"),
        ("`train.mu=7` is", "`train.mu=8` is", "train.mu=8: the default is 7"),
        ("is 16 by", "is 17 by", "train.batch_size=17: the default is 16"),
        ("(default 0)", "(default 0.5)", "policy.classifier_from=0.5: the default is 0.0"),
        ("`train.seed` is 0", "`train.seed` is 1", "train.seed=1: the default is 0"),
        ("tune=random", "tune=asha", "tune=asha: is not the default"),
        ("shuffle_rows=8192", "shuffle_rows=8193", "the default is 8192"),
        ("| 2 |", "| 3 |", "train.keep_checkpoints=3: the default is"),
        ("(README.md)", "(README.txt)", "README.txt: there is no such file"),
        ("#what-it-names", "#what-it-is", "#what-it-is: there is no such heading"),
        ("docs/method.md)", "docs/method.md#nonsense)", "there is no such heading"),
        ("training/step.py", "training/steps.py", "training/steps.py: there is no such file"),
        ("tests/documents.py", "tests/document.py", "tests/document.py: there is no such file"),
        ("::test_a_mistake_is_found", "::test_nonsense", "there is no such test"),
        ("`docs/method.md`", "`docs/methods.md`", "docs/methods.md: there is no such file"),
        ("dpl_ray.fit(config)", "dpl_ray.fits(config)", "dpl_ray.fits"),
    ],
)
def test_a_mistake_is_found(right: str, wrong: str, message: str) -> None:
    assert right in PAGE
    found = mistakes(Document(ROOT / "page.md", PAGE.replace(right, wrong)))
    assert len(found) == 1, found
    assert message in found[0]
