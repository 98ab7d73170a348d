"""What outputs add up to, part by part, and what has changed since the one before."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpl_ray.config.schema import DataConfig
from dpl_ray.studies.self_training.counts import LabelCounts, count_labels
from tests.labeling.outputs import write_labels

CLASSES = ("ant", "bee", "cat")


def write(folder: Path, labels: list[int | None], selected: list[bool], *, name: str, ids: list[str]) -> str:
    rows = [
        (sample_id, label, None if label is None else 0.5, chosen)
        for sample_id, label, chosen in zip(ids, labels, selected, strict=True)
    ]
    return str(write_labels(folder / name, rows, class_names=CLASSES, pool=folder, per_part=3))


def pool(folder: Path, labels: list[int | str | None] | None) -> tuple[DataConfig, list[str]]:
    columns = {"image": [b""] * 8} | ({} if labels is None else {"label": labels})
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "a.parquet")
    data = DataConfig(name="parquet", train="x", unlabeled=str(folder))
    return data, [f"{folder / 'a.parquet'}:{row}" for row in range(8)]


def test_counts_of_one_output(tmp_path: Path) -> None:
    data, ids = pool(tmp_path / "pool", [0, 1, 2, 0, -1, None, 2, 1])
    labels = [0, 1, 1, None, 2, 2, 2, 0]
    selected = [True, True, True, False, True, False, False, False]
    output = write(tmp_path, labels, selected, name="labels", ids=ids)
    counts = count_labels(output, data, CLASSES)
    assert counts == LabelCounts(
        num_samples=8,
        num_readable=7,
        num_selected=4,
        num_changed=0,
        num_known=5,
        num_correct=3,
        num_selected_known=3,
        num_selected_correct=2,
    )


@pytest.mark.parametrize("true_labels", [None, ["ant", "bee", "cat", "x", "ant", "ant", "ant", "ant"]])
def test_true_labels_by_name_or_none(tmp_path: Path, true_labels: list[int | str | None] | None) -> None:
    data, ids = pool(tmp_path / "pool", true_labels)
    output = write(tmp_path, [0] * 8, [True] * 8, name="labels", ids=ids)
    counts = count_labels(output, data, CLASSES)
    assert (counts.num_known, counts.num_correct) == ((0, 0) if true_labels is None else (7, 5))
    without = count_labels(output, data.model_copy(update={"label_column": None}), CLASSES)
    assert (without.num_known, without.num_samples) == (0, 8)


def test_image_files_have_no_true_labels(tmp_path: Path) -> None:
    data, _ = pool(tmp_path / "pool", [0] * 8)
    ids = [str(tmp_path / "pool" / f"{number}.png") for number in range(8)]
    assert count_labels(write(tmp_path, [0] * 8, [True] * 8, name="labels", ids=ids), data, CLASSES).num_known == 0


def test_a_pool_file_that_is_gone_has_no_true_labels(tmp_path: Path) -> None:
    data, ids = pool(tmp_path / "pool", [0] * 8)
    (tmp_path / "pool" / "a.parquet").unlink()
    assert count_labels(write(tmp_path, [0] * 8, [True] * 8, name="labels", ids=ids), data, CLASSES).num_known == 0


def test_what_has_changed_since_the_output_before(tmp_path: Path) -> None:
    data, ids = pool(tmp_path / "pool", None)
    before = write(tmp_path, [0, 1, 2, 0, 1, None, 2, 0], [True] * 8, name="before", ids=ids)
    now = write(tmp_path, [0, 2, 2, None, 0, 1, 2, 0], [False] * 8, name="now", ids=ids)
    assert count_labels(now, data, CLASSES, before=now).num_changed == 0
    # 1 and 4 differ; 5 could not be read before; 3 cannot be read now, and does not count.
    assert count_labels(now, data, CLASSES, before=before).num_changed == 3


def test_a_pool_that_has_changed_is_refused(tmp_path: Path) -> None:
    data, ids = pool(tmp_path / "pool", None)
    message = r"data.unlabeled=.*: its files have changed between two rounds"
    before = write(tmp_path, [0] * 8, [True] * 8, name="before", ids=ids)
    for name, others in (("order", ids[::-1]), ("fewer", ids[:6])):
        now = write(tmp_path, [0] * len(others), [True] * len(others), name=name, ids=others)
        with pytest.raises(ValueError, match=message):
            count_labels(now, data, CLASSES, before=before)
