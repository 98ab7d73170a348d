"""Why an image got its weight: the numbers are those of training, for images from files and from the pool."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dpl_ray import explain, fit, load_config
from dpl_ray.commands import cli
from dpl_ray.commands import explain as command
from dpl_ray.data.files.location import open_location
from dpl_ray.data.formats.rows import list_pool
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.pool.windows import StreamedPool
from dpl_ray.jobs.explain import _slug
from dpl_ray.jobs.explain_config import ExplainConfig
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint_folder import find_checkpoint
from tests.builders import tiny_splits, write_images


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run on digits."""
    folder = tmp_path_factory.mktemp("runs")
    fixed = ["scale.num_workers=0", "train.num_steps=4", "model.width=1", "train.batch_size=4", "train.baseline=false"]
    fit(load_config([*fixed, f"run.storage_path={folder}", "run.name=tiny", "tracking.enabled=false"]))
    return folder / "tiny"


def test_an_image_of_the_pool_is_explained_by_the_rule(run: Path) -> None:
    found = explain(run, 3)
    over, under = found.thresholds["over"], found.thresholds["under"]
    width = max(over - under, 0.02)
    assert found.weight == pytest.approx(math.exp(-(min(found.confidence - over, 0) ** 2) / (2 * width**2)), abs=1e-5)
    assert found.fixmatch_weight == (found.confidence >= 0.95)
    assert 0 <= found.entropy <= math.log(10)
    assert set(found.heads) == {"LGP", "HGP"}
    assert found.pseudo_label in map(str, range(10))
    assert sorted(found.probs.values(), reverse=True) == list(found.probs.values())
    text = Path(found.page).read_text()
    assert Path(found.page) == run / "explanation-3.html"
    for words in (
        "true class",
        "low gradient pass",
        "over-confident threshold",
        "strong 6",
        "as decoded",
        found.reason,
    ):
        assert words.replace("'", "&#x27;") in text, words


def test_the_same_image_from_a_file_and_from_parquet_has_the_same_weight(run: Path, tmp_path: Path) -> None:
    from dpl_ray.data.splits.sources import load_splits

    pixels = load_splits(load_config(["data=digits"]).data, seed=0).unlabeled.images[7]  # type: ignore[union-attr]
    buffer = io.BytesIO()
    Image.fromarray(pixels[0]).save(buffer, "png")
    (tmp_path / "seven.png").write_bytes(buffer.getvalue())
    write_images(tmp_path / "some.parquet", range(2), images=[None, buffer.getvalue()])
    found = [
        explain(run, sample, output=tmp_path / f"{number}.html")
        for number, sample in enumerate((7, tmp_path / "seven.png", f"{tmp_path}/some.parquet:1"))
    ]
    for other in found[1:]:
        assert (other.weight, other.confidence, other.heads) == (found[0].weight, found[0].confidence, found[0].heads)
    assert all((tmp_path / f"{number}.html").exists() for number in range(3))
    np.testing.assert_allclose(found[0].entropy, found[1].entropy)


def test_the_page_lies_beside_a_checkpoint_whose_address_has_options(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = find_checkpoint(Storage(str(run)))
    place.options = "?region=here"  # as of a bucket
    monkeypatch.setattr("dpl_ray.jobs.explain.open_checkpoint", lambda _: place)
    monkeypatch.chdir(tmp_path)
    assert explain(str(run), 5).page == f"{run}/explanation-5.html?region=here"
    assert (run / "explanation-5.html").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sample", "slug"),
    [
        ("s3://bucket/3.png?endpoint_override=127.0.0.1:5000", "s3-bucket-3.png"),
        ("s3://bucket/p.parquet:7?region=here", "s3-bucket-p.parquet-7"),
        ("/photos/what?x=1.png", "photos-what-x-1.png"),
    ],
)
def test_samples_of_an_address_with_options_have_pages_of_their_own(sample: str, slug: str) -> None:
    assert _slug(sample) == slug


def test_an_index_of_a_streamed_pool_is_the_row_of_that_number(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, levels in (("a", range(30)), ("b", range(100, 150))):
        write_images(tmp_path / f"{name}.parquet", levels, row_group_size=7)
    files = list_pool(open_location("data.unlabeled", str(tmp_path)), image_column="image")
    pool = StreamedPool((files,), DecodeSettings(image_size=8, channels=1), tuple(map(str, range(10))))
    splits = dataclasses.replace(tiny_splits(10, channels=1), unlabeled=pool)
    monkeypatch.setattr("dpl_ray.jobs.explain.load_splits", lambda *_, **__: splits)
    for index, (name, row) in {0: ("a", 0), 29: ("a", 29), 30: ("b", 0), 79: ("b", 49)}.items():
        found = explain(run, index, output=tmp_path / "page.html")
        assert found.sample == f"{tmp_path}/{name}.parquet:{row}"
        for sample in (found.sample, f"{name}.parquet:{row}"):
            same = explain(run, sample, output=tmp_path / "page.html")
            assert (found.sample, found.weight, found.confidence) == (found.sample, same.weight, same.confidence)


def test_the_name_of_an_image_of_the_pool_is_enough(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = tiny_splits(10, channels=1)
    ids = np.array([f"/photos/{index % 39}.png" if index % 39 else f"/photos/{index}/0.png" for index in range(40)])
    ids[5] = "/photos/a$b.png"
    splits = dataclasses.replace(splits, unlabeled=dataclasses.replace(splits.unlabeled, ids=ids))
    monkeypatch.setattr("dpl_ray.jobs.explain.load_splits", lambda *_, **__: splits)
    by_index, by_name = (explain(run, sample, output=tmp_path / "page.html") for sample in (7, "7.png"))
    assert (by_name.sample, by_name.weight) == ("/photos/7.png", by_index.weight)
    assert explain(run, "39/0.png", output=tmp_path / "page.html").sample == "/photos/39/0.png"
    assert explain(run, "a$b.png", output=tmp_path / "page.html").sample == "/photos/a$b.png"
    with pytest.raises(ValueError, match=r"sample=a\$c.png: the environment variable c is not set"):
        explain(run, "a$c.png")
    with pytest.raises(
        ValueError, match=r"sample=0.png: 2 images of the pool end so, as .*0/0.png and .*39/0.png; give"
    ):
        explain(run, "0.png")
    with pytest.raises(ValueError, match=r"sample=40.png: there is no such file or folder"):
        explain(run, "40.png")
    monkeypatch.setattr("dpl_ray.jobs.explain.load_splits", lambda *_, **__: int("gone"))
    with pytest.raises(
        ValueError, match=r"sample=40.png: there is no such file, and the run's pool, .* cannot be read \(.*gone"
    ):
        explain(run, "40.png")


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("supervised", "uses no pool"),
        ("fixmatch", "keeps no threshold of its own"),
        ("freematch", "state for class"),
        ("dpl policy.rule=agreement", "both heads share"),
    ],
)
def test_every_kind_of_policy_gives_its_reason(tmp_path: Path, policy: str, words: str) -> None:
    fixed = ["scale.num_workers=0", "train.num_steps=1", "model.width=1", "train.batch_size=4", "train.baseline=false"]
    fixed += [f"run.storage_path={tmp_path}", "run.name=tiny", "tracking.enabled=false"]
    fit(load_config([*fixed, *f"policy={policy}".split()]))
    assert words in explain(tmp_path / "tiny", 0).reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "checkpoint is missing: give it, as checkpoint=runs/NAME"),
        (["checkpoint={run}"], "sample is missing"),
        (["checkpoint={run}", "sampel=3"], "sampel=3: there is no field sampel; did you mean sample"),
        (["checkpoint={run}", "3"], "3: says no field=value"),
        (["checkpoint={run}", "sample=99999"], "sample=99999: the pool of this run has 1398 images; give 0 to 1397"),
        (["checkpoint={run}", "sample={tmp}/none.png"], "sample={tmp}/none.png: "),
        (["checkpoint={run}", "sample={tmp}/text.png"], "sample={tmp}/text.png: cannot be read (not an image)"),
        (["checkpoint={run}", "sample={tmp}/some.parquet"], "name a row, as sample={tmp}/some.parquet:0"),
        (["checkpoint={run}", "sample={tmp}/some.parquet:9"], "the file has 2 rows; give one of 0 to 1"),
        (["checkpoint={tmp}/none", "sample=3"], "checkpoint={tmp}/none: there is no such folder; give a folder step-N"),
        (["checkpoint={run}s", "sample=3"], "tinys: there is no such folder; did you mean {run}?"),
        (["checkpoint=$NOT_SET/a", "sample=3"], "checkpoint=$NOT_SET/a: the environment variable NOT_SET is not set"),
        (["checkpoint={run}", "sample=3", "output=/proc/x.html"], "output=/proc/x.html: cannot be written ("),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "text.png").write_text("no image")
    write_images(tmp_path / "some.parquet", range(2))
    arguments = [argument.format(run=run, tmp=tmp_path) for argument in arguments]
    assert cli.run(command.COMMAND, arguments) == cli.WRONG_USE
    _, errors = capsys.readouterr()
    assert message.format(tmp=tmp_path, run=run) in errors
    assert len(errors.splitlines()) == 1


def test_the_command_prints_the_numbers_and_the_page(run: Path, tmp_path: Path) -> None:
    output = io.StringIO()
    arguments = [f"checkpoint={run}", "sample=3", f"output={tmp_path}/page.html"]
    command.job(ExplainConfig.load(arguments), Console(file=output, width=200))
    found = explain(run, 3, output=tmp_path / "page.html")
    for words in (f"{found.weight:.4f}", f"{found.entropy:.4f} nats", "LGP head", "threshold over", found.reason):
        assert words in output.getvalue()
    assert f"{found.sample} (image 3 of the pool)," in output.getvalue()
    assert f"page        {tmp_path}/page.html" in output.getvalue()
