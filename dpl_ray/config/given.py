"""What the functions of Python take where the command line takes overrides: a configuration, overrides, keywords."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from typing import Any, TypeVar

from hydra.core.override_parser.types import Quote, QuotedString

from dpl_ray.config.describe import list_groups
from dpl_ray.config.schema import Config
from dpl_ray.config.section import S, Section, shown

T = TypeVar("T")


def read_given(given: Any, keywords: Mapping[str, Any], load: Callable[..., T], kind: type[Section] = Config) -> T:
    """What `load` makes of a configuration or overrides, with the keywords as further overrides.

    Args:
        given: a `kind`, or overrides as on the command line.
        keywords: group -> option, section -> dict of its fields, field of a command -> value.
        load: overrides, and the configuration that they change or None -> what a job takes.

    Raises:
        ValueError: `given` is something else; and what `load` raises.
    """
    start = given if isinstance(given, kind) else None
    texts = () if start else given
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        what = repr(given) if isinstance(given, str) else f"a value of type {type(given).__name__}"
        raise ValueError(
            f'{what} is no configuration; give a {kind.__name__}, overrides in a list, as ["scale.num_workers=0"], or '
            'keywords, as scale={"num_workers": 0}'
        )
    return load([*texts, *as_overrides(keywords, quoted if kind is Config else shown)], start)


def read_study(
    given: Any, keywords: Mapping[str, Any], load: Callable[..., tuple[Config, S]], options: S | None
) -> tuple[Config, S]:
    """The same for a job with fields of its own, which are in `options`, or among overrides and keywords.

    Raises:
        ValueError: they are in both; and as `read_given`.
    """
    config, found = read_given(given, keywords, load)
    if options is not None and found != type(options)():
        raise ValueError(f"options: fields of {type(options).__name__} are given beside it; give them in one place")
    return config, options or found


def quoted(value: Any) -> str:
    """A value in Hydra's grammar, in which a text may have any signs."""
    if isinstance(value, str | PathLike):
        return QuotedString(fspath(value), Quote.double).with_quotes()
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{quoted(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(quoted, value))}]"
    return shown(value)


def as_overrides(keywords: Mapping[str, Any], text: Callable[[Any], str] = quoted) -> list[str]:
    """`{"data": "digits", "train": {"mu": 3}}` as `data=digits` and `train.mu=3`.

    Args:
        text: value of a field in a section -> as the overrides have it.
    """
    groups = list_groups()
    found = []
    for key, value in keywords.items():
        for name, inner in value.items() if isinstance(value, Mapping) else ():
            is_option = name == "name" and key in groups
            found.append(f"{key}={inner}" if is_option else f"{key}.{name}={text(inner)}")
        if not isinstance(value, Mapping):
            found.append(f"{key}={shown(value)}")
    return found
