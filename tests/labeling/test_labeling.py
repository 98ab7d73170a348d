"""Labelling a pool in this process: columns, books, refusals, and going on."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from dpl_ray.algorithm.pseudo_labels import entropy, pseudo_labels
from dpl_ray.commands import cli
from dpl_ray.config.schema import DataConfig
from dpl_ray.data.files.location import open_location
from dpl_ray.data.formats.rows import PoolFiles, list_pool
from dpl_ray.data.splits.pseudo_labels import read_pseudo_labels
from dpl_ray.exchange.exporting import export_labels
from dpl_ray.labeling.config import SMALL_POOL, LabelConfig, LabelScaleConfig
from dpl_ray.labeling.console import label_table
from dpl_ray.labeling.fill import TooManyBadError, count_workers
from dpl_ray.labeling.ledger import LedgerError
from dpl_ray.labeling.parts import CONFIDENCE_EDGES as EDGES
from dpl_ray.labeling.parts import SCHEMA, Counts
from dpl_ray.runs.splits import write_splits
from dpl_ray.store.records import read_tree, write_json
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint import load_classifier, load_policy
from tests.builders import replaced, tiny_splits
from tests.labeling.jobs import CLASSES, label, make_checkpoint, parts, picture, png, rows, summary, write_images
from tests.labeling.jobs import write_parquet as parquet


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Ten image files and two parquet files of 11 and 3 rows."""
    write_images(tmp_path / "pool", range(10))
    parquet(tmp_path / "pool" / "more" / "b.parquet", range(10, 21))
    parquet(tmp_path / "pool" / "more" / "c.parquet", range(21, 24))
    return tmp_path / "pool"


def test_every_sample_has_its_labels_once(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    result = label(checkpoint, pool, tmp_path / "out")
    found = rows(tmp_path / "out")
    b, c = pool / "more" / "b.parquet", pool / "more" / "c.parquet"
    ids = [str(pool / f"{number:04d}.png") for number in range(10)]
    ids += [f"{b}:{row}" for row in range(11)] + [f"{c}:{row}" for row in range(3)]
    assert set(found) == set(ids)
    model, policy = load_classifier(Storage(checkpoint))[0], load_policy(Storage(checkpoint))
    for number, sample_id in enumerate(ids):
        image = torch.tensor(list(picture(number).tobytes()), dtype=torch.uint8).view(1, 8, 8, 3).permute(0, 3, 1, 2)
        with torch.no_grad():
            pseudo = pseudo_labels(*model(image), policy.alignment(1.0))
            weight = float(policy.weights(pseudo))
        row = found[sample_id]
        assert row["pseudo_label"] == int(pseudo.labels)
        assert row["class_name"] == CLASSES[row["pseudo_label"]]
        assert row["confidence"] == pytest.approx(float(pseudo.confidence), abs=1e-5)
        assert row["entropy"] == pytest.approx(float(entropy(pseudo.probs)), abs=1e-4)
        assert row["weight"] == pytest.approx(weight, abs=1e-4)
        assert (row["selected"], row["error"]) == (row["weight"] > policy.min_weight, None)
    assert (result.num_rows, result.unreadable, result.bad) == (24, {}, None)
    assert result.num_selected == sum(row["selected"] for row in found.values())


def test_a_pool_may_have_several_places(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    """Which are the identity of the output, and the pool of a training with its labels."""
    places = (str(pool / "000[0-4].png"), str(pool / "more"), str(pool / "0004.png"))
    assert label(checkpoint, places, tmp_path / "out").num_rows == 5 + 14
    assert label(checkpoint, places, tmp_path / "out").num_rows == 5 + 14
    assert read_pseudo_labels(DataConfig(labels=str(tmp_path / "out"))).pool == places
    with pytest.raises(ValueError, match=r"^output=.*: was begun with pool=\[.*\], now it is .*/more; take another"):
        label(checkpoint, pool / "more", tmp_path / "out")
    with pytest.raises(ValueError, match=r"^output=.*: lies in the pool"):
        label(checkpoint, (str(pool / "0000.png"), str(tmp_path / "out")), tmp_path / "out" / "x")


def test_the_output_is_a_dataset_of_its_parts(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    label(checkpoint, pool, tmp_path / "out")
    assert ds.dataset(tmp_path / "out").count_rows() == 24
    for name in parts(tmp_path / "out"):
        assert pq.read_schema(tmp_path / "out" / name).equals(SCHEMA)
    kinds = {"part", "_ledger", "_report"}
    assert {path.name.split("-")[0] for path in (tmp_path / "out").iterdir()} == kinds


def seen(numbers: range) -> torch.Tensor:
    """(N, 3, SIZE, SIZE) uint8: the pictures of a pool."""
    return torch.stack([torch.from_numpy(np.array(picture(number))).permute(2, 0, 1) for number in numbers])


def train_on_foreign_images(checkpoint: str) -> None:
    """Let a policy that nothing has trained look at a pool and at labelled images."""
    model, policy = load_classifier(Storage(checkpoint))[0], load_policy(Storage(checkpoint))
    with torch.no_grad():
        features, _ = model(seen(range(24)))
    for _ in range(3):
        sums = policy.foreign_images.statistics(features, features[:6], torch.arange(6) % len(CLASSES))
        policy.foreign_images.update(sums, 0.5)
    replaced(Path(checkpoint), "policy.safetensors", safetensors.torch.save(policy.state_dict()))


@pytest.mark.rendered
@pytest.mark.parametrize("name", ["openmatch", "dpl"])
def test_what_is_said_of_foreign_images_is_written_counted_drawn_and_exported(
    name: str, pool: Path, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", {"name": name} | ({"open_set": True} if name == "dpl" else {}))
    if name == "dpl":
        train_on_foreign_images(checkpoint)
    result = label(checkpoint, pool, tmp_path / "out")
    found, told = rows(tmp_path / "out"), summary(tmp_path / "out")
    values = {name: row["foreign"] for name, row in found.items()}
    model, policy = load_classifier(Storage(checkpoint))[0], load_policy(Storage(checkpoint))
    with torch.no_grad():
        said = policy.foreign(pseudo_labels(*model(seen(range(10))), policy.alignment(1.0)))
    files = [values[str(pool / f"{number:04d}.png")] for number in range(10)]
    assert files == pytest.approx(said.tolist(), abs=1e-5)
    assert len(set(values.values())) > 5
    expected = [0] * 20
    for value in values.values():
        expected[min(19, int(value * 20))] += 1
    counted = told["histograms"]["foreign"]
    assert [a + b for a, b in zip(counted["selected"], counted["rejected"], strict=True)] == expected
    assert Path(result.figure).read_bytes().startswith(b"\x89PNG")
    exported = export_labels(
        labels=str(tmp_path / "out"), output=str(tmp_path / "csv"), format="csv", selected_only=False
    )
    with Path(exported.file).open(newline="") as file:
        assert {row["path"]: row["foreign"] for row in csv.DictReader(file)} == {
            name: f"{value:.4f}" for name, value in values.items()
        }


def test_counts_of_parts_that_say_nothing_of_foreign_images_are_read() -> None:
    older = {name: value for name, value in asdict(Counts.none(3)).items() if not name.startswith("foreign")}
    assert Counts(**older) == Counts.none(3)
    assert not Counts.none(3).knows_foreign


@pytest.mark.rendered
def test_the_summary_counts_what_the_parts_hold(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    (pool / "broken.png").write_bytes(png(1)[:60])
    (pool / "README").write_text("about this pool")
    (pool / "notes.txt").write_text("about this pool")
    result = label(checkpoint, pool, tmp_path / "out", max_bad_fraction=0.1)
    found, told = rows(tmp_path / "out"), summary(tmp_path / "out")
    selected = [row for row in found.values() if row["selected"]]
    rejected = [row for row in found.values() if row["error"] is None and not row["selected"]]
    assert selected
    assert (told["num_rows"], told["num_selected"], told["num_rejected"]) == (26, len(selected), len(rejected))
    assert (told["num_unreadable"], told["num_foreign"], told["left_out"]) == (2, 1, {".txt": 1})
    assert told["unreadable"] == {"neither an image nor called one": 1, "truncated": 1}
    names = [str(cell) for cell in label_table(Counts([1], [1], told["unreadable"])).columns[0].cells]
    assert names[2:4] == ["left out: neither an image nor called one", "unreadable: truncated"]
    for name in CLASSES:
        assert told["classes"][name]["selected"] == sum(row["class_name"] == name for row in selected)
        assert told["classes"][name]["rejected"] == sum(row["class_name"] == name for row in rejected)
    for column, highest in (("confidence", 1.0), ("entropy", math.log(3))):
        histogram = told["histograms"][column]
        assert histogram["edges"][-1] == pytest.approx(highest)
        for name, group in (("selected", selected), ("rejected", rejected)):
            expected = [0] * 20
            for row in group:
                expected[min(19, int(row[column] / highest * 20))] += 1
            assert histogram[name] == expected
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "out" / "_ledger" / "manifests").iterdir()]
    for name, group in (("selected", selected), ("rejected", rejected)):
        cells = Counter((row["pseudo_label"], sum(row["confidence"] >= edge for edge in EDGES)) for row in group)
        counted = np.sum([manifest["counts"][f"cells_{name}"] for manifest in manifests], axis=0)
        assert counted.tolist() == [cells[index, place] for index in range(3) for place in range(5)]
    assert Path(result.figure).read_bytes().startswith(b"\x89PNG")
    assert result.bad is not None
    assert sorted(Path(result.bad).read_text().splitlines()[1:]) == [
        f"{pool}/README,neither an image nor called one",
        f"{pool}/broken.png,truncated",
    ]
    bad = found[str(pool / "broken.png")]
    assert bad.pop("weight") == 0
    assert bad.pop("selected") is False
    assert bad == dict.fromkeys(SCHEMA.names[1:-3]) | {"sample_id": str(pool / "broken.png"), "error": "truncated"}


def test_a_finished_labelling_has_nothing_to_do(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    first = label(checkpoint, pool, tmp_path / "out")
    before = parts(tmp_path / "out")
    assert label(checkpoint, pool, tmp_path / "out") == first
    assert parts(tmp_path / "out") == before
    assert summary(tmp_path / "out")["labeled_now"] == 0


def test_lost_and_damaged_parts_are_made_again(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    label(checkpoint, pool, tmp_path / "out")
    whole, expected = parts(tmp_path / "out"), rows(tmp_path / "out")
    names = list(whole)
    (tmp_path / "out" / names[0]).unlink()
    (tmp_path / "out" / names[-1]).write_bytes(whole[names[-1]][1][:-20])
    (tmp_path / "out" / ".part-000000-00000.parquet.0123abcd").write_bytes(b"what a killed process was writing")
    label(checkpoint, pool, tmp_path / "out")
    assert rows(tmp_path / "out") == expected
    after = parts(tmp_path / "out")
    assert {name for name in names if after[name][0] != whole[name][0]} == {names[0], names[-1]}
    assert not list((tmp_path / "out").glob(".*"))


def test_what_is_new_in_the_pool_is_added(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    label(checkpoint, pool, tmp_path / "out")
    before, old = parts(tmp_path / "out"), rows(tmp_path / "out")
    write_images(pool, range(100, 103))
    (pool / "0003.png").unlink()
    parquet(pool / "a.parquet", range(50, 56))
    result = label(checkpoint, pool, tmp_path / "out")
    assert result.num_rows == 24 + 3 + 6
    assert {name: part for name, part in parts(tmp_path / "out").items() if name in before} == before
    new = rows(tmp_path / "out")
    assert {sample_id: new[sample_id] for sample_id in old} == old, "what is gone keeps its labels"
    assert summary(tmp_path / "out")["labeled_now"] == 9


def test_an_output_that_goes_on_is_not_finished(
    checkpoint: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(checkpoint, pool, tmp_path / "out")
    assert read_pseudo_labels(DataConfig(name="image_folder", labels=str(tmp_path / "out"))).labels
    write_images(pool, range(100, 103))
    interrupt(monkeypatch, after=0)
    with pytest.raises(KeyboardInterrupt):
        label(checkpoint, pool, tmp_path / "out")
    with pytest.raises(ValueError, match="is not finished"):
        read_pseudo_labels(DataConfig(name="image_folder", labels=str(tmp_path / "out")))


def test_a_damaged_manifest_is_made_again(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    label(checkpoint, pool, tmp_path / "out")
    before = parts(tmp_path / "out")
    manifest = next((tmp_path / "out" / "_ledger" / "manifests").iterdir())
    whole = manifest.read_bytes()
    for damaged in (b"", b"{}", b"[]", b'{"counts": {}, "parts": []}', whole[:50], whole.replace(b"size", b"bytes")):
        manifest.write_bytes(damaged)
        label(checkpoint, pool, tmp_path / "out")
        assert manifest.read_bytes() == whole
        assert parts(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["job.json", "plan.arrow"])
def test_a_damaged_book_is_named(checkpoint: str, pool: Path, tmp_path: Path, name: str) -> None:
    label(checkpoint, pool, tmp_path / "out")
    before = parts(tmp_path / "out")
    book = tmp_path / "out" / "_ledger" / name
    message = (
        rf"^output={tmp_path}/out: cannot go on without {book} \({{}}.*\); take another output, or remove this one$"
    )
    for damaged in (b"", b"{}", book.read_bytes()[:-20]):
        book.write_bytes(damaged)
        with pytest.raises(ValueError, match=message.format("damaged: ")):
            label(checkpoint, pool, tmp_path / "out")
    book.unlink()
    expected = message.format("missing") if name == "plan.arrow" else "holds part-.* already, which no labelling has"
    with pytest.raises(ValueError, match=expected):
        label(checkpoint, pool, tmp_path / "out")
    assert parts(tmp_path / "out") == before


def test_what_a_process_that_died_meanwhile_was_writing_is_removed(
    checkpoint: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an actor that is killed within a write: what takes its place writes the same part."""
    from dpl_ray.labeling.blocks import BlockLabeler

    whole, half = BlockLabeler.write, tmp_path / "out" / ".part-000000-00000.parquet.0123abcd"

    def leaving(self: BlockLabeler, block: Any) -> Any:
        half.write_bytes(b"half a part")
        return whole(self, block)

    monkeypatch.setattr(BlockLabeler, "write", leaving)
    label(checkpoint, pool, tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


def test_what_vanishes_before_it_is_labelled_has_a_reason(
    checkpoint: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, after=2)
    with pytest.raises(KeyboardInterrupt):
        label(checkpoint, pool, tmp_path / "out")
    monkeypatch.undo()
    (pool / "0009.png").unlink()
    (pool / "more" / "c.parquet").unlink()
    with pytest.raises(TooManyBadError, match=r"3 of 24 images cannot be read, more than max_bad_fraction=0\.1"):
        label(checkpoint, pool, tmp_path / "out", max_bad_fraction=0.1)
    result = label(checkpoint, pool, tmp_path / "out", max_bad_fraction=0.5)
    assert (result.num_rows, result.unreadable) == (24, {"file is missing": 4})


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Stop the labelling once so many parts are written."""
    from dpl_ray.labeling.blocks import BlockLabeler

    whole, written = BlockLabeler.write, []

    def stopping(self: BlockLabeler, block: Any) -> Any:
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(block)
        return whole(self, block)

    monkeypatch.setattr(BlockLabeler, "write", stopping)


@pytest.mark.parametrize("after", range(7))
def test_an_interrupted_labelling_goes_on(
    checkpoint: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    label(checkpoint, pool, tmp_path / "whole")
    interrupt(monkeypatch, after)
    with pytest.raises(KeyboardInterrupt):
        label(checkpoint, pool, tmp_path / "out")
    monkeypatch.undo()
    before = parts(tmp_path / "out")
    assert len(before) == after
    label(checkpoint, pool, tmp_path / "out")
    assert {name: part for name, part in parts(tmp_path / "out").items() if name in before} == before
    assert {name: part[1] for name, part in parts(tmp_path / "out").items()} == {
        name: part[1] for name, part in parts(tmp_path / "whole").items()
    }


def test_a_changed_file_is_refused(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    label(checkpoint, pool, tmp_path / "out")
    (pool / "0003.png").write_bytes(png(3) + b"more")
    with pytest.raises(ValueError, match=r"0003\.png has changed since it was planned"):
        label(checkpoint, pool, tmp_path / "out")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"image_column": "picture"},
            r"^output=.*: was begun with image_column=image, now it is picture; take another",
        ),
        ({"temperature": 2.0}, r"^output=.*: was begun with temperature=1.0, now it is 2.0; take another output"),
        ({"pool": "more"}, r"^output=.*: was begun with pool=.*/pool, now it is .*/pool/more; take another output"),
        (
            {"checkpoint": "other"},
            r"^output=.*: was begun with checkpoint=\w{16}, now it is \w{16}; take another output",
        ),
    ],
)
def test_another_job_is_refused(
    checkpoint: str, pool: Path, tmp_path: Path, fields: dict[str, str], message: str
) -> None:
    label(checkpoint, pool, tmp_path / "out")
    before = parts(tmp_path / "out")
    given: dict[str, Any] = {"checkpoint": checkpoint, "pool": pool} | fields
    if given["checkpoint"] == "other":
        given["checkpoint"] = make_checkpoint(tmp_path / "other", fit="pad")
    if given["pool"] == "more":
        given["pool"] = pool / "more"
    with pytest.raises(ValueError, match=message):
        label(given.pop("checkpoint"), given.pop("pool"), tmp_path / "out", **given)
    assert parts(tmp_path / "out") == before


def test_an_output_of_before_there_were_temperatures_goes_on(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    label(checkpoint, pool, tmp_path / "out")
    job = Storage(str(tmp_path / "out")) / "_ledger" / "job.json"
    tree = read_tree(job)
    del tree["identity"]["temperature"]
    write_json(job, tree)
    before = parts(tmp_path / "out")
    label(checkpoint, pool, tmp_path / "out")
    assert parts(tmp_path / "out") == before


def test_another_job_that_has_begun_meanwhile_is_found(
    checkpoint: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listing(*given: Any, **named: Any) -> PoolFiles:
        monkeypatch.undo()
        label(checkpoint, pool / "0001.png", tmp_path / "out")
        return list_pool(*given, **named)

    monkeypatch.setattr("dpl_ray.labeling.job.list_pool", listing)
    with pytest.raises(ValueError, match=r"^output=.*: was begun with pool=.*/0001.png, now it is "):
        label(checkpoint, pool, tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 1


def test_books_that_do_not_agree_name_the_file(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    label(checkpoint, pool, tmp_path / "out")
    place = tmp_path / "out" / "_ledger" / "manifests" / "000000.json"
    manifest = read_tree(Storage(str(place)))
    assert manifest["input"] == str(pool / "more" / "b.parquet")
    assert (manifest["num_rows"], manifest["num_files"]) == (11, 1)
    manifest["counts"]["rejected"][0] += 1
    write_json(Storage(str(place)), manifest)
    with pytest.raises(LedgerError, match=r"b\.parquet: .* selected \+ .* are not the 11 rows that were planned"):
        label(checkpoint, pool, tmp_path / "out")
    place.unlink()
    label(checkpoint, pool, tmp_path / "out")
    (tmp_path / "out" / "part-000009-00000.parquet").write_bytes(b"nobody planned this")
    with pytest.raises(LedgerError, match=r"parts and 24 rows, .* and 24 were planned"):
        label(checkpoint, pool, tmp_path / "out")


def test_too_many_files_that_cannot_be_opened_are_refused(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    (pool / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=rf"^max_bad_fraction=0.1: 1 of 3 parquet files .*: {pool}/broken.parquet;"):
        label(checkpoint, pool, tmp_path / "out", max_bad_fraction=0.1)
    assert not (tmp_path / "out").exists()


def test_too_many_bad_ones_stop_the_job_as_soon_as_it_is_known(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    for number in range(4):
        (pool / f"0000{number}.png").write_bytes(b"")
    with pytest.raises(
        TooManyBadError, match=r"of 28 images cannot be read, more than max_bad_fraction=0\.05"
    ) as error:
        label(checkpoint, pool, tmp_path / "out", max_bad_fraction=0.05)
    assert f"{pool}/00000.png (empty); " in str(error.value)
    listed = (tmp_path / "out" / "_report" / "bad.csv").read_text().splitlines()
    assert listed[0] == "id,reason"
    assert 2 <= len(listed) - 1 <= 4
    assert len(parts(tmp_path / "out")) < 8, "stopped before the end"
    assert label(checkpoint, pool, tmp_path / "out", max_bad_fraction=0.2).unreadable == {"empty": 4}


def test_too_many_bad_ones_that_are_known_stop_it_before_more_is_labelled(
    checkpoint: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        (pool / f"0000{number}.png").write_bytes(b"")
    label(checkpoint, pool, tmp_path / "out", max_bad_fraction=0.5)
    (tmp_path / "out" / "part-000000-00000.parquet").unlink()
    monkeypatch.setattr("dpl_ray.labeling.blocks.BlockLabeler.write", lambda *_: pytest.fail("labelled"))
    with pytest.raises(TooManyBadError, match=r"4 of 28 images cannot be read"):
        label(checkpoint, pool, tmp_path / "out", max_bad_fraction=0.05)


def test_outputs_that_are_refused(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^output=.*: lies in the pool, which would grow by its own labels"):
        label(checkpoint, pool, pool / "labels")
    with pytest.raises(ValueError, match=r"^output=.*/0001\.png/x: cannot be written \(.*; give a folder"):
        label(checkpoint, pool, pool / "0001.png" / "x")
    with pytest.raises(ValueError, match=r"^output=/proc/labels: cannot be written \(.*'/proc'\); give a folder"):
        label(checkpoint, pool, "/proc/labels")
    with pytest.raises(ValueError, match=r"^output=.*/more: holds b\.parquet already, which no labelling has begun"):
        label(checkpoint, pool, pool / "more")
    assert sorted(path.name for path in pool.iterdir())[-1] == "more", "nothing was written"


@pytest.mark.parametrize(
    ("number", "scale", "is_here"),
    [(SMALL_POOL, {}, True), (SMALL_POOL + 1, {}, False), (SMALL_POOL, {"address": "10.0.0.1:6379"}, False),
     (SMALL_POOL, {"num_workers": 1}, False), (SMALL_POOL + 1, {"num_workers": 0}, True)],
)  # fmt: skip
def test_a_small_pool_on_this_machine_needs_no_ray(
    number: int, scale: dict[str, Any], is_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpl_ray.cluster.connect.checked_resources", lambda _: nullcontext())
    monkeypatch.setattr("dpl_ray.cluster.connect.nodes_for", lambda _: ([{"CPU": 8.0}], "this machine"))
    assert (count_workers(LabelScaleConfig(**scale), number) == 0) == is_here


def test_other_refusals(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^checkpoint=.*/nowhere: there is no such folder"):
        label(str(tmp_path / "nowhere"), pool, tmp_path / "out")
    with pytest.raises(ValueError, match=r"^pool=.*/nowhere: there is no such file or folder"):
        label(checkpoint, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match=r"^scale\.num_workers=4096"):
        label(checkpoint, pool, tmp_path / "out", scale={"num_workers": 4096})
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"^pool=.*/texts: no image and no parquet file in it \(1 \.txt left out\)"):
        label(checkpoint, tmp_path / "texts", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "checkpoint is missing: give it, as checkpoint=runs/NAME"),
        (["checkpoint=a", "pool=b"], "output is missing"),
        (["checkpoint"], "checkpoint: says no field=value"),
        (["chekpoint=a"], "chekpoint=a: there is no field chekpoint; did you mean checkpoint?"),
        (["train.mu=3"], "train.mu=3: there is no field train.mu"),
        (["data.unlabeled=photos"], "data.unlabeled=photos: there is no field data.unlabeled; give pool=photos"),
        (["checkpoint=a", "pool=[]", "output=b"], "pool is missing: give it, as pool=/path/to/images"),
        (["batch_size=many"], "batch_size=many: must be a whole number"),
        (["scale.num_workers=-1"], "scale.num_workers=-1: must be greater than or equal to 0"),
        (["max_bad_fraction=2"], "max_bad_fraction=2: must be less than or equal to 1"),
    ],
)
def test_mistakes_in_fields(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        LabelConfig.load(arguments)


def test_fields_are_read_as_they_are_typed() -> None:
    config = LabelConfig.load(["checkpoint=1", "pool=a: b", "output=null", "image_column=null", "scale.use_gpu=true"])
    assert (config.checkpoint, config.pool, config.output) == ("1", "a: b", "null")
    assert config.image_column is None
    assert config.scale.use_gpu
    assert LabelConfig.load(["checkpoint=1", "pool=[a b,'c,d/*.png']", "output=o"]).pool == ("a b", "c,d/*.png")
    assert LabelConfig.load(["checkpoint=1", "pool=[2024_10,1e3]", "output=o"]).pool == ("2024_10", "1e3"), "as typed"


def interrupted(config: Any, console: Any) -> None:
    raise KeyboardInterrupt


def test_help_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    from dpl_ray.commands import label as command

    assert cli.run(command.COMMAND, ["--help"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("Label a pool of images with a trained model, every image once.\n")
    for field in ("checkpoint=''", "scale.num_workers=null", "tracking.enabled=true", "max_bad_fraction=null"):
        assert f"  {field} " in output
    assert "train." not in output
    assert cli.run(command.COMMAND, ["pool=x"]) == 2
    assert cli.run(replace(command.COMMAND, job=interrupted), ["checkpoint=a", "pool=b", "output=c"]) == 130
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("error: checkpoint is missing")
    assert errors[1:] == ["interrupted; go on with: dpl-ray label checkpoint=a pool=b output=c"]


@pytest.mark.rendered
@pytest.mark.usefixtures("mlflow_store")
def test_an_mlflow_run_has_numbers_and_files(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    write_splits(Storage(str(Path(checkpoint).parent)), tiny_splits())
    answers = tmp_path / "answers.csv"
    answers.write_text("path,label\n" + "".join(f"pool/{number:04d}.png,ant\n" for number in range(10)))
    fields: dict[str, Any] = {"run": {"storage_path": str(tmp_path)}, "tracking": {"enabled": True}}
    fields |= {"max_error": 0.999, "audit": str(answers)}
    result = label(checkpoint, pool, tmp_path / "out", **fields)
    client = MlflowClient(tracking_uri=result.tracking_uri)
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["label/rows"] == 24
    assert run.data.metrics["label/class/ant"] == summary(tmp_path / "out")["classes"]["ant"]["selected"]
    assert run.data.metrics["label/certified_error"] == 0.999
    assert run.data.metrics["label/certificate_labels"] == 10
    assert run.data.params["checkpoint"] == checkpoint
    files = {file.path for file in client.list_artifacts(result.run_id)}
    assert files == {"summary.json", "summary.png", "certificate.html"}
    listed = list_pool(open_location("pool", str(pool)), image_column="image")
    assert run.data.tags["data.fingerprint"] == listed.fingerprint(), "of the pool, not of the parts it is cut into"
    assert label(checkpoint, pool, tmp_path / "out", **fields).run_id == result.run_id
