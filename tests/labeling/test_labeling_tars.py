"""A pool of tars is labelled as the same images in parquet files are, and its labels are trained on and explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpl_ray import explain
from dpl_ray.data.formats import tar
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.labeling.blocks import BlockLabeler
from tests.builders import tiny_config
from tests.data.test_tar import pack
from tests.labeling.jobs import label, make_checkpoint, parts, png, rows, write_images, write_parquet


def test_the_labels_are_those_of_parquet_and_an_interrupted_labelling_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint(tmp_path / "run")
    for number, levels in enumerate((range(11), range(11, 14))):
        write_parquet(tmp_path / "parquet" / f"{number}.parquet", levels)
        content = pack((f"a/{level}.png", png(level)) for level in levels)
        (tmp_path / "tars").mkdir(exist_ok=True)
        (tmp_path / "tars" / f"{number}.tar").write_bytes(content[:-1000] if number else content)
    # Two parts of the first tar, then the command is interrupted.
    write, written = BlockLabeler.write, list[int]()

    def stopping(self: BlockLabeler, block: object) -> object:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(block.number)  # type: ignore[attr-defined]
        return write(self, block)  # type: ignore[arg-type]

    monkeypatch.setattr(BlockLabeler, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        label(checkpoint, tmp_path / "tars", tmp_path / "out")
    monkeypatch.setattr(BlockLabeler, "write", write)
    before = parts(tmp_path / "out")
    tar._recent.clear()  # as in another process
    with monkeypatch.context() as patch:
        patch.setattr(tar, "_make", None)  # the indexes are there
        result = label(checkpoint, tmp_path / "tars", tmp_path / "out")
    assert parts(tmp_path / "out").items() >= before.items()
    assert (result.num_rows, result.unreadable) == (14, {})
    label(checkpoint, tmp_path / "parquet", tmp_path / "expected")
    found, expected = rows(tmp_path / "out"), rows(tmp_path / "expected")
    assert list(found) == [f"{tmp_path}/tars/{int(level > 10)}.tar:a/{level}.png" for level in range(14)]
    for mine, theirs in zip(found.values(), expected.values(), strict=True):
        assert mine | {"sample_id": ""} == theirs | {"sample_id": ""}
    explained = [explain(checkpoint, f"{tmp_path}/{name}") for name in ("tars/0.tar:a/7.png", "parquet/0.parquet:7")]
    assert explained[0].probs == explained[1].probs
    for wrong, right in (("0.tar:a/99.png", "the file has 11 rows; give one of its images"), ("0.tar", "name a row")):
        with pytest.raises(ValueError, match=right):
            explain(checkpoint, f"{tmp_path}/tars/{wrong}")


def test_labels_of_tars_are_trained_on(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "run")
    (tmp_path / "pool.tar").write_bytes(pack((f"{level}.png", png(level)) for level in range(60)))
    label(checkpoint, tmp_path / "pool.tar", tmp_path / "out", rows_per_part=64)
    selected = {name: row for name, row in rows(tmp_path / "out").items() if row["selected"]}
    assert selected
    for number, name in enumerate(("ant", "bee", "cat")):
        write_images(tmp_path / "train" / name, range(100 + 10 * number, 110 + 10 * number))
    fields = {"train": str(tmp_path / "train"), "labels": str(tmp_path / "out"), "labels_per_class": 4}
    splits = load_splits(tiny_config(data={"name": "image_folder", "image_size": 8} | fields).data, seed=0)
    ids = splits.labeled.ids.tolist()
    chosen = [name for name in ids if name in selected]
    assert splits.num_pseudo_labeled == len(chosen) > 4
    targets = splits.labeled.targets[[ids.index(name) for name in chosen]].tolist()
    assert targets == [selected[name]["pseudo_label"] for name in chosen]
    assert sorted([*splits.unlabeled.ids, *chosen]) == sorted(f"{tmp_path}/pool.tar:{level}.png" for level in range(60))
