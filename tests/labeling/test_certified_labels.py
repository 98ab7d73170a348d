"""Labelling with a certificate: what is selected, where the held-out labels are from, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.labeling import job
from dpl_ray.labeling.config import LabelConfig
from dpl_ray.labeling.held_out import HeldOut, open_held_out
from dpl_ray.labeling.job import LabelResult
from dpl_ray.runs.splits import write_splits
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint_folder import load_config_and_info
from tests.builders import save_labeler, tiny_config, tiny_splits
from tests.labeling.jobs import CLASSES, label, make_checkpoint, parts, picture, rows, summary, write_images
from tests.labeling.jobs import write_parquet as parquet
from tests.labeling.outputs import write_digits

NUM_FILES, NUM_ROWS = 40, 40


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and a parquet file, of 40 each."""
    folder = tmp_path_factory.mktemp("data") / "pool"
    write_images(folder, range(NUM_FILES))
    parquet(folder / "more.parquet", range(NUM_FILES, NUM_FILES + NUM_ROWS))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a run that has kept what it was trained on: none of the pool."""
    folder = tmp_path_factory.mktemp("run")
    made = make_checkpoint(folder, scale=0.2)
    write_splits(Storage(str(folder)), tiny_splits())
    return made


@pytest.fixture(scope="module")
def said(checkpoint: str, pool: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The labels of the pool, in the order of their ids."""
    found = rows(label_whole(checkpoint, pool, tmp_path_factory.mktemp("labels")).output)
    return {name: found[name] for name in sorted(found)}


def label_whole(checkpoint: str, pool: Path, output: Path, **fields: Any) -> LabelResult:
    """Each file in one part."""
    return label(checkpoint, pool, output, **{"rows_per_part": 100, "batch_size": 100} | fields)


def write_answers(
    said: dict[str, dict[str, Any]], folder: Path, wrong: Sequence[int] = (), number: int = 80, only: str = ""
) -> Path:
    """An audit that finds the model right, but for these rows, which nobody can tell."""
    lines = [
        f"{name},{'' if place in wrong else row['class_name']}"
        for place, (name, row) in enumerate(said.items())
        if only in ("", row["class_name"])
    ]
    (folder / "answers.csv").write_text("\n".join(["path,label", *lines[:number]]))
    return folder / "answers.csv"


def test_as_much_is_selected_as_an_audit_certifies(
    checkpoint: str, pool: Path, said: dict[str, Any], tmp_path: Path
) -> None:
    answers = write_answers(said, tmp_path)
    output = tmp_path / "out"
    result = label_whole(checkpoint, pool, output, max_error=0.05, audit=str(answers))
    assert (result.num_selected, result.num_rejected) == (80, 0), "none of 80 is wrong"
    assert result.certificate == summary(output)["certificate"]
    told = summary(output)["certificate"]
    assert {name: told[name] for name in ("bound", "coverage", "num_labels", "labels")} == {
        "bound": 0.05,
        "coverage": 1.0,
        "num_labels": 80,
        "labels": str(answers),
    }
    (doubt,) = told["warnings"]
    assert doubt.startswith("not one of 80 held-out labels is wrong, which has the probability ")
    page = Path(result.page or "").read_text()
    for words in (
        "At most 5 % of the selected labels are wrong",
        "80 labels, 100.0 % of the pool",
        "by no more than chance",
    ):
        assert words in page
    assert "wrong at most 5.0 %" in repr(result)


def test_thresholds_select_and_an_answer_that_nobody_can_tell_is_wrong(
    checkpoint: str, pool: Path, said: dict[str, Any], tmp_path: Path
) -> None:
    confidence = [row["confidence"] for row in said.values()]
    answers = write_answers(said, tmp_path, np.argsort(confidence)[:12].tolist())
    label_whole(checkpoint, pool, tmp_path / "out", max_error=0.1, audit=str(answers))
    told = summary(tmp_path / "out")["certificate"]["thresholds"]["all"]
    assert 0 < told["threshold"] < 1
    for row in rows(tmp_path / "out").values():
        assert row["selected"] == (row["confidence"] >= told["threshold"])
    selected = [number for number in confidence if number >= told["threshold"]]
    assert told["num_selected"] == len(selected) < 80
    assert told["num_wrong"] <= len(selected) - 68


def test_a_threshold_of_each_class(checkpoint: str, pool: Path, said: dict[str, Any], tmp_path: Path) -> None:
    answers = write_answers(said, tmp_path)
    label_whole(checkpoint, pool, tmp_path / "out", max_error=0.2, by_class=True, audit=str(answers))
    told = summary(tmp_path / "out")["certificate"]["thresholds"]
    found = rows(tmp_path / "out").values()
    assert {name: each["num_labels"] for name, each in told.items()} == {
        name: sum(row["class_name"] == name for row in found) for name in CLASSES
    }
    assert any(each["threshold"] is None for each in told.values()), "the classes are of different sizes"
    for row in found:
        assert row["selected"] == (told[row["class_name"]]["threshold"] is not None)


def test_too_few_labels_select_nothing_and_say_how_many_are_needed(
    checkpoint: str, pool: Path, said: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = write_answers(said, tmp_path, number=40)
    result = label_whole(checkpoint, pool, tmp_path / "out", max_error=0.05, audit=str(answers))
    assert (result.num_selected, result.num_rejected) == (0, 80)
    told = summary(tmp_path / "out")["certificate"]
    assert told["bound"] is None
    assert told["thresholds"]["all"]["needed"].startswith("19 more held-out labels are needed: 59 without a wrong one")
    assert "19 more held-out labels are needed" in Path(result.page or "").read_text()


def test_it_goes_on_with_the_thresholds_that_it_began_with(
    checkpoint: str, pool: Path, said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = write_answers(said, tmp_path, [3, 50])
    output, given = tmp_path / "out", {"max_error": 0.1, "audit": str(answers)}
    label(checkpoint, pool, output, **given)
    whole = {name: data for name, (_, data) in parts(output).items()}
    monkeypatch.setattr(job, "certify_pool", lambda *_: pytest.fail("certified again"))
    for name in list(whole)[:2]:
        (output / name).unlink()
    label(checkpoint, pool, output, **given)
    assert {name: data for name, (_, data) in parts(output).items()} == whole
    with pytest.raises(ValueError, match=r"was begun with certificate.max_error=0.1, now it is 0.2; take another"):
        label(checkpoint, pool, output, **given | {"max_error": 0.2})
    with pytest.raises(ValueError, match=r"was begun with certificate=.*, now it is null; take another output"):
        label(checkpoint, pool, output)
    answers.write_text(answers.read_text() + "\n")
    label(checkpoint, pool, output, **given)
    certificate = output / "_ledger" / "certificate.json"
    text = certificate.read_text()
    certificate.write_text(text[:50])
    with pytest.raises(ValueError, match=r"cannot go on without .*certificate.json \(damaged: "):
        label(checkpoint, pool, output, **given)
    certificate.unlink()
    with pytest.raises(ValueError, match=r"cannot go on without .*certificate.json \(missing\)"):
        label(checkpoint, pool, output, **given)


def test_an_audit_of_other_images_is_warned_of(
    checkpoint: str, pool: Path, said: dict[str, Any], tmp_path: Path
) -> None:
    classes = [row["class_name"] for row in said.values()]
    rarest = min(set(classes), key=classes.count)
    answers = write_answers(said, tmp_path, only=rarest)
    with pytest.warns(UserWarning, match=r"the held-out images differ from the pool in their classes \(\d+ % of them"):
        result = label_whole(checkpoint, pool, tmp_path / "out", max_error=0.2, audit=str(answers))
    assert "differ from the pool" in Path(result.page or "").read_text()


def test_an_audit_of_unequal_probabilities_is_thinned_to_equal_ones(
    checkpoint: str, pool: Path, said: dict[str, Any], tmp_path: Path
) -> None:
    answers = write_answers(said, tmp_path)
    header, *lines = answers.read_text().splitlines()
    likely = [f"{line},{'0.8' if place < 40 else '0.2'}" for place, line in enumerate(lines)]
    answers.write_text("\n".join([f"{header},probability", *likely]))
    kept = open_audit(checkpoint, answers).audit
    assert kept is not None
    ids = [line.split(",")[0] for line in lines]
    assert set(ids[40:]) < set(kept.ids)
    assert 2 <= len(kept.ids) - 40 <= 18, "a quarter of 40"
    answers.write_text("\n".join([f"{header},probability", *reversed(likely)]))
    again = open_audit(checkpoint, answers)
    assert again.audit is not None
    assert sorted(again.audit.ids) == sorted(kept.ids), "whatever their order"
    assert again.source.endswith(f"({len(kept.ids)} of 80, each as likely to be drawn)")
    answers.write_text("\n".join([f"{header},probability", *(f"{line},0.5" for line in lines)]))
    assert len(open_audit(checkpoint, answers).audit.ids) == 80  # type: ignore[union-attr]
    for wrong in ("0", "2", "often", ""):
        answers.write_text(f"{header},probability\n{lines[0]},{wrong}\n{lines[1]},0.5\n")
        with pytest.raises(ValueError, match=rf"^audit=.*: row 1 has the probability ({wrong}|.none.); write"):
            open_audit(checkpoint, answers)


def test_what_is_no_random_draw_of_a_persons_labels_is_no_audit(
    checkpoint: str, said: dict[str, Any], tmp_path: Path
) -> None:
    answers = write_answers(said, tmp_path)
    header, *lines = answers.read_text().splitlines()
    answers.write_text("\n".join([f"{header},probability", *(f"{line}," for line in lines)]))
    with pytest.raises(ValueError, match=r"^audit=.*: has images that were chosen"):
        open_audit(checkpoint, answers)
    answers.write_text("\n".join([f"{header},confidence", *(f"{line},0.99" for line in lines)]))
    with pytest.raises(ValueError, match=r"^audit=.*: \d+ of its \d+ rows are labels of a model"):
        open_audit(checkpoint, answers)


def open_audit(checkpoint: str, answers: Path) -> HeldOut:
    given = [f"checkpoint={checkpoint}", "pool=a", "output=b", "max_error=0.1", f"audit={answers}"]
    place = Storage(checkpoint)
    config, info = load_config_and_info(place)
    return open_held_out(LabelConfig.load(given), place, config, info.class_names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("trained", r"^audit=.*: the model was trained on 1 of its 80 images, as .*/0000\.png, which certify nothing"),
        (
            "elsewhere",
            r"^audit=.*: 1 of its 81 images are not in the pool, as .*/none\.png; an audit is drawn from the",
        ),
        ("row", r"^audit=.*: 1 of its 81 images are not in the pool, as .*/more\.parquet:40;"),
        ("twice", r"^audit=.*: row 81 names .*/0000\.png again; one row an image"),
        ("class", r"^audit=.*: label dog of .*/0000\.png is not one of the classes ant, bee, cat"),
        ("old", r"^max_error=0.2: the run of this checkpoint has not kept which images it was trained on"),
    ],
)
def test_audits_that_are_refused(
    change: str, message: str, checkpoint: str, pool: Path, said: dict[str, Any], tmp_path: Path
) -> None:
    answers, run = write_answers(said, tmp_path), tmp_path / "run"
    shutil.copytree(Path(checkpoint).parent, run)
    more = {"elsewhere": f"{pool}/none.png,ant", "row": f"{pool}/more.parquet:40,ant", "twice": f"{pool}/0000.png,ant"}
    text = answers.read_text() + f"\n{more.get(change, '')}"
    if change == "class":
        text = f"path,label\n{pool}/0000.png,dog\n"
    elif change == "old":
        (run / "splits.parquet").unlink()
    elif change == "trained":
        splits = tiny_splits()
        images = np.asarray(picture(0)).transpose(2, 0, 1)[None].copy()
        one = ImageSet(images, np.zeros(1, np.int64), np.array(["elsewhere"]))
        write_splits(Storage(str(run)), replace(splits, labeled=one))
    answers.write_text(text)
    with pytest.raises(ValueError, match=message):
        label_whole(str(run), pool, tmp_path / "out", max_error=0.2, audit=str(answers))
    assert not list((tmp_path / "out").glob("part-*"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on digits, untrained, that has held out images."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    fields = {"name": "digits", "num_labels_per_class": 8, "validation_fraction": 0.5, "channels": 1, "image_size": 8}
    config = tiny_config(data=fields)
    save_labeler(folder, config, tuple("0123456789"), 1, 8)
    write_splits(Storage(str(folder)), load_splits(config.data, seed=config.train.seed))
    return folder


def test_the_images_that_a_run_has_held_out_certify(digits: Path, tmp_path: Path) -> None:
    write_digits(tmp_path / "pool" / "a.parquet", 0, 30, labels=False)
    result = label(str(digits), tmp_path / "pool", tmp_path / "out", max_error=0.5)
    told: dict[str, Any] = result.certificate or {}
    assert (told["num_labels"], told["labels"]) == (40, "data.validation_fraction")
    assert "a better model or a larger max_error is needed" in told["thresholds"]["all"]["needed"], "it guesses"
    assert result.num_selected == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("changed", "the images that the run has held out have changed; give audit=answers.csv"),
        ("none", r"the run has held out no labels; train with data.validation_fraction=0.3, or give audit=answers.csv"),
        ("search", "a search has chosen this model by the images that it held out; give audit"),
        ("pseudo", "the images that the run has held out have pseudo-labels, not true ones; give audit"),
    ],
)
def test_held_out_images_that_are_refused(change: str, message: str, digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    shutil.copytree(digits, folder)
    write_digits(tmp_path / "pool" / "a.parquet", 0, 10, labels=False)
    config = tiny_config(data={"name": "digits", "num_labels_per_class": 8, "validation_fraction": 0.5})
    splits = load_splits(config.data, seed=0)
    if change == "changed":
        write_splits(Storage(str(folder)), replace(splits, validation=splits.labeled, labeled=splits.validation))
    elif change == "none":
        write_splits(Storage(str(folder)), replace(splits, validation=splits.validation.subset(np.arange(0))))
    elif change == "search":
        (folder.parent / "search.json").write_text("{}")
    else:
        fields = {"name": "image_folder", "train": None, "labels": "labels", "image_size": 8, "channels": 1}
        save_labeler(folder, tiny_config(data=fields), tuple("0123456789"), 1, 8)
    with pytest.raises(ValueError, match=f"^max_error=0.1: {message}"):
        label(str(folder), tmp_path / "pool", tmp_path / "out", max_error=0.1)


def test_an_audit_alone_is_no_wish() -> None:
    with pytest.raises(ValueError, match=r"^audit=a.csv: it certifies an error; say which, as max_error=0.02"):
        LabelConfig.load(["checkpoint=a", "pool=b", "output=c", "audit=a.csv"])
