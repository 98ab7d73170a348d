"""What a comparison is made of besides a training run's configuration: policies, subsets, room for its cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import Field

from dpl_ray.config.compose import load_config
from dpl_ray.config.overrides import as_yaml, refuse_near_miss
from dpl_ray.config.parse import parse_policy
from dpl_ray.config.policies import POLICY_CONFIGS
from dpl_ray.config.schema import BENCHMARK_FIELDS, Config
from dpl_ray.config.section import Section, suggest, validated
from dpl_ray.runs.folder import FREE, bound_tree, study_name
from dpl_ray.studies.comparison.cells import Cell, policy_label

MAX_SUBSETS = 1000  # from the seed of one repeat to that of the next, so that more of either change no other cell


class CompareConfig(Section):
    """The fields of a comparison beside those of `Config`; on the command line without a section: `subsets=5`."""

    policies: tuple[str, ...] = Field(
        (),
        description="policies, with parameters in parentheses: [dpl,dpl(rule=band,cut=own),fixmatch]; []: every "
        "policy with its defaults",
    )
    subsets: int = Field(
        5,
        ge=1,
        le=MAX_SUBSETS,
        description="labelled subsets that every policy is trained on, their seeds counted from train.seed",
    )
    repeats: int = Field(
        1, ge=1, description="trainings on each labelled subset, each with other initial weights, order and views"
    )
    reference: str | None = Field(
        None,
        description="the policy that the others are compared to; null: fixmatch, or the first where it is not there",
    )
    cpus_per_cell: float = Field(1.0, gt=0, description="CPUs that a cell (one policy with one seed) reserves")
    gpus_per_cell: float = Field(
        0.25, gt=0, le=1, description="share of a GPU that a cell reserves, with scale.use_gpu=true"
    )


#: As the command line takes it -> field.
NAMES = {name: name for name in CompareConfig.model_fields} | {"seeds": "subsets"}


@dataclass(frozen=True)
class Plan:
    """The cells of a comparison, by subset, seed and policy, and the label of the reference policy."""

    cells: tuple[Cell, ...]
    reference: str

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.label for cell in self.cells))

    @property
    def subsets(self) -> tuple[int | None, ...]:
        return tuple(dict.fromkeys(cell.subset for cell in self.cells))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(cell.seed for cell in self.cells))


def load_comparison(overrides: Sequence[str] = (), start: Config | None = None) -> tuple[Config, CompareConfig]:
    """The configurations that `dpl-ray compare OVERRIDES` runs with, or what the overrides make of `start`.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    own = [text for text in overrides if "=" in text and text.partition("=")[0] in NAMES]
    rest = [text for text in overrides if text not in own]
    for text in rest:
        _check_override(text)
    values = {NAMES[key]: _value(key, text) for key, _, text in (text.partition("=") for text in own)}
    compare = validated(CompareConfig, values)
    defaults = [] if start else ["scale.num_workers=1", "data.pool.mode=memory"]
    return load_config([*defaults, *rest], start, in_cells=True), compare


def make_plan(config: Config, compare: CompareConfig) -> Plan:
    """The cells that the configurations ask for.

    Raises:
        ValueError: there is no such policy or parameter, a policy is there twice, the reference is not there, or
            several subsets are wanted of one.

    Subset s has the seed train.seed + s. Its first training has this seed for all else too, as a training run with
    train.seed; repeat r adds MAX_SUBSETS r. With data.subset_seed, repeat r has train.seed + r.
    """
    policies: dict[str, dict[str, Any]] = {}
    written: dict[str, str] = {}
    for entry in compare.policies or POLICY_CONFIGS:
        label, policy = read_policy(entry)
        if label in policies:
            same = "is there twice" if written[label] == entry else f"and {written[label]} are the same policy"
            raise ValueError(f"policies: {entry} {same}; leave one of them out")
        policies[label], written[label] = policy, entry
    if compare.reference is None:
        reference = next((label for label in policies if label == "fixmatch"), next(iter(policies)))
    else:
        reference, _ = read_policy(compare.reference, "reference")
    if reference not in policies:
        listed = ", ".join(policies)
        raise ValueError(
            f"reference={compare.reference}: is not among the policies ({listed}); add it, or choose one of them"
            f"{suggest(reference, policies)}"
        )
    fixed, first = config.data.subset_seed, config.train.seed
    if fixed is not None and compare.subsets > 1:
        raise ValueError(
            f"subsets={compare.subsets}: data.subset_seed={fixed} is one labelled subset; leave it out, or set "
            f"subsets=1 repeats={compare.subsets}"
        )
    stride = MAX_SUBSETS if fixed is None else 1
    cells = tuple(
        Cell(label, policy, first + subset + stride * repeat, first + subset if fixed is None else fixed)
        for subset in range(compare.subsets)
        for repeat in range(compare.repeats)
        for label, policy in policies.items()
    )
    return Plan(cells, reference)


def read_policy(entry: str, field: str = "policies") -> tuple[str, dict[str, Any]]:
    """(label, name and parameters) of `dpl` or `dpl(rule=band,cut=own)`."""
    where = f"{field}=[{entry}]" if field == "policies" else f"{field}={entry}"
    found = re.fullmatch(r"\s*([^\s()]+)\s*(?:\((.*)\))?\s*", entry)
    if not found:
        raise ValueError(f"{where}: a policy is written as dpl, or with parameters as dpl(rule=band,cut=own)")
    name, inside = found.groups()
    if name not in POLICY_CONFIGS:
        known = ", ".join(POLICY_CONFIGS)
        raise ValueError(f"{where}: there is no such policy; known: {known}{suggest(name, POLICY_CONFIGS)}")
    given: dict[str, Any] = {}
    for text in filter(None, re.split(r",(?![^\[]*\])", inside or "")):
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{where}: {text.strip()} says no parameter=value, as in dpl(rule=band,cut=own)")
        if key.strip() == "name":
            raise ValueError(
                f"{where}: {text.strip()} is no parameter; the name stands before the parentheses, as {name}"
            )
        try:
            given[key.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):  # the latter where it looks like a date and is none
            raise ValueError(
                f"{where}: {text.strip()} has no value that can be read; a parameter is a number, a word, true or false"
            ) from None
    try:
        policy = parse_policy({"name": name} | given)
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).removeprefix('policy.')}") from None
    return policy_label(policy), policy.model_dump()


def comparison_name(config: Config) -> str:
    """run.name, or a name that the same command has again and another configuration has not, so that it resumes."""
    return study_name(config, "comparison", shared_tree(config))


def free_fields() -> set[str]:
    """What may differ between the cells of a comparison: policy and seeds, and where and how they run."""
    # A run may change train.log_every, but cells may not differ in it: the last record, of which the tables have
    # coverage and precision, is of that many steps.
    return {*FREE, "policy", "train.seed", "train.baseline"} - {"train.log_every"}


def shared_tree(config: Config) -> dict[str, Any]:
    """What all cells of a comparison have in common and none may change."""
    return bound_tree(config, free_fields())


def _check_override(text: str) -> None:
    """What a comparison answers otherwise than a training run would."""
    key = text.partition("=")[0].lstrip("+~")
    if key == "policy" or key.startswith("policy."):
        raise ValueError(
            f"{text}: a comparison's policies carry their parameters with them, as 'policies=[dpl(rule=band),fixmatch]'"
        )
    if key == "train.baseline":
        raise ValueError(f"{text}: a comparison's baseline is the policy supervised, as 'policies=[supervised,dpl]'")
    if (key == "data.pool" or key.startswith("data.pool.")) and key not in BENCHMARK_FIELDS:
        raise ValueError(f"{text}: a comparison keeps the pool in memory, for all cells of a machine")
    if key.partition(".")[0] == "registry":
        raise ValueError(f"{text}: a comparison has no final model; dpl-ray train registers the one that it trains")
    refuse_near_miss(text, NAMES)


def _value(key: str, text: str) -> Any:
    if key == "reference":
        return None if text == "null" else text
    if key != "policies":
        return as_yaml(text)
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return text  # which pydantic refuses, naming the form
    # Commas between policies, not those between a policy's parameters.
    entries = re.split(r",(?![^()]*\))", text[1:-1])
    return [entry.strip(" '\"") for entry in entries if entry.strip()]
