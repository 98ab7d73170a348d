"""What --help says of the fields of a configuration."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

import yaml

from dpl_ray.config.policies import POLICY_CONFIGS
from dpl_ray.config.schema import Config
from dpl_ray.config.section import Section


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
    if typing.get_origin(annotation) is tuple:
        return "list"
    return getattr(annotation, "__name__", str(annotation))
