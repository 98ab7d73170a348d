"""From `conf/` and command-line overrides to a validated `Config`: Hydra composes, pydantic checks.

Every mistake is one `ValueError` that names the field, the value and what would be right.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, ValidationError, create_model

from dpl_ray.config import Config, describe_fields, parse_config, suggest

CONF_FOLDER = Path(__file__).resolve().parent.parent / "conf"


def load_config(overrides: Sequence[str] = ()) -> Config:
    """The configuration that `python -m pipelines.train OVERRIDES` runs with.

    Args:
        overrides: as on the command line: `["data=cifar10", "policy=fixmatch", "train.num_steps=500"]`.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    _check_overrides(overrides)
    ConfigStore.instance().store(name="schema", node=Config().model_dump(mode="json"))
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_FOLDER), version_base="1.3"):
            tree: Any = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ValueError(f"{' '.join(overrides)}: {first_line}") from None
    config = parse_config(tree)
    check_policy(config.policy)
    return config


def list_groups() -> dict[str, dict[str, str]]:
    """Group -> option -> the comment that its YAML file opens with."""
    groups: dict[str, dict[str, str]] = {}
    for path in sorted(CONF_FOLDER.glob("*/*.yaml")):
        comments = [line for line in path.read_text().splitlines() if line.startswith("#") and "@package" not in line]
        groups.setdefault(path.parent.name, {})[path.stem] = comments[0].lstrip("# ") if comments else ""
    return groups


def describe_policies() -> dict[str, list[tuple[str, str, str, str]]]:
    """Policy -> rows (field, type, default, meaning) of its own parameters."""
    from dpl_ray.algorithm.policies import POLICIES

    return {name: [_policy_row(*item) for item in _parameters(policy).items()] for name, policy in POLICIES.items()}


def check_policy(parameters: dict[str, Any]) -> None:
    """`ValueError` unless the policy exists and its parameters have its types and bounds."""
    # Imported here: the mistakes that do not need torch are answered before it is loaded.
    from dpl_ray.algorithm.policies import POLICIES, build_policy

    name = parameters["name"]
    if name not in POLICIES:
        raise ValueError(
            f"policy.name={name}: there is no such policy; known: {', '.join(POLICIES)}{suggest(name, POLICIES)}"
        )
    known = _parameters(POLICIES[name])
    for key, value in parameters.items():
        if key != "name" and key not in known:
            raise ValueError(
                f"policy.{key}={value}: {name} has no such parameter; known: {', '.join(known) or 'none'}{suggest(key, known)}"
            )
    fields: dict[str, Any] = {key: (get_args(kind)[0], default) for key, (kind, default) in known.items()}
    model = create_model(name, __config__=ConfigDict(strict=False), **fields)
    try:
        # The model gives each value the type of its annotation (`1` for a float, say) or says why it cannot.
        model.model_validate({key: value for key, value in parameters.items() if key != "name"})
        build_policy(parameters, num_features=1, num_classes=2)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"policy.{first['loc'][0]}={first['input']}: {first['msg'].replace('Input should be', 'must be')}"
        ) from None
    except ValueError as error:
        raise ValueError(f"policy.{error}") from None


def _parameters(policy: type) -> dict[str, tuple[Any, Any]]:
    """Keyword -> (annotation, default) of a policy's own parameters."""
    hints = get_type_hints(policy.__init__, include_extras=True)
    signature = inspect.signature(policy.__init__).parameters.values()
    return {p.name: (hints[p.name], p.default) for p in signature if p.kind is p.KEYWORD_ONLY}


def _policy_row(name: str, parameter: tuple[Any, Any]) -> tuple[str, str, str, str]:
    annotation, default = parameter
    assert get_origin(annotation) is Annotated, f"{name} must be Annotated[type, meaning]"
    kind, meaning = get_args(annotation)
    return f"policy.{name}", kind.__name__, yaml.safe_dump(default).removesuffix("...\n").strip(), meaning


def _check_overrides(overrides: Sequence[str]) -> None:
    groups = list_groups()
    policy = "dpl"
    for text in overrides:
        override = _parse_override(text)
        key = override.key_or_group
        if override.is_sweep_override():
            raise ValueError(f"{text}: one value a run; lists are written {key}=[a,b]")
        if key == "policy":
            policy = str(override.value())
    for text in overrides:
        override = _parse_override(text)
        key, value = override.key_or_group, override.value()
        if key in groups:
            if str(value) not in groups[key]:
                raise ValueError(
                    f"{text}: there is no such {key}; known: {', '.join(groups[key])}{suggest(str(value), groups[key])}"
                )
            continue
        known = [row[0] for row in describe_fields()]
        if key.startswith("policy."):
            known = [
                f"policy.{name}" for name in yaml.safe_load((CONF_FOLDER / "policy" / f"{policy}.yaml").read_text())
            ]
        if key not in known and not any(name.startswith(f"{key}.") for name in known):
            near = suggest(key, [*known, *groups])
            raise ValueError(f"{text}: there is no field {key}{near or '; --help lists all fields'}")


def _parse_override(text: str) -> Override:
    if re.match(r"--?\w", text):
        raise ValueError(f"{text}: there is no such option; fields are set as field=value, --help lists them")
    try:
        return OverridesParser.create().parse_overrides([text])[0]
    except HydraException as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        hint = "write field=value" if "=" not in text else "quote special characters, as in 'field=\"a b\"'"
        raise ValueError(f"{text}: not understood ({reason}); {hint}") from None
