"""From `conf/` and command-line overrides to a validated `Config`: Hydra composes, pydantic checks.

Every mistake is one `ValueError` that names the field, the value and what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpl_ray.config.describe import describe_fields
from dpl_ray.config.policies import POLICY_CONFIGS
from dpl_ray.config.schema import Config, parse_config
from dpl_ray.config.section import shown, suggest
from dpl_ray.store.file_systems import one_line
from dpl_ray.store.storage import Storage

CONF_FOLDER = Path(__file__).resolve().parents[2] / "conf"


def load_config(overrides: Sequence[str] = (), *, in_cells: bool = False) -> Config:
    """The configuration that `python -m pipelines.train OVERRIDES` runs with.

    Args:
        overrides: as on the command line: `["data=cifar10", "policy=fixmatch", "train.num_steps=500"]`. One of them may
            be `config=FILE`: a whole configuration as `to_yaml` writes it, which takes the place of conf/.
        in_cells: as `parse_config` has it.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    files = [text.partition("=")[2] for text in overrides if text.startswith("config=")]
    overrides = [text for text in overrides if not text.startswith("config=")]
    if len(files) > 1:
        raise ValueError(f"config={files[1]}: config={files[0]} is there already; one file is the whole configuration")
    given = _read_config(files[0]) if files else None
    policy = _check_overrides(overrides, given)
    node, start = (Config(policy=POLICY_CONFIGS[policy]()), "schema") if given is None else (given, "given")
    ConfigStore.instance().store(name=start, node=node.model_dump(mode="json"))
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_FOLDER), version_base="1.3"):
            start = "config" if given is None else start
            tree: Any = OmegaConf.to_container(compose(start, overrides=list(overrides)), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ValueError(f"{getattr(error, 'full_key', None) or ' '.join(overrides)}: {first_line}") from None
    return parse_config(tree, in_cells=in_cells)


def _read_config(path: str) -> Config:
    """A whole configuration from a file.

    Raises:
        ValueError: it cannot be read, or is no configuration.
    """
    try:
        tree = yaml.safe_load(Storage(path).read())
    except (OSError, ValueError, pa.ArrowException, yaml.YAMLError) as error:
        raise ValueError(f"config={path}: cannot be read ({one_line(error)}); give a YAML file") from None
    if not isinstance(tree, dict):
        raise ValueError(f"config={path}: holds no configuration; give a YAML file as config.yaml of a run's folder")
    try:
        return parse_config(tree)
    except ValueError as error:
        raise ValueError(f"config={path}: {error}") from None


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


def option_values(group: str, option: str) -> dict[str, str]:
    """Dotted field -> value that an option's file sets, its own name aside."""
    text = (CONF_FOLDER / group / f"{option}.yaml").read_text()
    tree = yaml.safe_load(text)
    fields = _leaves("", tree if "@package _global_" in text else {group: tree})
    values = {key.removeprefix("."): shown(value) for key, value in fields.items()}
    return {key: value for key, value in values.items() if key != f"{group}.name"}


def _check_overrides(overrides: Sequence[str], given: Config | None) -> str:
    """The name of the policy that is chosen.

    Args:
        given: a whole configuration that they change; None: they change that of conf/.
    """
    groups = list_groups()
    known = [row[0] for row in describe_fields()]
    parsed = [(text, parse_override(text, groups, known)) for text in overrides]
    policy = given.policy.name if given else default_options()["policy"]
    for text, override in parsed:
        key = override.key_or_group
        if override.is_sweep_override():
            raise ValueError(
                f"{text}: one value a run; lists are written {key}=[a,b], and a comma in a value is quoted: "
                f"'{key}=\"{text.partition('=')[2]}\"'"
            )
        if key in groups:
            _check_group(text, override, groups[key])
            if given:
                raise ValueError(f"{text}: config=FILE has chosen every group; set single fields beside it")
            if key == "policy" and not override.is_delete():
                policy = str(override.value())
    for text, override in parsed:
        if override.key_or_group not in groups:
            for key in _leaves(override.key_or_group, override.value()):
                _check_field(text, key, known, groups, policy)
        if override.is_add() or override.is_delete():
            raise ValueError(f"{text}: fields and groups are there already; set one with field=value, without + or ~")
    return policy


def _check_group(text: str, override: Override, options: dict[str, str]) -> None:
    option = str(override.value())
    if not override.is_delete() and option not in options:
        raise ValueError(
            f"{text}: there is no such {override.key_or_group}; known: {', '.join(options)}{suggest(option, options)}"
        )


def _leaves(key: str, value: Any) -> dict[str, Any]:
    """Dotted fields and their values: a={b: 1, c: {d: 2}} sets a.b and a.c.d."""
    if not isinstance(value, dict):
        return {key: value}
    return {leaf: at for name, inner in value.items() for leaf, at in _leaves(f"{key}.{name}", inner).items()}


def _check_field(text: str, key: str, known: list[str], groups: dict[str, dict[str, str]], policy: str) -> None:
    group, _, name = key.partition(".")
    if name == "name" and group in groups:
        raise ValueError(f"{text}: a {group} is chosen with {group}=NAME; known: {', '.join(groups[group])}")
    if group == "policy" and name:
        _check_policy_field(text, name, policy)
    elif inner := [name for name in known if name.startswith(f"{key}.")]:
        raise ValueError(f"{text}: {key} is a section; set its fields, as {inner[0]}=...{suggest(key, groups)}")
    elif key not in known:
        near = suggest(key, [*known, *groups])
        raise ValueError(f"{text}: there is no field {key}{near or '; --help lists all fields'}")


def _check_policy_field(text: str, name: str, policy: str) -> None:
    known = POLICY_CONFIGS[policy].model_fields
    if name not in known:
        parameters = [parameter for parameter in known if parameter != "name"]
        owners = [other for other, section in POLICY_CONFIGS.items() if name in section.model_fields]
        near = f"; policy={owners[0]} has it" if owners else suggest(name, parameters)
        raise ValueError(
            f"{text}: policy={policy} has no such parameter; known: {', '.join(parameters) or 'none'}{near}"
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
    try:
        return OverridesParser.create().parse_overrides([text])[0]
    except HydraException as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(
            f"{text}: not understood ({reason}); quote special characters, as in '{key}=\"{value}\"'"
        ) from None
