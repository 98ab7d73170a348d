"""What to label next: the rule against slow references, the draw of candidates, and the command up to the answers."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dpl_ray.commands import cli
from dpl_ray.config.schema import DataConfig
from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode_many import decode_many
from dpl_ray.data.labeled.records import list_records
from dpl_ray.reviewing import candidates
from dpl_ray.reviewing import suggest as suggest_module
from dpl_ray.reviewing.candidates import draw_candidates
from dpl_ray.reviewing.choice import cover, draw_keys, mass, unsure, worth
from dpl_ray.reviewing.job import review
from dpl_ray.reviewing.labels import open_labels
from dpl_ray.reviewing.suggest import suggest
from dpl_ray.runs.splits import write_splits
from dpl_ray.store.storage import Storage
from tests.builders import tiny_splits
from tests.labeling.jobs import CLASSES, SIZE, label, make_checkpoint, rows, write_images, write_parquet
from tests.reviewing.outputs import Counting, write_output

NUM_FILES, NUM_ROWS, BUDGET = 30, 40, 8

# The rule


def floats(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def test_half_of_the_worth_is_that_of_unsure_images() -> None:
    doubts = unsure(floats(1, 0.5, 0.6, 0.9), floats(0, 0.5, 0.2, 0.1))
    np.testing.assert_allclose(doubts, [0, 1, 0.6, 0.2], atol=1e-6)
    np.testing.assert_allclose(unsure(floats(0.6, 0.6), floats(0.2, 0.2), floats(0.7, 0.6)), [0.6, 0], atol=1e-6)
    assert unsure(floats(0.3), floats(0.5)) == 1, "softmatch's confidence may be that of another class"
    worths = worth(doubts)
    assert worths.sum() == pytest.approx(2 * len(worths))
    np.testing.assert_allclose(worths - 1, doubts / doubts.mean(), rtol=1e-6)
    assert worth(floats(0, 0)).tolist() == [2, 2], "a model that is sure of everything"


def covered(features: Any, known: Any, masses: Any, chosen: list[int]) -> float:
    """f(S), in loops."""

    def cosine(first: Any, second: Any) -> float:
        length = math.hypot(*first) * math.hypot(*second)
        return max(0.0, float(np.dot(first, second)) / length) if length else 0.0

    centres = [*known, *(features[place] for place in chosen)]
    return sum(
        float(m) * max((cosine(z, c) for c in centres), default=0) for z, m in zip(features, masses, strict=True)
    )


@pytest.mark.parametrize("num_known", [0, 3])
def test_the_choice_is_the_greedy_one(num_known: int) -> None:
    random = np.random.default_rng(num_known)
    features, known = (random.normal(size=(number, 4)).astype(np.float32) for number in (20, num_known))
    masses = random.random(20).astype(np.float32)
    found = cover(features, known, masses, 6)
    chosen: list[int] = []
    for place, gain in found:
        before = covered(features, known, masses, chosen)
        gains = [covered(features, known, masses, [*chosen, other]) - before for other in range(20)]
        assert place == int(np.argmax(gains))
        assert gain == pytest.approx(gains[place] / masses.sum(), abs=1e-5)
        chosen.append(place)
    assert [gain for _, gain in found] == sorted((gain for _, gain in found), reverse=True)


def test_the_choice_takes_each_image_once_and_a_cluster_before_an_outlier() -> None:
    cluster, outlier = np.tile([1, 0], (5, 1)), np.array([[0, 1]])
    features = np.concatenate([outlier, cluster]).astype(np.float32)
    nothing = np.empty((0, 2), np.float32)
    assert [place for place, _ in cover(features, nothing, np.ones(6, np.float32), 2)] == [1, 0]
    assert cover(features, features[1:2], np.ones(6, np.float32), 1)[0][0] == 0, "the cluster has a label already"
    assert sorted(place for place, _ in cover(features, nothing, np.zeros(6, np.float32), 9)) == list(range(6))


def test_what_is_drawn_stands_for_all_in_the_mean() -> None:
    worths = 0.01 + np.random.default_rng(0).random(200) ** 4
    totals = []
    for seed in range(300):
        keys = draw_keys(worths, np.random.default_rng(seed))
        order = np.argsort(-keys, kind="stable")
        totals.append(float(mass(worths[order[:20]], keys[order[20]]).sum()))
    assert np.mean(totals) == pytest.approx(worths.sum(), rel=0.02)
    assert mass(worths[:9], -np.inf) == pytest.approx(worths[:9]), "where all are drawn, each stands for itself"


# Candidates


def test_candidates_are_drawn_by_worth_from_a_bounded_number_of_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = write_output(tmp_path / "out", [[3000]] * 20)
    counting = Counting()
    monkeypatch.setattr("dpl_ray.reviewing.labels.Storage", counting.storage)
    monkeypatch.setattr(candidates, "MAX_ROWS", 12_000)
    found = draw_candidates(open_labels("labels", str(output)), 100, 0)
    assert (found.num_seen, found.num_labels) == (11_996, 59_980), "without those of unreadable images"
    read = {name: size for name, size in counting.read.items() if name.startswith("part-")}
    assert len(read) == 4, "of the other parts, nothing"
    assert len(set(found.sample_ids)) == len(found.masses) == 100
    assert not any(name.endswith("/00000000.png") for name in found.sample_ids), "which cannot be read"
    assert found.sample_ids == draw_candidates(open_labels("labels", str(output)), 100, 0).sample_ids
    assert found.sample_ids != draw_candidates(open_labels("labels", str(output)), 100, 1).sample_ids


# The command


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and a parquet file, and a file that is no image."""
    folder = tmp_path_factory.mktemp("data") / "pool"
    write_images(folder, range(NUM_FILES))
    write_parquet(folder / "more.parquet", range(NUM_FILES, NUM_FILES + NUM_ROWS), 20)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def checkpoint(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a run that was trained on the first ten images of the pool."""
    folder = tmp_path_factory.mktemp("run")
    made = make_checkpoint(folder, scale=0.5)
    paths = sorted(map(str, pool.glob("00*.png")))[:10]
    items = [(path, Path(path).read_bytes()) for path in paths]
    images, _, _ = decode_many(items, DecodeSettings(image_size=SIZE, channels=3))
    splits = tiny_splits()
    known = ImageSet(images, np.zeros(10, np.int64), np.array(paths))
    write_splits(Storage(str(folder)), replace(splits, labeled=known))
    return made


@pytest.fixture(scope="module")
def labels(checkpoint: str, pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out") / "labels"
    label(checkpoint, pool, output, rows_per_part=100, batch_size=100, max_bad_fraction=0.1)
    return output


@pytest.fixture(scope="module")
def suggested(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("suggested") / "next"
    result = suggest(labels=str(labels), output=str(output), budget=BUDGET)
    assert (result.num_suggested, result.num_candidates) == (BUDGET, NUM_FILES + NUM_ROWS - 10)
    return output


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_images_are_suggested_whose_labels_are_not_known(suggested: Path, pool: Path) -> None:
    rows = read_csv(suggested / "suggestions.csv")
    paths = [row["path"] for row in rows]
    assert len(set(paths)) == BUDGET
    known = set(map(str, sorted(pool.glob("00*.png"))[:10]))
    assert not known & set(paths)
    gains = [float(row["gain"]) for row in rows]
    assert gains == sorted(gains, reverse=True)
    for row in rows:
        assert {row["proposed"], row["second"], row["lgp"], row["hgp"]} <= set(CLASSES)
        assert float(row["confidence"]) >= float(row["second_confidence"]) > 0
        assert row["why"].startswith(f"{row['proposed']} (")
        assert ("LGP says" in row["why"]) == (row["lgp"] != row["hgp"])
    data = json.loads(
        re.search(r'type="application/json"[^>]*>(.*?)</script>', (suggested / "suggest.html").read_text(), re.DOTALL)[
            1
        ]
    )  # type: ignore[index]
    assert [item["id"] for item in data["items"]] == paths
    assert [item["note"] for item in data["items"]] == [row["why"] for row in rows]
    assert all(item["picture"].startswith("data:image/png") and item["probability"] is None for item in data["items"])


def test_a_temperature_of_the_labels_is_that_of_the_suggestions(checkpoint: str, pool: Path, tmp_path: Path) -> None:
    label(checkpoint, pool, tmp_path / "labels", max_bad_fraction=0.1, temperature=0.5)
    suggest(labels=str(tmp_path / "labels"), output=str(tmp_path / "next"), budget=BUDGET)
    known = rows(tmp_path / "labels")
    for row in read_csv(tmp_path / "next" / "suggestions.csv"):
        assert float(row["confidence"]) == pytest.approx(known[row["path"]]["confidence"], abs=1e-3)
        assert row["threshold_over"] == "", "it is of confidences without the temperature"


def test_the_answers_become_labels_and_say_nothing_of_the_others(
    suggested: Path, labels: Path, pool: Path, tmp_path: Path
) -> None:
    output = tmp_path / "next"
    shutil.copytree(suggested, output)
    rows = read_csv(output / "suggestions.csv")
    name = json.loads((output / "draw.json").read_text())["review"]
    lines = [f"{row['path']},{'' if place == 3 else 'bee'},{row['proposed']},,{name}" for place, row in enumerate(rows)]
    answers = tmp_path / "answers.csv"
    answers.write_text("\n".join(["path,label,proposed,probability,review", *lines]))
    result = review(labels=str(labels), output=str(output), answers=str(answers))
    assert result.certificate is None
    assert not (output / "certificate.json").exists()
    records = list_records(DataConfig(name="image_folder", allow_outside=True), "data.train", str(result.true_labels))
    assert dict(zip(records.ids, records.labels, strict=True)) == {
        row["path"]: None if place == 3 else "bee" for place, row in enumerate(rows)
    }
    table = read_csv(Path(str(result.true_labels)))
    assert {row["probability"] for row in table} == {""}, "so that it is refused as an audit"
    answers.write_text("\n".join(["path,label", f"{pool / '0001.png'},bee"]))
    with pytest.raises(ValueError, match="which is none of the 8 drawn images"):
        review(labels=str(labels), output=str(output), answers=str(answers))


def test_images_of_the_run_count_as_covered_and_are_not_suggested(
    labels: Path, suggested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise ValueError("data.train: there is no such folder")

    def suggestions(output: Path) -> list[dict[str, str]]:
        suggest(labels=str(labels), output=str(output), budget=BUDGET)
        return read_csv(output / "suggestions.csv")

    before = read_csv(suggested / "suggestions.csv")
    monkeypatch.setattr(suggest_module, "load_splits", gone)
    assert float(suggestions(tmp_path / "gone")[0]["gain"]) > float(before[0]["gain"])
    splits = tiny_splits(size=SIZE)
    tested = replace(splits.test, ids=np.array([before[0]["path"], *splits.test.ids[1:]]))
    monkeypatch.setattr(suggest_module, "load_splits", lambda *_, **__: replace(splits, test=tested))
    assert before[0]["path"] not in {row["path"] for row in suggestions(tmp_path / "tested")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["labels=LABELS", "output=TAKEN"], "TAKEN: is there already and not empty; take another folder"),
        (["labels=POOL"], "is no output of dpl-ray label"),
        (["labels=LABELS", "checkpoint=OTHER"], "checkpoint=OTHER: is not the one that made labels=LABELS"),
        (["labels=LABELS", "checkpoint=POOL"], "give a folder step-N"),
        (["labels=LABELS", "budget=0"], "budget=0: must be greater than or equal to 1"),
        (["labels=LABELS", "num=5"], "num=5: there is no field num; give budget=5"),
        ([], "labels is missing: give it, as labels=/path/to/labels"),
    ],
    ids=["output", "labels", "checkpoint", "no_checkpoint", "budget", "field", "missing"],
)
def test_mistakes_are_answered_in_one_line(
    fields: list[str],
    message: str,
    labels: Path,
    pool: Path,
    suggested: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"LABELS": str(labels), "POOL": str(pool), "TAKEN": str(suggested), "OTHER": str(tmp_path / "other")}
    if "OTHER" in " ".join(fields):
        names["OTHER"] = make_checkpoint(tmp_path / "other", scale=0.1)

    def filled(text: str) -> str:
        return re.sub("|".join(names), lambda found: names[found[0]], text)

    given = [filled(text) for text in fields]
    if not any(text.startswith("output=") for text in fields):
        given.append(f"output={tmp_path / 'out'}")
    assert cli.run(cli.load_command("suggest"), given) == cli.WRONG_USE
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert filled(message) in errors
    assert not (tmp_path / "out").exists()
