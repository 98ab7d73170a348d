"""A run whose files are damaged, a bit flipped or the end cut off: what reads them, and what it says."""

from __future__ import annotations

import json
import random
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import BadImage, Splits
from dpl_ray.data.splits.bad_images import read_bad
from dpl_ray.jobs.phases import train_phases
from dpl_ray.runs.folder import RunFolder, check_run, run_storage
from dpl_ray.runs.splits import read_splits
from dpl_ray.tracking.journal import Journal
from dpl_ray.training.checkpoint import list_checkpoints
from dpl_ray.training.checkpoint_folder import load_config_and_info
from dpl_ray.training.distributed import Workers
from tests.builders import tiny_config, tiny_splits
from tests.recordings import start_entry

LONGEST = 600  # characters of what is said


def make_run(folder: Path) -> tuple[Config, Splits]:
    """A run of 6 steps with a checkpoint every 3, and every file that a run may have and that is ever read."""
    train = {"num_steps": 6, "log_every": 2, "checkpoint_every": 3, "baseline": False, "curve_images": 0}
    config = tiny_config(train=train, run={"storage_path": str(folder), "name": "first"})
    splits = tiny_splits()
    splits = Splits(**vars(splits) | {"bad": (BadImage("a, b.png", "truncated"),)})
    run = RunFolder(run_storage(config), config, splits)
    journal = Journal(run.storage)
    journal.unsent = [start_entry("http://host", folder)]
    journal.save()
    run.finish(train_phases(config, splits, run.storage, Workers(), lambda _: None), splits.class_names, "It helped")
    return config, splits


def read_run(config: Config, splits: Splits) -> dict[str, Any]:
    """All that is read of a run when it goes on, or is used."""
    check_run(config)
    run = RunFolder(run_storage(config), config, splits)
    known = read_splits(run.storage)
    newest = list_checkpoints(run.storage)[-1]
    journal = Journal(run.storage)
    return {
        "info": run.info,
        "history": run.history,
        "splits": known and [(split.ids.tolist(), split.pixels.tolist()) for split in known.values()],
        "bad": read_bad(run.storage),
        "journal": (journal.uri, journal.run_id, journal.unsent, journal.told_until),
        "checkpoint": newest.name,
        "model": load_config_and_info(newest),
    }


def check_damages(folder: Path, number: int, seed: int) -> Counter[str]:
    """Damage the files of a run so many times, one at a time, and read it.

    Returns:
        How often a damage was named by an error, told by a warning, or changed nothing of what is read.

    Raises:
        AssertionError: something else came of it.
    """
    config, splits = make_run(folder)
    place = folder / "first"
    whole = {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
    expected, before = read_run(config, splits), {"checkpoint": "step-00000003"}
    files = [path for path in whole if path.parent.name != before["checkpoint"]]
    draw, counts = random.Random(seed), Counter[str]()
    for turn in range(number):
        path = files[turn % len(files)]
        data, at = whole[path], draw.randrange(len(whole[path]))
        if draw.random() < 0.75:
            bit = draw.randrange(8)
            what, damaged = f"bit {bit} of byte {at}", data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
        else:
            what, damaged = f"cut to {at} bytes", data[:at]
        path.write_bytes(damaged)
        counts[_outcome(f"{path.relative_to(place)}, {what}", path, config, splits, expected, before)] += 1
        for each in place.rglob("*"):
            if each.is_file() and each not in whole:
                each.unlink()
        for each, content in whole.items():
            if not each.exists() or each.read_bytes() != content:
                each.write_bytes(content)
    return counts


def _outcome(
    what: str, path: Path, config: Config, splits: Splits, expected: dict[str, Any], before: dict[str, Any]
) -> str:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = read_run(config, splits)
        except ValueError as error:
            text = str(error)
            assert path.name in text, (what, text)
            assert "\n" not in text, (what, text)
            assert len(text) <= LONGEST, (what, text)
            assert any(word in text for word in ("remove", "copy")), (what, text)
            return "named"
    texts = [str(each.message) for each in told]
    if path.name == "bad_images.csv":  # a list for people, without a checksum: a letter of it may be another one
        found["bad"], texts = expected["bad"], []
    if not texts:
        assert _plain(found) == _plain(expected), what
        return "harmless"
    assert any(path.name in text for text in texts), (what, texts)
    if path.parent.name.startswith("step-"):
        assert found["checkpoint"] == before["checkpoint"], what
    else:
        assert all(row in expected["history"] for row in found["history"]), what
    return "told"


def _plain(found: dict[str, Any]) -> str:
    return json.dumps(found, sort_keys=True, default=str)
