"""What is written on a command line: field=value in Hydra's grammar, checked against the fields and groups there are.

The commands with fields of their own read these here too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from dpl_ray.config.describe import default_options, describe_fields, leaves, list_groups
from dpl_ray.config.policies import POLICY_CONFIGS
from dpl_ray.config.schema import Config
from dpl_ray.config.section import Section, in_short, suggest, validated

LONGEST_VALUE = 2_000  # characters of what is no list
#: A path that begins with ~ or has a range of numbers, which Hydra's grammar does not know.
_PATH = r"(?<=[=\[,])(?:~|[^\[\],'\"]*\{\d+\.\.\d+\})[^\[\],'\"]*"

#: What Hydra's grammar reads as a number or a truth value.
_NUMBER = re.compile(r"(^[^=]*=|[\[,]\s*)([-+]?\.?\d[\d._]*(?:e[-+]?\d+)?|true|false)(?=\s*(?:[,\]]|$))", re.I)


def read_overrides(overrides: Sequence[str], given: Config | None) -> tuple[dict[str, str], list[Override]]:
    """The option chosen of every group, and the fields set beside them, in their order.

    Args:
        given: a whole configuration that the fields change, without groups; None: that of conf/.

    Raises:
        ValueError: naming what was written, and what would be right.
    """
    groups = list_groups()
    kinds = {field: kind.split("|") for field, kind, _, _ in describe_fields()}
    known = list(kinds)
    for text in overrides:
        _check_length(text)
    parsed = [(text, parse_override(_as_typed(text, kinds), groups, known)) for text in overrides]
    options: dict[str, str] = {"policy": given.policy.name} if given else default_options()
    for text, override in parsed:
        key = override.key_or_group
        if override.is_sweep_override():
            raise ValueError(
                f"{text}: one value a run; lists are written {key}=[a,b], and a comma in a value is quoted: "
                f"'{key}=\"{text.partition('=')[2]}\"'"
            )
        if key in groups and not override.is_delete():
            _check_group(text, override, groups[key])
            if given:
                raise ValueError(f"{text}: the configuration that is given has chosen every group; set single fields")
            options[key] = str(override.value())
    for text, override in parsed:
        if override.key_or_group not in groups:
            for key in leaves(override.key_or_group, override.value()):
                _check_field(text, key, known, groups, options["policy"])
        if override.is_add() or override.is_delete():
            raise ValueError(f"{text}: fields and groups are there already; set one with field=value, without + or ~")
    return options, [override for _, override in parsed if override.key_or_group not in groups]


def _as_typed(text: str, kinds: Mapping[str, Sequence[str]]) -> str:
    """The override with quotes where a field of texts has what looks like a number: a folder 2024_11 is none."""
    kind = kinds.get(text.partition("=")[0], ())
    is_text = ("str" in kind or "list" in kind) and "int" not in kind and not {"'", '"'} & set(text)
    return _NUMBER.sub(r'\1"\2"', text) if is_text else text


def _check_length(text: str) -> None:
    """Hydra's grammar takes a millisecond for a few characters: only lists are waited for, as of many paths."""
    lists = (row[0] for row in describe_fields() if "list" in row[1].split("|"))
    if len(text) > LONGEST_VALUE and text.partition("=")[0] not in lists:
        raise ValueError(f"{text[:100]}...: has {len(text):,} characters; only a list has more than {LONGEST_VALUE:,}")


def _check_group(text: str, override: Override, options: dict[str, str]) -> None:
    option = str(override.value())
    if option not in options:
        raise ValueError(
            f"{text}: there is no such {override.key_or_group}; known: {', '.join(options)}{suggest(option, options)}"
        )


def _check_field(text: str, key: str, known: list[str], groups: dict[str, dict[str, str]], policy: str) -> None:
    group, _, name = key.partition(".")
    if name == "name" and group in groups:
        raise ValueError(f"{text}: {group} is chosen as {group}=NAME; known: {', '.join(groups[group])}")
    if group == "policy" and name:
        check_policy_field(text, name, policy)
    elif inner := [name for name in known if name.startswith(f"{key}.")]:
        raise ValueError(f"{text}: {key} is a section; set its fields, as {inner[0]}=...{suggest(key, groups)}")
    elif key not in known:
        near = suggest(key, [*known, *groups])
        raise ValueError(f"{text}: there is no field {key}{near or '; --help lists all fields'}")


def check_policy_field(text: str, name: str, policy: str, advice: str = "") -> None:
    """`ValueError`, which ends with the advice, for a parameter that the policy does not have."""
    known = POLICY_CONFIGS[policy].model_fields
    if name not in known:
        parameters = [parameter for parameter in known if parameter != "name"]
        owners = [other for other, section in POLICY_CONFIGS.items() if name in section.model_fields]
        near = f"; policy={owners[0]} has it" if owners else suggest(name, parameters)
        raise ValueError(
            f"{text}: policy={policy} has no such parameter; known: {', '.join(parameters) or 'none'}{near}{advice}"
        )


def parse_override(text: str, groups: dict[str, dict[str, str]], known: list[str]) -> Override:
    """field=value in Hydra's grammar.

    Raises:
        ValueError: it says none, or cannot be read.
    """
    if re.match(r"--?\w", text):
        raise ValueError(f"{text}: there is no such option; fields are set as field=value, --help lists them")
    key, equals, value = text.partition("=")
    if not equals and not key.startswith("~"):
        choices = [f"{group}={option}" for group, options in groups.items() for option in options]
        near = suggest(key, [choice.partition("=")[2] for choice in choices])
        if near:
            option = near.removeprefix("; did you mean ").removesuffix("?")
            near = "; did you mean " + next(choice for choice in choices if choice.endswith(f"={option}")) + "?"
        near = near or ("" if key in known else suggest(key, known))
        raise ValueError(f"{text or repr(text)}: says no field=value (write it without spaces around the =){near}")
    reason = ""
    for form in (text, re.sub(_PATH, r'"\g<0>"', text)):
        try:
            return OverridesParser.create().parse_overrides([form])[0]
        except (HydraException, RecursionError) as error:
            reason = reason or str(error.__cause__ or error).splitlines()[0]
    if value.startswith("["):
        raise ValueError(
            f"{text}: not understood ({reason}); quote values with special characters, as in "
            f"'{key}=[\"a, b.png\",c.png]'"
        )
    raise ValueError(f"{text}: not understood ({reason}); quote special characters, as in '{key}=\"{value}\"'")


def refuse_near_miss(text: str, own: Iterable[str]) -> None:
    """`ValueError` for a field that is none of a training run's, but nearly one of the command's own."""
    key = text.partition("=")[0].lstrip("+~")
    if "=" in text and "." not in key and key not in Config.model_fields and (near := suggest(key, own)):
        raise ValueError(f"{text}: there is no field {key}{near}")


def as_yaml(text: str) -> Any:
    """The value as YAML has it, or the text itself, which the section then refuses."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


class JobConfig(Section):
    """The fields of a command that has no others."""

    required: ClassVar[Mapping[str, str]] = {}  # field that must be given -> an example
    instead: ClassVar[Mapping[str, str]] = {}  # field of another command -> what it is called here

    @classmethod
    @in_short()
    def load(cls, overrides: Sequence[str] = (), start: Self | None = None) -> Self:
        """What `field=value` and `section.field=value` make of `start`, or of the defaults.

        Raises:
            ValueError: naming the field, the value and what would be right.
        """
        kinds = {field: kind for field, kind, _, _ in describe_fields(cls)}
        tree: dict[str, Any] = (start or cls()).model_dump()
        for text in overrides:
            key, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"{text}: says no field=value (write it without spaces around the =)")
            key = f"{key}.name" if f"{key}.name" in kinds else key
            if key not in kinds:
                other = cls.instead.get(key)
                near = f"; give {other}={value}" if other else suggest(key, kinds) or "; known: " + ", ".join(kinds)
                raise ValueError(f"{text}: there is no field {key}{near}")
            *sections, name = key.split(".")
            place = tree
            for section in sections:
                place = place[section]
            place[name] = _value(key, value, kinds[key].split("|"))
        made = validated(cls, tree)
        for field, example in cls.required.items():
            if not str(getattr(made, field) or "").strip():
                raise ValueError(f"{field} is missing: give it, as {field}={example}")
        made.check()
        return made

    def check(self) -> None:
        """`ValueError` where fields do not go together."""


def _value(key: str, text: str, kinds: Sequence[str]) -> Any:
    """Paths and names as they are typed, lists as on the command line of a training, everything else as YAML has it."""
    if "list" in kinds and text.startswith("[") and text.endswith("]"):
        return parse_override(_as_typed(f"{key}={text}", {key: kinds}), {}, []).value()
    if "str" in kinds:
        return None if text == "null" and "null" in kinds else text
    return as_yaml(text)
