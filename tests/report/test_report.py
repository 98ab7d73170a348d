"""The page of a run: its sections, what they say of data of every kind, and that a browser shows it."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpl_ray.config.schema import Config, DataConfig
from dpl_ray.data.dataset import UNLABELED, ImageSet, Splits
from dpl_ray.data.files.location import open_location
from dpl_ray.data.formats.rows import list_pool
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.pool.windows import StreamedPool
from dpl_ray.jobs.phases import train_phases
from dpl_ray.page import html
from dpl_ray.page.html import Page, Section
from dpl_ray.report.accuracy import NUM_PICTURES, confusion_section, pictures_section
from dpl_ray.report.curves import MAX_PANELS, History, thresholds_section
from dpl_ray.report.page import make_page
from dpl_ray.report.pool import PoolSample, label_sample, part, pool_section
from dpl_ray.runs.folder import RunFolder, run_storage
from dpl_ray.studies.comparison.page import make_page as make_comparison_page
from dpl_ray.studies.comparison.table import make_rows
from dpl_ray.training.distributed import Workers
from dpl_ray.training.predictions import Predictions
from dpl_ray.training.records import Outcome
from tests.builders import tiny_config, tiny_set, tiny_splits, write_images
from tests.page.test_html import Outline, anchors
from tests.studies.test_comparison_table import cell
from tests.studies.test_tuning_page import page_of_a_search

pytestmark = pytest.mark.rendered
CHROMIUM = shutil.which("chromium")
SECTIONS = ["verdict", "health", "training", "pseudo-labels", "thresholds", "exploration", "calibration", "confusions"]
SECTIONS += ["images", "run"]


def finished(folder: Path, splits: Splits, **groups: dict[str, Any]) -> tuple[Config, RunFolder, list[Outcome]]:
    """A run of a few steps without a page."""
    train = {"num_steps": 6, "log_every": 2} | groups.pop("train", {})
    config = tiny_config(train=train, run={"storage_path": str(folder), "name": "tiny"}, **groups)
    made = RunFolder(run_storage(config), config, splits)
    outcomes = train_phases(config, splits, made.storage, Workers(), lambda _: None)
    return config, made, outcomes


def page_of_section(anchor: str, section: Section) -> Page:
    """A page of a run that has this section alone."""
    return html.render_page("report/run.html", "", "", {anchor: section})


def page_of_run(config: Config, splits: Splits, folder: RunFolder, outcomes: list[Outcome]) -> Page:
    """As `fit` makes it, of a run of which nothing is wrong."""
    main = outcomes[-1]
    sample = None if main.phase == "supervised" else label_sample(main.checkpoint, splits)
    return make_page(config, splits, folder, outcomes, sample, ())


def page(folder: Path, splits: Splits, **groups: dict[str, Any]) -> tuple[str, Outline, list[str]]:
    """The file, what is in it, and the anchors of its sections."""
    config, made, outcomes = finished(folder, splits, **groups)
    built = page_of_run(config, splits, made, outcomes)
    return built.html, Outline(built.html), anchors(built)


@pytest.fixture(scope="module")
def tiny_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Outline, list[str]]:
    """Of a run that has something for every section."""
    return page(tmp_path_factory.mktemp("tiny"), tiny_splits())


def test_the_page_has_every_section_and_its_numbers(tiny_page: tuple[str, Outline, list[str]]) -> None:
    text, found, sections = tiny_page
    assert sections == SECTIONS
    assert set(SECTIONS) <= set(found.ids)
    assert re.search(r"95 % interval [+-]\d+\.\d to [+-]\d+\.\d, on the same 20 test images", found.text)
    for words in (
        "Nothing was found of what is looked for: at chance, collapsed",
        "supervised baseline alone on",
        "has read all 40 images",
        "ECE, 15 bins",
        "Confusion matrix, 20 test",
    ):
        assert words in found.text, words
    assert len(text) < 2_000_000
    assert "http://" not in text
    assert "https://" not in text


def test_without_a_baseline_it_says_how_to_get_one(tmp_path: Path) -> None:
    _, found, sections = page(tmp_path, tiny_splits(), train={"baseline": False})
    assert sections == SECTIONS
    assert "there is no baseline" in found.text
    assert "train.baseline=true" in found.text


def test_a_supervised_run_says_nothing_of_a_pool(tmp_path: Path) -> None:
    _, found, sections = page(tmp_path, tiny_splits(), policy={"name": "supervised"})
    assert sections == ["verdict", "health", "training", "calibration", "confusions", "images", "run"]
    assert "This run is supervised" in found.text


def test_without_test_images_there_is_no_verdict(tmp_path: Path) -> None:
    _, found, sections = page(tmp_path, tiny_splits(num_test=0))
    assert sections == ["verdict", "health", "training", "pseudo-labels", "thresholds", "exploration", "run"]
    assert "There are no test images" in found.text


def test_a_pool_whose_labels_are_unknown_has_no_precision(tmp_path: Path) -> None:
    splits = tiny_splits()
    assert isinstance(splits.unlabeled, ImageSet)
    unknown = ImageSet(splits.unlabeled.images, np.full(40, UNLABELED), splits.unlabeled.ids)
    _, found, sections = page(tmp_path, dataclasses.replace(splits, unlabeled=unknown, shaped="made of another"))
    assert "pool made for a benchmark made of another" in found.text
    assert sections == SECTIONS
    assert found.text.count("labels are not known") == 2
    assert "their precision" not in found.text


def test_a_policy_of_one_threshold_for_all_classes_has_one_panel(tmp_path: Path) -> None:
    _, found, _ = page(tmp_path, tiny_splits(), policy={"name": "softmatch"})
    assert "All classes have the same threshold." in found.text


def test_of_a_hundred_classes_some_are_drawn_and_all_are_listed() -> None:
    names = [f"class{index}" for index in range(100)]
    values = {"over": [0.5 + index / 250 for index in range(100)], "under": [0.5] * 100}
    metrics = {f"threshold/{state}/{name}": 0.5 for state in values for name in names}
    rows = [{"phase": "dpl", "step": step, "metrics": metrics} for step in range(1000)]
    made = page_of_section("thresholds", thresholds_section(History(rows, "dpl"), names, values)).html
    assert made.count("<img") == MAX_PANELS
    assert "Of 100 classes 12 are drawn: the 6 with the widest band" in made
    drawn = [title for title in re.findall(r"<h3>(.*?)</h3>", made) if title.startswith("class")]
    assert drawn == [f"class{index}" for index in (99, 98, 97, 96, 95, 94, 5, 4, 3, 2, 1, 0)]
    assert made.count('scope="row"') == 100
    assert len(made) < 1_000_000, "a long history is thinned"


def test_a_hundred_classes_have_a_readable_confusion_matrix() -> None:
    test = tiny_set("test", 300, 100, 3, 8, seed=0)
    found = Predictions(np.roll(test.targets, 1), np.full(300, 0.5, np.float32))
    section = confusion_section(test, found, None, [f"class{index}" for index in range(100)])
    made = page_of_section("confusions", section).html
    assert "Recall of all 100 classes" in made
    assert "3 of 3" in made


def test_the_sheets_have_the_images_that_they_say() -> None:
    test = tiny_set("test", 60, 2, 1, 8, seed=0)
    labels = np.where(np.arange(60) < 20, 1 - test.targets, test.targets)
    confidence = np.linspace(0.5, 0.99, 60).astype(np.float32)
    section = pictures_section(test, Predictions(labels, confidence), ["a", "b"], DataConfig())
    assert section is not None
    text = Outline(page_of_section("images", section).html).text
    shown = re.findall(r"test/(\d+)", text)
    assert [int(index) for index in shown[:NUM_PICTURES]] == list(range(19, 7, -1)), "wrong, the most confident first"
    assert [int(index) for index in shown[NUM_PICTURES:]] == list(range(20, 32)), "right, the least confident first"


def sample(**columns: Any) -> PoolSample:
    defaults = {
        "entropy": np.array([0.1, 0.2, 0.5, 1.0], np.float32),
        "confidence": np.array([0.99, 0.95, 0.8, 0.5], np.float32),
        "weights": np.array([1.0, 0.5, 0.8, 0.2], np.float32),
        "labels": np.array([0, 1, 1, 0]),
        "targets": np.array([0, 0, 1, 1]),
    }
    return PoolSample(pool_size=100, num_classes=3, **defaults | columns)


def test_what_the_policy_takes_beyond_fixmatch_is_counted_by_weight() -> None:
    found = sample()
    below = found.confidence < 0.95
    assert part(found, ~below, fixmatch=True).counts == 2
    assert part(found, ~below, fixmatch=True).precision == 0.5
    assert part(found, below, fixmatch=True).counts == 0
    assert part(found, below, fixmatch=True).precision is None
    extra = part(found, below, fixmatch=False)
    assert extra.counts == pytest.approx(1.0)
    assert extra.precision == pytest.approx(0.8)
    low, high = extra.interval
    assert 0 <= low < 0.8 < high <= 1
    unknown = sample(targets=np.full(4, UNLABELED))
    assert part(unknown, below, fixmatch=False).precision is None


def test_the_section_of_the_pool_says_of_how_many_images_it_speaks() -> None:
    made = page_of_section("exploration", pool_section(sample(), "dpl"))
    assert "a random sample of 4 of the 100 images of the pool" in Outline(made.html).text
    assert f"{math.log(3):.2f} is that of 3 equal" in made.drawings["exploration-entropy"].decode()


def test_the_sample_is_the_same_every_time_and_ends_when_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpl_ray.report.pool.BATCH_SIZE", 8)
    splits = tiny_splits()
    _, _, outcomes = finished(tmp_path, splits, train={"baseline": False})
    whole, again = (label_sample(outcomes[-1].checkpoint, splits) for _ in range(2))
    assert whole is not None
    assert again is not None
    assert (whole.labels == again.labels).all()
    assert len(whole.labels) == len(whole.weights) == 40
    first = label_sample(outcomes[-1].checkpoint, splits, max_seconds=0)
    assert first is not None
    assert len(first.labels) == len(first.targets) == 8
    np.testing.assert_array_equal(first.targets, whole.targets[:8])
    np.testing.assert_allclose(first.confidence, whole.confidence[:8], atol=1e-6)


def test_a_streamed_pool_is_sampled_and_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "pool.parquet", range(400), row_group_size=40)
    files = list_pool(open_location("data.unlabeled", str(tmp_path)), image_column="image", label_column="label")
    pool = StreamedPool((files,), DecodeSettings(image_size=8, channels=3), ("0", "1", "2"))
    config, made, outcomes = finished(tmp_path / "runs", tiny_splits(), train={"baseline": False})
    monkeypatch.setattr("dpl_ray.report.pool.MAX_IMAGES", 80)
    monkeypatch.setattr("dpl_ray.report.pool.ROWS_PER_PIECE", 10)
    found = label_sample(outcomes[-1].checkpoint, dataclasses.replace(tiny_splits(), unlabeled=pool))
    assert found is not None
    assert (len(found.labels), found.pool_size) == (80, 400)
    assert set(found.targets) == {0, 1}
    (tmp_path / "pool.parquet").unlink()
    gone = page_of_run(config, dataclasses.replace(tiny_splits(), unlabeled=pool), made, outcomes)
    assert anchors(gone) == [name for name in SECTIONS if name != "exploration"]


def console_messages(folder: Path, text: str) -> tuple[str, str]:
    """The DOM that headless Chromium makes of a page, and what it writes on the console."""
    file = folder / "page.html"
    file.write_text(text)
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


BROWSER = pytest.mark.skipif(CHROMIUM is None or "CI" in os.environ, reason="needs a browser, and is not for CI")


def page_of(kind: str, tiny_page: tuple[str, Outline, list[str]]) -> tuple[str, list[str], int]:
    """The file, the anchors of its sections, and how many pictures it has at least."""
    if kind == "run":
        text, _, sections = tiny_page
        return text, sections, 21
    if kind == "search":
        built = page_of_a_search()
        return built.html, anchors(built), 7
    cells = [cell(policy, seed, 0.5, (0.3, 0.4)) for policy in ("dpl", "fixmatch") for seed in (0, 1)]
    built = make_comparison_page("first", cells, make_rows(cells, "dpl"), "dpl", {}, {}, "x")
    return built.html, anchors(built), 3


@BROWSER
@pytest.mark.parametrize("kind", ["run", "comparison", "search"])
def test_a_browser_shows_every_section_and_has_nothing_to_complain_of(
    tmp_path: Path, tiny_page: tuple[str, Outline, list[str]], kind: str
) -> None:
    text, sections, num_pictures = page_of(kind, tiny_page)
    shown, complaints = console_messages(tmp_path, text)
    assert complaints == ""
    assert set(sections) <= set(Outline(shown).ids)
    assert len(sections) > 3
    assert shown.count("<img") == text.count("<img") >= num_pictures


@BROWSER
def test_what_a_page_complains_of_is_seen(tmp_path: Path) -> None:
    page = page_of_section("images", Section(title="x", sheets=[]))
    spoiled = page.html.replace('href="data:,"', 'href="//a/b.png"')
    _, complaints = console_messages(tmp_path, spoiled.replace("<h1>", '<img alt="" src="http://127.0.0.1:9/x"><h1>'))
    assert "Content Security Policy" in complaints
