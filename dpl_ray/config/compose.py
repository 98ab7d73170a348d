"""From `conf/` and command-line overrides to a validated `Config`.

Groups, options and overrides are Hydra's; they are merged by OmegaConf, because Hydra's own composition goes through
globals of the process, which belong to the program that calls this. Every mistake is one `ValueError` that names the
field, the value and what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpl_ray.config.describe import option_tree
from dpl_ray.config.overrides import read_overrides
from dpl_ray.config.parse import parse_config, parse_policy
from dpl_ray.config.schema import Config
from dpl_ray.config.section import in_short
from dpl_ray.store.file_systems import one_line
from dpl_ray.store.records import from_yaml
from dpl_ray.store.storage import Storage

PATH_FIELDS = (
    "data.root", "data.train", "data.unlabeled", "data.test", "data.labels", "model.weights", "run.storage_path"
)  # fmt: skip


@in_short()
def load_config(overrides: Sequence[str] = (), start: Config | None = None, *, in_cells: bool = False) -> Config:
    """The configuration that `dpl-ray train OVERRIDES` runs with.

    Args:
        overrides: as on the command line: `["data=cifar10", "policy=fixmatch", "train.num_steps=500"]`. One of them may
            be `config=FILE`: a whole configuration as `to_yaml` writes it, which takes the place of conf/.
        start: whole configuration that the overrides change; None: that of conf/.
        in_cells: as `parse_config` has it.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    files = [text.partition("=")[2] for text in overrides if text.startswith("config=")]
    overrides = [text for text in overrides if not text.startswith("config=")]
    if len(files) > 1:
        raise ValueError(f"config={files[1]}: config={files[0]} is there already; one file is the whole configuration")
    if start and files:
        raise ValueError(f"config={files[0]}: a Config is given already, which is the whole configuration")
    if start and not overrides:
        return start
    given = _read_config(files[0]) if files else start
    options, fields = read_overrides(overrides, given)
    begin = given or Config(policy=parse_policy({"name": options["policy"]}))
    merged: Any = OmegaConf.create(begin.model_dump(mode="json"))
    try:
        for group, option in options.items() if given is None else ():
            merged.merge_with(option_tree(group, option))
        for field in fields:
            OmegaConf.update(merged, field.key_or_group, field.value(), merge=True)
        written: Any = OmegaConf.to_container(merged, resolve=False)
        for section, name in (path.split(".") for path in PATH_FIELDS):
            written[section][name] = _keep_variables(written[section][name])
        tree: Any = OmegaConf.to_container(OmegaConf.create(written), resolve=True)
    except OmegaConfBaseException as error:
        first_line = str(error).strip().splitlines()[0]
        raise ValueError(f"{getattr(error, 'full_key', None) or ' '.join(overrides)}: {first_line}") from None
    return parse_config(tree, in_cells=in_cells)


def _keep_variables(value: Any) -> Any:
    """A path, or a list of them, whose `${NAME}` are environment variables, and no fields of the configuration."""
    if isinstance(value, list):
        return [_keep_variables(each) for each in value]
    return re.sub(r"(?<!\\)\$\{(?=[A-Za-z_]\w*\})", r"\\${", value) if isinstance(value, str) else value


def _read_config(path: str) -> Config:
    """A whole configuration from a file.

    Raises:
        ValueError: it cannot be read, or is no configuration.
    """
    try:
        tree = from_yaml(Storage(path).read())
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"config={path}: cannot be read ({one_line(error)}); give a YAML file") from None
    if not isinstance(tree, dict):
        raise ValueError(f"config={path}: holds no configuration; give a YAML file as config.yaml of a run's folder")
    try:
        return parse_config(tree)
    except ValueError as error:
        raise ValueError(f"config={path}: {error}") from None
