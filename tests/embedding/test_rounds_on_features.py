"""Pseudo-labels of a pool of features are trained on, and rounds of self-training on features."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
from rich.console import Console

from dpl_ray import self_train
from dpl_ray.config.compose import load_config
from dpl_ray.config.schema import Config
from dpl_ray.studies.self_training.config import load_self_training
from tests.embedding.jobs import CLASSES, overrides, pool_of, run, splits_of
from tests.embedding.test_streamed import STREAM
from tests.labeling.outputs import write_labels

MODES = ("data.pool.mode=memory", "data.pool.mode=stream")


def labels_of(images: Path, output: Path, number: int = 8, classes: tuple[str, ...] = CLASSES) -> str:
    """An output that has selected the first images of the pool, of both classes in turn, and a labelled one."""
    pool = sorted(map(str, (images / "rest").glob("*.png")))
    rows: list[Any] = [(name, place % 2, 0.9, place < number) for place, name in enumerate(pool)]
    rows.append((str(images / "train" / "ant" / "train00.png"), 1, 0.9, True))
    write_labels(output, rows, class_names=classes, pool=images / "rest")
    return f"data.labels={output}"


def test_selected_features_are_trained_on_with_their_pseudo_labels(
    embedded: Path, images: Path, tmp_path: Path
) -> None:
    """In memory as streamed; they leave the pool, and a true label wins."""
    labels = labels_of(images, tmp_path / "labels")
    memory, stream = (splits_of(embedded, labels, mode) for mode in MODES)
    before = splits_of(embedded)
    for splits in (memory, stream):
        assert (len(splits.labeled), splits.num_pseudo_labeled, len(splits.unlabeled)) == (20, 8, 32)
        assert np.array_equal(splits.labeled.ids[:12], before.labeled.ids)
        assert np.array_equal(splits.labeled.targets, [*before.labeled.targets, *([0, 1] * 4)])
    for name in ("ids", "images", "targets"):
        assert np.array_equal(getattr(memory.labeled, name), getattr(stream.labeled, name))
    assert pool_of(memory) == pool_of(stream)
    selected = {str(name): image.tobytes() for name, image in zip(*_last(memory.labeled, 8), strict=True)}
    assert pool_of(memory) | selected == pool_of(before)
    fewer = splits_of(embedded, labels, "data.labels_per_class=2", "data.num_labels_per_class=2")
    assert (len(fewer.labeled), fewer.num_pseudo_labeled) == (2 * 2 + 4, 4)


def _last(part: Any, number: int) -> tuple[Any, Any]:
    return part.ids[-number:], part.images[-number:]


@pytest.mark.parametrize("mode", MODES)
def test_labels_that_do_not_fit_the_features_are_refused(
    embedded: Path, images: Path, tmp_path: Path, mode: str
) -> None:
    others = labels_of(images, tmp_path / "others", classes=("ant", "cat"))
    with pytest.raises(ValueError, match=r"^data\.labels=.*: its classes are ant, cat, but those of data\.train"):
        splits_of(embedded, others, mode)
    labels = labels_of(images, tmp_path / "labels")
    with pytest.raises(ValueError, match=r"^data\.labels=.*: 8 of its 9 selected samples are not in data\.unlabeled="):
        splits_of(embedded, labels, mode, f"data.unlabeled={embedded / 'test'}", "data.test=null")
    everything = labels_of(images, tmp_path / "all", number=40)
    with pytest.raises(ValueError, match=r"^data\.labels=.*: the whole pool is trained on with pseudo-labels"):
        splits_of(embedded, everything, mode)
    with pytest.raises(ValueError, match=r"^data\.train is missing: data=features needs .*dpl-ray embed labelled=true"):
        load_config(["data=features", labels])


def loop(embedded: Path, storage: Path, *more: str) -> tuple[Config, Any]:
    fields = ["train.baseline=false", "optim.learning_rate=0.01", f"run.storage_path={storage}", "run.name=loop"]
    return load_self_training([*overrides(embedded, *fields), "min_change=0", "force=true", "rounds=1", *more])


@pytest.mark.parametrize("more", [[], STREAM])
def test_rounds_train_and_label_on_features(
    weights: str, embedded: Path, images: Path, tmp_path: Path, more: list[str]
) -> None:
    (tmp_path / "pool").mkdir()
    for path in sorted((images / "rest").glob("*.png")):
        kind = tmp_path / "pool" / CLASSES[int(path.stem[-1]) % 2]
        kind.mkdir(exist_ok=True)
        (kind / path.name).write_bytes(path.read_bytes())
    run(weights, tmp_path / "pool", tmp_path / "features", "views=2", "labelled=true")
    given = (f"data.unlabeled={tmp_path / 'features'}", "data.labels_per_class=5", *more)
    result = self_train(*loop(embedded, tmp_path, *given), console=Console(quiet=True))
    assert [each.number for each in result.rounds] == [0, 1]
    first, second = result.rounds
    assert 0 < second.num_pseudo_labeled <= 10
    assert (first.num_samples, second.num_samples) == (40, 40)
    for each in result.rounds:
        found = ds.dataset(each.labels).to_table().to_pylist()
        right = [Path(row["sample_id"]).parent.name == row["class_name"] for row in found]
        assert each.metrics["round/pool_accuracy"] == pytest.approx(sum(right) / 40)
    assert len(Path(result.csv).read_text().splitlines()) == 3


def test_a_loop_that_cannot_label_its_features_is_refused_before_it_trains(
    weights: str, embedded: Path, images: Path, tmp_path: Path
) -> None:
    def refused(message: str, *more: str) -> None:
        with pytest.raises(ValueError, match=message):
            self_train(*loop(embedded, tmp_path, *more), console=Console(quiet=True))
        assert not list((tmp_path / "loop").glob("round-*"))

    run(weights, images / "rest", tmp_path / "larger", "image_size=32")
    refused(r"^data\.unlabeled=.*: is no folder of features", f"data.unlabeled={images / 'rest'}")
    refused(r"^data\.unlabeled=.*another network .* those of data\.train", f"data.unlabeled={tmp_path / 'larger'}")
    shutil.copytree(embedded / "rest", tmp_path / "again")
    twice = f"data.unlabeled=[{embedded / 'rest'},{tmp_path / 'again'}]"
    refused(r"^data\.unlabeled=.*: 40 images are there more than once", twice)
