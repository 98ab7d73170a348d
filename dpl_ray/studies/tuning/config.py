"""What a search is made of besides a training run's configuration: space, who proposes, who stops, room for trials."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field
from yaml import YAMLError

from dpl_ray.config.compose import load_config
from dpl_ray.config.describe import CONF_FOLDER, list_groups
from dpl_ray.config.overrides import parse_override, refuse_near_miss
from dpl_ray.config.schema import BENCHMARK_FIELDS, Config
from dpl_ray.config.section import Section, shown, suggest, validated
from dpl_ray.runs.folder import bound_tree
from dpl_ray.studies.tuning.space import Space, check_space, parse_space

GROUPS = ("tune", "space")  # of conf/, and no groups of a training run
NUM_EVALUATIONS = 10  # of a trial, where train.evaluate_every does not say it
#: Where no file or field says otherwise; a trial is one process.
DEFAULTS = ("scale.num_workers=1", "data.pool.mode=memory", "data.validation_fraction=0.5")


class SearchConfig(Section):
    """The fields of a search beside those of `Config`; on the command line without a section: `num_trials=20`."""

    searcher: Literal["random", "optuna"] = Field("random", description="how the values of a trial are proposed")
    scheduler: Literal["none", "asha"] = Field("none", description="asha stops trials that are behind the others")
    space: dict[str, Any] | None = Field(
        None,
        description="fields and their values: space=NAME of the group; space.train.mu={choice:[3,7]} sets one, "
        "space.train.mu=null leaves it out; null: schedules",
    )
    num_trials: int = Field(12, ge=1, description="total number of trials, including those of an interrupted search")
    random_trials: int = Field(5, ge=1, description="optuna: trials drawn at random before TPE proposes")
    grace_steps: int | None = Field(
        None, ge=1, description="asha: no trial is stopped before this step; null: a fifth of the run"
    )
    reduction_factor: float = Field(3.0, gt=1, description="asha: one in this many trials passes a rung")
    cpus_per_trial: float = Field(1.0, gt=0, description="CPUs that a trial reserves")
    gpus_per_trial: float = Field(
        0.25, gt=0, le=1, description="share of a GPU that a trial reserves, with scale.use_gpu=true"
    )
    max_concurrent: int | None = Field(
        None, ge=1, description="largest number of trials at once; null: as many as there is room for"
    )


def load_search(overrides: Sequence[str] = (), start: Config | None = None) -> tuple[Config, SearchConfig]:
    """The configurations that `dpl-ray tune OVERRIDES` runs with, or what the overrides make of `start`.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    own = [text for text in overrides if "=" in text and _is_own(text.partition("=")[0])]
    rest = [text for text in overrides if text not in own]
    for text in rest:
        _check_override(text)
    values: dict[str, Any] = {}
    fields: dict[str, Any] = {}  # of the space, set one by one
    for text in sorted(own, key=lambda text: not text.startswith("tune=")):  # the file first: fields change it
        key = text.partition("=")[0]
        if key == "tune":
            values |= _read(text, "tune")
            continue
        value = parse_override(text, {}, list(SearchConfig.model_fields)).value()
        if key.startswith("space."):
            fields[key.removeprefix("space.")] = value
        else:
            values[key] = value
    if isinstance(values.get("space"), str):
        values["space"] = _read(f"space={values['space']}", "space")
    if fields:
        space = parse_space(values.get("space") or _default_space())
        values["space"] = {field: {domain.kind: list(domain.values)} for field, domain in space.items()} | fields
    options = validated(SearchConfig, values)
    defaults = () if start or any(text.startswith("config=") for text in rest) else DEFAULTS
    return load_config([*defaults, *rest], start, in_cells=True), options


def _is_own(key: str) -> bool:
    return key in GROUPS or key in SearchConfig.model_fields or key.startswith("space.")


def _read(text: str, group: str) -> dict[str, Any]:
    """An option of conf/, or a YAML file of the user's."""
    name = text.partition("=")[2]
    options = list_groups([group])[group]
    path = CONF_FOLDER / group / f"{name}.yaml" if name in options else Path(name)
    if name not in options and not name.endswith((".yaml", ".yml")):
        raise ValueError(
            f"{text}: there is no such {group}; known: {', '.join(options)}, or a YAML file of your own"
            f"{suggest(name, options)}"
        )
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{text}: cannot be read ({str(error).splitlines()[0]}); give a YAML file") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{text}: the file holds no fields; the files of conf/{group} show what it takes")
    return {str(key): value for key, value in tree.items()}


def _default_space() -> dict[str, Any]:
    return _read("space=schedules", "space")


def _check_override(text: str) -> None:
    """What a search answers otherwise than a training run would."""
    key = text.partition("=")[0].lstrip("+~")
    if key == "train.baseline":
        raise ValueError(f"{text}: a search has no baseline; train its best.yaml with it")
    if (key == "data.pool" or key.startswith("data.pool.")) and key not in BENCHMARK_FIELDS:
        raise ValueError(f"{text}: a search keeps the pool in memory, for all trials of a machine")
    if key.partition(".")[0] == "registry":
        raise ValueError(f"{text}: a search has no final model; train its best.yaml with registry.name=...")
    refuse_near_miss(text, [*SearchConfig.model_fields, "tune"])


def resolve(config: Config, options: SearchConfig) -> tuple[Config, SearchConfig, Space]:
    """Configuration and fields of every trial, with what is left open decided, and the space.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    if not config.data.validation_fraction:
        raise ValueError(
            "data.validation_fraction=0: a search chooses by the accuracy on labelled images that are held out, never "
            "by the test split; hold some out, as data.validation_fraction=0.5"
        )
    if config.data.pool.mode == "stream":
        raise ValueError("data.pool.mode=stream: a search keeps the pool in memory, for all trials of a machine")
    num_steps, every = config.train.num_steps, config.train.evaluate_every
    if every is None:
        every = max(1, num_steps // NUM_EVALUATIONS)
    elif every > num_steps:
        raise ValueError(f"train.evaluate_every={every}: must be at most train.num_steps={num_steps}")
    grace = options.grace_steps or max(every, num_steps // 5)
    if options.scheduler == "asha" and grace >= num_steps:
        field = "grace_steps" if options.grace_steps else "train.evaluate_every"
        raise ValueError(
            f"{field}={grace}: must be below train.num_steps={num_steps}, for asha to stop a trial before its end"
        )
    space = parse_space(_default_space() if options.space is None else options.space)
    # What is for reports on the test split, or beside the policy, has no place in a trial.
    train = {"evaluate_every": every, "curve_every": None, "baseline": False}
    config = config.changed(train=train, data={"pool": {"mode": "memory"}})
    check_space(space, config)
    return config, options.model_copy(update={"grace_steps": grace}), space


def search_tree(config: Config, options: SearchConfig, space: Space) -> dict[str, Any]:
    """What may not change when a search goes on, besides where and how: of resolved configurations."""
    tree = bound_tree(config)
    tree["search"] = options.model_dump(
        mode="json", include={"searcher", "scheduler", "random_trials", "grace_steps", "reduction_factor"}
    )
    tree["space"] = {field: str(domain) for field, domain in space.items()}
    return tree


def how_searched(options: SearchConfig) -> str:
    """Who proposes the trials and who stops them, in words."""
    by = {"random": "drawn at random", "optuna": "proposed by Optuna"}[options.searcher]
    return by + (", the worse stopped by ASHA" if options.scheduler == "asha" else "")


def describe_options(options: SearchConfig, space: Space) -> dict[str, str]:
    """The search's own fields as flat `search.field` -> text."""
    fields = options.model_dump(mode="json", exclude={"space"})
    return {f"search.{field}": shown(value) for field, value in fields.items()} | {
        f"search.space.{field}": str(domain) for field, domain in space.items()
    }
