"""The space of a search: field -> the values that it may take. Pure functions, without torch, Ray or Optuna.

In YAML as a configuration's own tree, with one of four forms in the place of a value:

    optim:
      learning_rate: {loguniform: [0.005, 0.2]}  # from low to high, evenly in the logarithm
    train:
      lambda_u: {uniform: [0.25, 2.0]}           # from low to high
      mu: {randint: [3, 9]}                      # whole numbers, both ends included
    policy:
      cut: {choice: [confidence, own]}           # one of these
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpl_ray.config.describe import describe_fields
from dpl_ray.config.overrides import check_policy_field
from dpl_ray.config.parse import parse_config
from dpl_ray.config.schema import Config
from dpl_ray.config.section import shown, suggest

KINDS = ("choice", "uniform", "loguniform", "randint")
INSIDE = 0.381966  # where, between low and high, a value is tried that is no round number
#: What trials share, or what a search itself sets.
FIXED_SECTIONS = ("data", "scale", "run", "tracking", "registry")
FIXED_FIELDS = (
    "train.seed",
    "train.num_steps",
    "train.baseline",
    "train.log_every",
    "train.evaluate_every",
    "train.curve_every",
    "train.curve_images",
    "train.checkpoint_every",
    "train.checkpoint_seconds",
    "train.keep_checkpoints",
)


@dataclass(frozen=True)
class Domain:
    """The values of one field."""

    kind: str  # of KINDS
    values: tuple[Any, ...]  # the choices, or (low, high)

    def __str__(self) -> str:
        return f"{{{self.kind}: {shown(self.values)}}}"

    def draw(self, generator: np.random.Generator) -> Any:
        """A value, as the configuration takes it."""
        if self.kind == "choice":
            return self.values[int(generator.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "randint":
            return int(generator.integers(low, high, endpoint=True))
        if self.kind == "loguniform":
            drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
            return min(max(drawn, low), high)  # exp(log(x)) may be off by a bit
        return float(generator.uniform(low, high))

    def probes(self) -> tuple[Any, ...]:
        """Values by which to tell whether a field takes them all: every choice, or both ends and one between them."""
        if self.kind in ("choice", "randint"):
            return self.values
        low, high = self.values
        return (low, high, low + INSIDE * (high - low))


Space = dict[str, Domain]


def parse_space(tree: Any) -> Space:
    """Dotted field -> domain, in the order of the fields' names; a field that is null is left out.

    Raises:
        ValueError: an entry has no such form, or wrong bounds.
    """
    if not isinstance(tree, dict):
        raise ValueError(f"space={shown(tree)}: must be fields, as space.train.mu={{choice:[3,7]}}")
    found = dict(_entries("", tree))
    space = {field: _domain(field, form) for field, form in sorted(found.items()) if form is not None}
    if not space:
        raise ValueError("space: has no field to search over; give one, as space.train.mu={choice:[3,7]}")
    return space


def _entries(prefix: str, tree: dict[Any, Any]) -> list[tuple[str, Any]]:
    entries: list[tuple[str, Any]] = []
    for key, value in tree.items():
        field = f"{prefix}{key}"
        if isinstance(value, dict) and value and not set(value) & set(KINDS):
            entries += _entries(f"{field}.", value)
        else:
            entries.append((field, value))
    return entries


def _domain(field: str, form: Any) -> Domain:
    where = f"space.{field}={_written(form)}"
    if not isinstance(form, dict) or len(form) != 1 or next(iter(form)) not in KINDS:
        near = suggest(str(next(iter(form))), KINDS) if isinstance(form, dict) and form else ""
        raise ValueError(
            f"{where}: must be {{choice: [a, b, ...]}}, {{uniform: [low, high]}}, {{loguniform: [low, high]}} or "
            f"{{randint: [low, high]}}{near}"
        )
    kind, values = next(iter(form.items()))
    if not isinstance(values, list | tuple):
        raise ValueError(f"{where}: {kind} takes a list")
    if kind == "choice":
        if not values or any(not isinstance(value, str | int | float | bool | None) for value in values):
            raise ValueError(f"{where}: choice takes a list of numbers, words, true, false or null, at least one")
        if len({shown(value) for value in values}) < len(values):
            raise ValueError(f"{where}: a value is there twice")
        return Domain(kind, tuple(values))
    numbers = (int,) if kind == "randint" else (int, float)
    if len(values) != 2 or any(
        isinstance(value, bool) or not isinstance(value, numbers) or not math.isfinite(value) for value in values
    ):
        raise ValueError(f"{where}: {kind} takes two {'whole ' if kind == 'randint' else ''}numbers, low and high")
    low, high = values
    if low >= high:
        raise ValueError(f"{where}: low must be below high")
    if kind == "loguniform" and low <= 0:
        raise ValueError(f"{where}: low must be above 0 for loguniform; uniform takes any")
    return Domain(kind, (low, high) if kind == "randint" else (float(low), float(high)))


def _written(form: Any) -> str:
    if isinstance(form, dict):
        return "{" + ", ".join(f"{key}: {_written(value)}" for key, value in form.items()) + "}"
    return shown(form)


def check_space(space: Space, config: Config) -> None:
    """Refuse a field that there is not, that trials share, or that does not take all values of its domain.

    Raises:
        ValueError: naming the field, the domain or the value, and what would be right.
    """
    known = {row[0] for row in describe_fields()}
    parameters = [name for name in type(config.policy).model_fields if name != "name"]
    for field, domain in space.items():
        _check_field(f"space.{field}={domain}", field, known, parameters, config.policy.name)
    for field, domain in space.items():
        for value in domain.probes():
            try:
                with_values(config, {field: value})
            except ValueError as error:
                raise ValueError(f"space.{field}={domain}: {error}") from None


def _check_field(where: str, field: str, known: set[str], parameters: list[str], policy: str) -> None:
    section, _, name = field.partition(".")
    if field == "policy.name":
        raise ValueError(f"{where}: a search has one policy; dpl-ray compare sets policies side by side")
    if section == "policy":
        advice = f". space=optimizer is for every policy, and space.{field}=null leaves it out"
        check_policy_field(where, name, policy, advice)
    elif field not in known:
        fields = [*known, *(f"policy.{parameter}" for parameter in parameters)]
        raise ValueError(f"{where}: there is no field {field}{suggest(field, fields) or '; --help lists all fields'}")
    shared = section in FIXED_SECTIONS and not field.startswith("data.views.")
    if shared or field in FIXED_FIELDS:
        raise ValueError(f"{where}: {field} is the same for all trials; set it, as {field}=...")


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """The configuration with these values of dotted fields, checked.

    Raises:
        ValueError: a field does not take its value.
    """
    tree = config.model_dump(mode="json")
    for field, value in values.items():
        *path, name = field.split(".")
        section = tree
        for part in path:
            section = section[part]
        section[name] = value
    return parse_config(tree)


def draw_values(space: Space, seed: int, number: int) -> dict[str, Any]:
    """The values of trial `number` of a random search: a function of seed and number, so that it can go on."""
    generator = np.random.default_rng([seed, number])
    return {field: space[field].draw(generator) for field in sorted(space)}
