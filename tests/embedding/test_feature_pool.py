"""A pool of features is labelled and predicted as the images that they were made of are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dpl_ray.commands import cli
from dpl_ray.commands import predict as predict_command
from dpl_ray.config.compose import load_config
from dpl_ray.jobs.fit import fit
from tests.embedding.jobs import overrides, run
from tests.labeling.jobs import label, make_checkpoint, parts, picture, rows, summary
from tests.labeling.test_labeling import interrupt

COLUMNS = ("confidence", "entropy", "weight", "confidence_lgp", "confidence_hgp", "threshold_over", "threshold_under")


def check_same(output: Path, expected: Path) -> None:
    """Labels of the same images, within what float16 has rounded."""
    found, others = rows(output), rows(expected)
    assert found.keys() == others.keys()
    assert pq.read_schema(next(output.glob("*.parquet"))) == pq.read_schema(next(expected.glob("*.parquet")))
    for name, row in found.items():
        other = others[name]
        for column in COLUMNS:
            assert row[column] == pytest.approx(other[column], abs=0.01), (name, column)
        assert (row["pseudo_label"], row["class_name"]) == (other["pseudo_label"], other["class_name"])


def test_features_have_the_labels_of_their_images(trained: str, embedded: Path, images: Path, tmp_path: Path) -> None:
    """Of which none is embedded again; a part that is lost is made anew."""
    label(trained, images / "rest", tmp_path / "images", force=True)
    result = label(trained, embedded / "rest", tmp_path / "labels", force=True)
    check_same(tmp_path / "labels", tmp_path / "images")
    assert (result.num_rows, summary(tmp_path / "labels")["pool"]) == (40, str(embedded / "rest"))
    before = parts(tmp_path / "labels")
    assert len(before) == 10, "of 4 rows, of parts of 8"
    lost = sorted(before)[3]
    (tmp_path / "labels" / lost).unlink()
    label(trained, embedded / "rest", tmp_path / "labels", force=True)
    after = parts(tmp_path / "labels")
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in before.items()}
    assert [name for name in after if after[name][0] != before[name][0]] == [lost]


def answers_of(output: Path, folder: Path) -> str:
    """An audit that finds the labels of an output right."""
    lines = [f"{name},{row['class_name']}" for name, row in sorted(rows(output).items())]
    (folder / "answers.csv").write_text("\n".join(["path,label", *lines]))
    return str(folder / "answers.csv")


def test_labels_of_features_are_certified_as_those_of_images(
    trained: str, embedded: Path, images: Path, tmp_path: Path
) -> None:
    """By an audit of images, whose features are found by their paths."""
    label(trained, embedded / "rest", tmp_path / "labels", force=True)
    fields = {"max_error": 0.2, "audit": answers_of(tmp_path / "labels", tmp_path), "force": True}
    features, pictures = (
        label(trained, place / "rest", tmp_path / name, **fields)
        for place, name in ((embedded, "certified"), (images, "images"))
    )
    assert features.certificate is not None
    assert pictures.certificate is not None
    for name in ("bound", "coverage", "num_labels", "labels"):
        assert features.certificate[name] == pictures.certificate[name]
    assert features.num_selected == pictures.num_selected > 20
    answers = tmp_path / "answers.csv"
    answers.write_text(answers.read_text() + f"\n{embedded}/none.png,ant")
    with pytest.raises(ValueError, match=r"^audit=.*: 1 of its 41 images are not in the pool, as .*/none\.png"):
        label(trained, embedded / "rest", tmp_path / "other", **fields)


def test_a_run_certifies_by_the_features_that_it_has_held_out(embedded: Path, tmp_path: Path) -> None:
    more = [f"run.storage_path={tmp_path}", "run.name=held", "data.validation_fraction=0.5", "optim.learning_rate=0.01"]
    checkpoint = fit(load_config(overrides(embedded, *more))).checkpoint
    fields = {"max_error": 0.9, "confidence": 0.5, "force": True}
    result = label(checkpoint, embedded / "rest", tmp_path / "labels", **fields)
    assert result.certificate is not None
    assert (result.certificate["num_labels"], result.certificate["labels"]) == (6, "data.validation_fraction")


def test_what_has_no_features_is_named(
    trained: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, features = tmp_path / "pool", tmp_path / "features"
    pool.mkdir()
    for index in range(14):
        picture(index).save(pool / f"{index:02}.png")
    (pool / "broken.png").write_bytes(b"no image")
    (pool / "notes").write_text("no image")
    run(weights, pool, features, "max_bad_fraction=0.5")
    fields = {"force": True, "max_bad_fraction": 0.5}
    result = label(trained, features, tmp_path / "labels", **fields)
    reasons = {"not an image": 1, "neither an image nor called one": 1}
    assert (result.num_rows, result.unreadable) == (16, reasons)
    assert {name: row["error"] for name, row in rows(tmp_path / "labels").items() if row["error"]} == {
        str(pool / "broken.png"): "not an image",
        str(pool / "notes"): "neither an image nor called one",
    }
    interrupt(monkeypatch, after=3)
    with pytest.raises(KeyboardInterrupt):
        label(trained, features, tmp_path / "gone", **fields)
    monkeypatch.undo()
    last = sorted(features.glob("*.parquet"))[-1]
    last.unlink()
    result = label(trained, features, tmp_path / "gone", **fields)
    assert (result.num_rows, result.unreadable) == (16, {"file is missing": 4})
    missing = {name for name, row in rows(tmp_path / "gone").items() if row["error"]}
    assert missing == {f"{last}:{row}" for row in range(4, 8)}, "their names were in it"


def test_what_is_no_pool_of_this_model_is_refused(
    trained: str, weights: str, embedded: Path, images: Path, tmp_path: Path
) -> None:
    run(weights, images / "rest", tmp_path / "larger", "image_size=32")
    with pytest.raises(ValueError, match=r"^pool=.*/larger: its features are of another network .*than those of the m"):
        label(trained, tmp_path / "larger", tmp_path / "labels", force=True)
    with pytest.raises(ValueError, match=r"^pool=.*: is a folder of features, and the model takes images; give those"):
        label(make_checkpoint(tmp_path / "run"), embedded / "rest", tmp_path / "labels", force=True)
    shutil.copytree(embedded / "rest", tmp_path / "rest")
    next((tmp_path / "rest").glob("*.parquet")).write_bytes(b"half a part")
    with pytest.raises(ValueError, match=r"^pool=.*/rest: .*/part-.* cannot be read; embed again, which writes it"):
        label(trained, tmp_path / "rest", tmp_path / "labels", force=True)


def test_folders_of_features_are_one_pool_with_each_image_once(
    trained: str, weights: str, embedded: Path, images: Path, tmp_path: Path
) -> None:
    both = (str(embedded / "rest"), str(embedded / "test"))
    assert label(trained, both, tmp_path / "labels", force=True).num_rows == 50
    run(weights, images / "rest" / "rest0[0-5].png", tmp_path / "some")
    twice = (str(embedded / "rest"), str(tmp_path / "some"))
    with pytest.raises(ValueError, match=r"^pool=.*: 6 images are there more than once, as .*/rest0\d\.png; give each"):
        label(trained, twice, tmp_path / "other", force=True)


def test_features_are_predicted_as_their_images(
    trained: str, embedded: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for place in (embedded, images):
        output = tmp_path / f"{place.name}.csv"
        given = [f"checkpoint={trained}", f"images={place / 'rest'}", f"output={output}"]
        assert cli.run(predict_command.COMMAND, given) == 0
        found.append([line.split(",") for line in output.read_text().splitlines()])
    assert "40 images, from" in capsys.readouterr().out
    for one, other in zip(*found, strict=True):
        assert (one[:2], one[3], one[5:]) == (other[:2], other[3], other[5:])
    assert [float(line[2]) for line in found[0][1:]] == pytest.approx(
        [float(line[2]) for line in found[1][1:]], abs=0.01
    )
    given = [f"checkpoint={make_checkpoint(tmp_path / 'run')}", f"images={embedded / 'rest'}"]
    assert cli.run(predict_command.COMMAND, given) == 2
    assert "is a folder of features, and the model takes images" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_actors_label_features_as_one_process_does(trained: str, embedded: Path, tmp_path: Path) -> None:
    label(trained, embedded / "rest", tmp_path / "here", force=True)
    scale = {"num_workers": 2, "cpus_per_worker": 0.3}
    label(trained, embedded / "rest", tmp_path / "out", force=True, scale=scale)
    assert rows(tmp_path / "out") == rows(tmp_path / "here")
