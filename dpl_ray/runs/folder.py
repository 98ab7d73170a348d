"""The folder of a run: what is in it, and whether a run of the same name may go on.

<run.storage_path>/<run.name>/
  config.yaml      resolved configuration
  run.json         data fingerprint, and what a finished run has measured
  splits.parquet   which images it is trained on, and which it holds out (dpl_ray/runs/splits.py)
  history.jsonl    every record of metrics
  bad_images.csv   images that could not be read, with the reason
  step-N/          checkpoints        baseline/step-N/  those of the supervised baseline
  report.html      the page of the run, from its first record on
  thresholds.json  class-wise thresholds over time
  tracking*.json   what MLflow knows (dpl_ray/tracking/journal.py)         model/   the last teacher in MLflow's format
  .lock            held by the command that is at work here (dpl_ray/store/lock.py)
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpl_ray.config.policies import POLICY_CONFIGS
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.data.splits.bad_images import most_bad, read_bad, write_bad
from dpl_ray.runs.kept_config import read_kept, write_kept
from dpl_ray.runs.splits import SPLITS_FILE, write_splits
from dpl_ray.store.file_systems import one_line
from dpl_ray.store.history import HISTORY_FILE, read_history
from dpl_ray.store.records import damaged, from_lines, num_damaged, read_tree, to_lines, write_json
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint_folder import drop_damaged, history_bytes

if TYPE_CHECKING:
    from dpl_ray.training.records import Outcome

RUN_FILE = "run.json"
MODEL_FOLDER = "model"  # the final model in MLflow's format
COMPARISON_FILE = "comparison.json"  # of a comparison's folder, which is no run's
SELF_TRAINING_FILE = "self_train.json"  # of the folder of a self-training's rounds
SEARCH_FILE = "search.json"  # of the folder of a search's trials
#: File -> what a folder is, that holds it.
KINDS = {
    RUN_FILE: "a training run",
    COMPARISON_FILE: "a comparison",
    SELF_TRAINING_FILE: "a self-training",
    SEARCH_FILE: "a search",
}
#: Sections that may differ when a run goes on: they change where and how, not what is computed.
FREE_SECTIONS = ("scale", "run", "tracking", "registry")
FREE_FIELDS = (
    "train.compile",  # it rounds otherwise, as another device does
    "train.deterministic",
    "train.keep_checkpoints",
    "train.log_every",
    "train.checkpoint_every",
    "train.checkpoint_seconds",
    "data.root",
    "data.download",
    "data.max_bad_fraction",
    "data.allow_overlap",  # the fingerprint says whether it is the same data
    "data.allow_outside",
    "data.allowed_hosts",
    "data.pool.memory_share",
    "data.pool.windows_ahead",
)
FREE = (*FREE_SECTIONS, *FREE_FIELDS)


def bound_tree(config: Config, free: Collection[str] = FREE) -> dict[str, Any]:
    """The configuration without the sections and dotted fields that may differ when something of it goes on."""
    tree = _with_interpolation(config.model_dump(mode="json"))
    for field in free:
        *path, name = field.split(".")
        section = tree
        for part in path:
            section = section[part]
        del section[name]
    return tree


def _with_interpolation(tree: dict[str, Any]) -> dict[str, Any]:
    """A configuration that names the default, as older files do; in newer ones it is null."""
    if "data" not in tree:
        return tree
    return tree | {"data": tree["data"] | {"interpolation": tree["data"].get("interpolation") or "bilinear"}}


def run_of(checkpoint: Storage) -> Storage:
    """The folder of the run that a checkpoint is of, also of one of its supervised baseline."""
    folder = checkpoint.parent
    return folder.parent if folder.name == "baseline" and not (folder / RUN_FILE).exists() else folder


def study_name(config: Config, kind: str, tree: dict[str, Any]) -> str:
    """run.name, or a name that the same command has again and another one (`tree`) has not, so that it goes on."""
    if config.run.name:
        return config.run.name
    digest = hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=4).hexdigest()
    return f"{config.data.name}-{kind}-{digest}"


def default_tree(policy: str) -> dict[str, Any]:
    """Every field at its default, as an older file is read that lacks it."""
    known = POLICY_CONFIGS.get(policy)
    return Config().model_dump(mode="json") | {"policy": known().model_dump() if known else {}}


def writable_folder(path: str, name: str | None) -> Storage:
    """The folder of a run, which may not be there yet; writes nothing.

    Raises:
        ValueError: run.storage_path cannot be written.
    """
    try:
        folder = Storage(path) / name if name else Storage(path)
        folder.check_writable()
    except (OSError, ValueError, pa.ArrowException) as error:
        is_bucket = "://" in path
        right = "a bucket that answers, with credentials and region," if is_bucket else "a folder"
        example = "" if is_bucket else ", as run.storage_path=~/runs"
        raise ValueError(
            f"run.storage_path={path}: cannot be written ({one_line(error)}); give {right} that you may write to"
            + example
        ) from None
    return folder


def check_run(config: Config) -> dict[str, Any]:
    """What can be told before the data are read: whether the run has a place, and is not another one. Writes nothing.

    Returns:
        The configuration that a run has which goes on; empty where it is new.

    Raises:
        ValueError: run.storage_path cannot be written, or something else of this name exists, or a run with another
            configuration.
    """
    name = config.run.name
    folder = writable_folder(config.run.storage_path, name)
    if name:
        check_kind(folder, RUN_FILE)
    old = read_kept(folder) if name else {}
    if old:
        check_same(name, "run", old, config.model_dump(mode="json"))
    return old


def check_kind(folder: Storage, file: str) -> None:
    """Refuse the folder of another kind than the one that holds `file`."""
    for other, kind in KINDS.items():
        if other != file and (folder / other).exists():
            raise ValueError(f"run.name={folder.name}: {kind} has this name; take another run.name")


def check_same(
    name: str | None,
    what: str,
    old: dict[str, Any],
    new: dict[str, Any],
    free: Collection[str] = FREE,
    own: dict[str, Any] | None = None,
) -> None:
    """`ValueError` naming the first field that is another one now, of a run or study (`what`) that is to go on.

    Args:
        old: of a configuration, and perhaps more. A field that it lacks has its default: it is of an older version.
        free: sections and fields that may differ.
        own: defaults of a study's own fields.
    """
    defaults = default_tree(old.get("policy", {}).get("name", "")) | (own or {})
    old, new = _with_interpolation(old), _with_interpolation(new)
    found = sorted(differences(old, new, free, defaults), key=lambda difference: difference[0])
    if found:
        field, before, now = found[0]
        more = f" (and {len(found) - 1} more fields)" if len(found) > 1 else ""
        raise ValueError(
            f"run.name={name}: this {what} exists with {field}={before}, now it is {now}{more}; "
            "take another run.name, or the same values to go on"
        )


class RunFolder:
    """Opens or makes the folder of a run and keeps its records."""

    def __init__(self, storage: Storage, config: Config, splits: Splits) -> None:
        """
        Args:
            storage: the folder, as `run_storage` has it.
            config: as `check_run` has let it through.

        Raises:
            ValueError: a run of this name exists with other data.
        """
        self.storage, self.name = storage, storage.name
        self.info: dict[str, Any] = {
            "fingerprint": splits.fingerprint(),
            "num_pseudo_labeled": splits.num_pseudo_labeled,
            "held_out": {name: _held_out(getattr(splits, name)) for name in ("test", "validation")},
            "result": None,
        }
        self.resumed = (self.storage / RUN_FILE).exists()
        if self.resumed:
            self._load()
        if not isinstance(splits.unlabeled, ImageSet):
            self._check_bad(config.data.max_bad_fraction, splits)
        write_kept(self.storage, config)
        self.save_info()
        if not (self.storage / SPLITS_FILE).exists():  # also that of a run of an older version, which kept none
            write_splits(self.storage, splits)
        if splits.bad:
            bad = {image.id: image.reason for image in splits.bad}
            write_bad(self.storage, read_bad(self.storage) | bad)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows that there are now: the process that trains adds to them."""
        return list(read_history(self.storage))

    def _load(self) -> None:
        file = self.storage / RUN_FILE
        remedy = "remove it: the same command goes on from the newest checkpoint, and writes it anew"
        info = read_tree(file, remedy)
        if not isinstance(info.get("fingerprint"), str):
            raise damaged(file, "it has no fingerprint", remedy)
        if info["fingerprint"] != self.info["fingerprint"]:
            raise ValueError(
                f"run.name={self.name}: this run exists with other data (the images or labels have changed since); "
                "take another run.name"
            )
        self.info |= info
        places = (self.storage, self.storage / "baseline")
        for told in chain.from_iterable(map(drop_damaged, places)):
            warnings.warn(f"{told}; the run goes on from what is before it", stacklevel=4)
        self._check_history(max(map(history_bytes, places)))

    def _check_history(self, least: int) -> None:
        """Say what is missing in history.jsonl, which goes on without it."""
        file = self.storage / HISTORY_FILE
        written = file.read_from(0)
        if len(written) < least:
            lost = f"{file}: has {len(written)} bytes, and had {least} at the newest checkpoint"
            warnings.warn(f"{lost}; rows of it are lost", stacklevel=5)
        if number := num_damaged(written):
            warnings.warn(f"{file}: {number} line(s) damaged or half written, and left out", stacklevel=5)
            file.write(to_lines(from_lines(written.split(b"\n"))))

    def _check_bad(self, limit: float, splits: Splits) -> None:
        """Refuse a run that has stopped for its unreadable images already: it would meet them again later."""
        of_the_pool = read_bad(self.storage).keys() - {image.id for image in splits.bad}
        number, pool_size = len(of_the_pool), len(splits.unlabeled)
        if number > most_bad(limit, pool_size) and not self.finished:
            raise ValueError(
                f"data.max_bad_fraction={limit}: run.name={self.name} has found {number} images that cannot be "
                f"read, of a pool of {pool_size} (bad_images.csv); raise the limit to go on, or repair or remove them "
                "and take another run.name"
            )

    def last_metrics(self, phase: str) -> dict[str, float]:
        """The newest value of every metric of a phase, thresholds aside."""
        return last_metrics(row for row in self.history if row["phase"] == phase)

    def finish(
        self,
        outcomes: list[Outcome],
        class_names: tuple[str, ...],
        verdict: str | None = None,
        health: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Keep what a finished run has measured, so that started again it has nothing to train.

        Args:
            verdict: whether the pool has helped, in a sentence.
            health: what is wrong with the run.
        """
        # Phases that were finished before have trained nothing this time: what they measured is in the history.
        metrics = [self.last_metrics(outcome.phase) | outcome.metrics for outcome in outcomes]
        main = outcomes[-1]
        self.info["result"] = {
            "metrics": metrics[-1],
            "baseline": metrics[0] if len(outcomes) > 1 else None,
            "thresholds": {
                name: dict(zip(class_names, values, strict=True)) for name, values in main.thresholds.items()
            },
            "checkpoint": Storage(main.checkpoint).name,
            "verdict": verdict,
            "health": health,
        }
        self.save_info()

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train: the result is known, and its checkpoint still there."""
        result = self.info["result"]
        return result is not None and (self.storage / result["checkpoint"] / "manifest.json").exists()

    def save_info(self) -> None:
        write_json(self.storage / RUN_FILE, self.info)


def largest_class(targets: NDArray[np.int64]) -> int:
    """How many of (N,) targets are of the most frequent class."""
    return int(np.bincount(targets, minlength=1).max())


def _held_out(split: ImageSet) -> list[int]:
    """Number of its images, and of those of its largest class."""
    return [len(split), largest_class(split.targets)]


def last_metrics(history: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The newest value of every metric of these rows, thresholds aside."""
    metrics: dict[str, float] = {}
    for row in history:
        metrics |= {key: value for key, value in row["metrics"].items() if not key.startswith("threshold/")}
    return metrics


def run_storage(config: Config) -> Storage:
    """The folder of a run; of one without a name a new one, called by data, policy and time, and made at once."""
    root = Storage(config.run.storage_path)
    if config.run.name:
        return root / config.run.name
    name = f"{config.data.name}-{config.policy.name}-{datetime.now():%Y%m%d-%H%M%S}"
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    # With a number where one has started in this second.
    return next(folder for folder in (root / name for name in names) if folder.make())


def differences(
    old: dict[str, Any], new: dict[str, Any], free: Collection[str], defaults: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    """(field, before, now) of the fields that are not free and differ.

    Args:
        defaults: of the fields that `old` lacks, and, as in `old`, of sections.
    """
    found: list[tuple[str, Any, Any]] = []
    for key in old.keys() | new.keys():
        field, default = prefix + key, defaults.get(key)
        before, now = old.get(key, default), new.get(key)
        if field in free or before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            found += differences(before, now, free, default if isinstance(default, dict) else {}, f"{field}.")
        else:
            found.append((field, before, now))
    return found
