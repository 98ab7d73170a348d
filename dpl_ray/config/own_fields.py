"""What the commands with fields of their own share, in reading them from a command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from dpl_ray.config.describe import describe_fields
from dpl_ray.config.schema import Config
from dpl_ray.config.section import S, suggest, validated


def refuse_near_miss(text: str, own: Iterable[str]) -> None:
    """`ValueError` for a field that is none of a training run's, but nearly one of the command's own."""
    key = text.partition("=")[0].lstrip("+~")
    if "=" in text and "." not in key and key not in Config.model_fields and (near := suggest(key, own)):
        raise ValueError(f"{text}: there is no field {key}{near}")


def as_yaml(text: str) -> Any:
    """The value as YAML has it, or the text itself, which the section then refuses."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def load_section(model: type[S], overrides: Sequence[str], required: Mapping[str, str]) -> S:
    """The fields of a command that has no others, as `field=value` or `section.field=value`.

    Args:
        required: fields that must be given -> an example.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    kinds = {field: kind for field, kind, _, _ in describe_fields(model)}
    tree: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text}: says no field=value (write it without spaces around the =)")
        if key not in kinds:
            near = suggest(key, kinds) or "; known: " + ", ".join(kinds)
            raise ValueError(f"{text}: there is no field {key}{near}")
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = _value(value, kinds[key].split("|"))
    return complete(model, tree, required)


def complete(model: type[S], values: Mapping[str, Any], required: Mapping[str, str]) -> S:
    """The section of these values; a required field that is missing or empty is a `ValueError` with its example."""
    section = validated(model, values)
    for field, example in required.items():
        if not getattr(section, field).strip():
            raise ValueError(f"{field} is missing: give it, as {field}={example}")
    return section


def _value(text: str, kinds: Sequence[str]) -> Any:
    """Paths and names as they are typed, everything else as YAML has it."""
    if "str" in kinds:
        return None if text == "null" and "null" in kinds else text
    return as_yaml(text)
