"""What a configuration can be made of, as --help and the documents list it: fields, groups and their options."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from dpl_ray.config.policies import POLICY_CONFIGS
from dpl_ray.config.schema import Config
from dpl_ray.config.section import Section, shown

_PACKAGE = Path(__file__).resolve().parents[1]
#: Inside the package where it is installed, beside it in a checkout.
CONF_FOLDER = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())


def describe_fields(section: type[Section] = Config, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Rows (field, type, default, meaning) of every field, depth first; those of policies: `describe_policies`."""
    rows: list[tuple[str, str, str, str]] = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            rows += describe_fields(field.annotation, f"{prefix}{name}.")
        elif name != "policy":
            default = yaml.safe_dump(field.default, default_flow_style=True).removesuffix("\n...\n").strip()
            if isinstance(field.default, tuple):
                default = "[]" if not field.default else str(list(field.default))
            rows.append((prefix + name, _type_name(field.annotation), default, field.description or ""))
    return rows


def describe_policies() -> dict[str, list[tuple[str, str, str, str]]]:
    """Policy -> rows (field, type, default, meaning) of its own parameters."""
    return {name: describe_fields(section, "policy.")[1:] for name, section in POLICY_CONFIGS.items()}


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return "|".join(str(value) for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):  # Literal | None is the latter
        return "|".join("null" if part is type(None) else _type_name(part) for part in typing.get_args(annotation))
    if typing.get_origin(annotation) is Annotated:
        return _type_name(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is tuple:
        return "list"
    return getattr(annotation, "__name__", str(annotation))


def list_groups(names: Iterable[str] | None = None) -> dict[str, dict[str, str]]:
    """Group -> option -> the comment that its YAML file opens with; of a training run's groups, or of these."""
    groups: dict[str, dict[str, str]] = {}
    for name in sorted(default_options() if names is None else names):
        for path in sorted((CONF_FOLDER / name).glob("*.yaml")):
            lines = path.read_text().splitlines()
            comments = [line for line in lines if line.startswith("#") and "@package" not in line]
            groups.setdefault(name, {})[path.stem] = comments[0].lstrip("# ") if comments else ""
    return groups


def default_options() -> dict[str, str]:
    """Group -> the option that is taken where none is chosen."""
    defaults = yaml.safe_load((CONF_FOLDER / "config.yaml").read_text())["defaults"]
    return {group: option for entry in defaults if isinstance(entry, dict) for group, option in entry.items()}


def option_tree(group: str, option: str) -> dict[str, Any]:
    """What an option's file sets, as a configuration has it."""
    text = (CONF_FOLDER / group / f"{option}.yaml").read_text()
    tree = yaml.safe_load(text)
    return dict(tree) if "@package _global_" in text else {group: tree}


def option_values(group: str, option: str) -> dict[str, str]:
    """Dotted field -> value that an option's file sets, its own name aside."""
    values = {key: shown(value) for key, value in leaves("", option_tree(group, option)).items()}
    return {key: value for key, value in values.items() if key != f"{group}.name"}


def leaves(key: str, value: Any) -> dict[str, Any]:
    """Dotted fields below `key` and their values: a={b: 1, c: {d: 2}} sets a.b and a.c.d."""
    if not isinstance(value, dict):
        return {key: value}
    prefix = f"{key}." if key else ""
    return {leaf: at for name, inner in value.items() for leaf, at in leaves(f"{prefix}{name}", inner).items()}
