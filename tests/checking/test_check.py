"""A check in full of images with every fault that it knows, of images without one, and its short form."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from dpl_ray import CheckResult, check, load_config
from dpl_ray.checking import files, timing
from dpl_ray.checking.checked import Checked, run_checks
from dpl_ray.checking.config import load_checking
from dpl_ray.checking.console import described_time, show_checked
from dpl_ray.checking.findings import Finding, data_findings, quick_findings, similar_names
from dpl_ray.checking.page import headline, make_page
from dpl_ray.checking.sheets import class_sheets, view_rows
from dpl_ray.checking.timing import measure_steps
from dpl_ray.commands import cli
from dpl_ray.config.parse import parse_config
from dpl_ray.config.schema import Config, DataConfig, ViewsConfig
from dpl_ray.data.splits.sources import load_splits
from tests.builders import tiny_config, tiny_set, tiny_splits
from tests.page.test_html import Outline, anchors

ODD = "$x$ [red] <b>"
SIDE = 24


def photo(number: int) -> Image.Image:
    """A smooth picture of random colours, another one for every number."""
    colours = np.random.default_rng(number).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    return Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def save(path: Path, number: int, **options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(number).save(path, **options)
    return path


def write_good(root: Path) -> None:
    """Two classes without a fault: six labelled images and two test images each, and eight in the pool."""
    for index, name in enumerate(("ant", "bee")):
        for number in range(6):
            save(root / "train" / name / f"{number}.png", 100 * index + number)
        for number in range(2):
            save(root / "test" / name / f"{number}.png", 100 * index + 50 + number)
    for number in range(8):
        save(root / "pool" / f"{number}.png", 300 + number)


def configure(root: Path, **data: object) -> Config:
    places = {"train": f"{root}/train", "unlabeled": f"{root}/pool", "test": f"{root}/test", "image_size": SIDE}
    return tiny_config(data={"name": "image_folder"} | places | data)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    write_good(folder)
    return folder


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with every fault that is looked for."""
    folder = tmp_path_factory.mktemp("bad")
    write_good(folder)
    train, test, pool = folder / "train", folder / "test", folder / "pool"
    for number in range(6):
        save(train / "ants" / f"{number}.png", 400 + number)
    save(train / ODD / "only.png", 500)
    for number in range(6, 12):
        save(train / "ant" / "deep" / f"{number}.png", number)
    shutil.copy(train / "ant" / "0.png", train / "bee" / "ant.png")
    shutil.copy(train / "bee" / "1.png", train / "bee" / "again.png")
    shutil.copy(train / "ant" / "1.png", test / "ant" / "leak.png")
    save(test / "bee" / "near.jpg", 102, quality=70)
    shutil.copy(train / "ant" / "2.png", pool / "copy.png")
    shutil.copy(pool / "3.png", pool / "twice.png")
    Image.new("RGB", (SIDE, SIDE), "grey").save(pool / "flat.png")
    for name in ("broken.jpg", "broken too.jpg"):
        (pool / name).write_bytes(b"\xff\xd8\xff")
    (pool / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def checked(bad: Path) -> Checked:
    return run_checks(configure(bad))


def test_every_fault_is_found(checked: Checked, bad: Path) -> None:
    expected = [
        rf"error: 1 test image is a copy of a labelled image, as {bad}/test/ant/leak.png of {bad}/train/ant/1.png; .*",
        r"error: 2 of 46 images cannot be read, as .*/pool/broken too.jpg \(.*\); .* data.max_bad_fraction=0.01",
        r"warning: 1 image under two labels, as .*/ant/0.png \(ant\) and .*/bee/ant.png \(bee\); remove the wrong one",
        r"warning: 1 test image is a near copy of a labelled image, as .*/test/bee/near.jpg of .*/train/bee/2.png; .*",
        r"warning: the classes ant and ants differ in their plural alone; .*",
        r"warning: 12 labelled images of ant, but 1 of \$x\$ \[red\] <b>; .*",
        rf"warning: data.train={bad}/train: 6 images lie in folders below .*; data.classes_by=leaf makes that deep, .*",
        r"note: 1 labelled image is a copy of another labelled image, as .* of .*/bee/1.png; .* keeps one of each",
        r"note: 1 image of the pool is a copy of a labelled image, as .*/pool/copy.png of .*; .* leaves them out",
        r"note: 1 image of the pool is a copy of another image of the pool, as .*/pool/twice.png of .*/pool/3.png; .*",
        r"note: no test image of \$x\$ \[red\] <b>, ants; accuracy says nothing of them",
        r"note: files that are left out: 1 .txt",
        r"note: 1 image is of one colour alone, as .*/pool/flat.png; remove what shows nothing",
    ]
    found = [str(finding) for finding in checked.findings]
    assert len(found) == len(expected), found
    for text, pattern in zip(sorted(found), sorted(expected), strict=True):
        assert re.fullmatch(pattern, text), (text, pattern)
    levels = [finding.level for finding in checked.findings]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert checked.timing is not None


def test_the_page_shows_it(checked: Checked) -> None:
    made = make_page(checked)
    page = Outline(made.html)
    assert anchors(made) == ["findings", "classes", "files", "copies", "views", "time"]
    assert "A training would stop: 2 errors, 5 warnings, 6 notes" in page.text
    assert page.open == []
    for finding in checked.findings:
        assert finding.text in page.text
        assert finding.remedy in page.text
    for text in (
        "PNG, RGB",
        f"{SIDE} x {SIDE}",
        "JPEG, RGB",
        "Near: labelled and test",
        "Exact: labelled and pool",
        ODD,
    ):
        assert text in page.text, text
    assert made.html.count("<img") == 4 + 6 + 6 * 4  # sheets, copies, views
    assert "http:" not in made.html


@pytest.mark.parametrize("width", [80, 60])
def test_the_console_fits(checked: Checked, width: int) -> None:
    file = io.StringIO()
    show_checked(checked, Console(file=file, width=width, force_terminal=True, color_system=None, legacy_windows=False))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    whole = "".join(text.split())
    assert "".join(ODD.split()) in whole
    assert re.search(rf"data\.train,\d+lookedat:\d+PNG,RGB;.*{SIDE}x{SIDE}pixels,inthemiddle{SIDE}x{SIDE}", whole)
    for finding in checked.findings:
        assert "".join(str(finding).split()) in whole


def test_good_images_have_no_finding(good: Path, tmp_path: Path) -> None:
    file = io.StringIO()
    page = tmp_path / "new" / "check.html"
    result = check(configure(good), console=Console(file=file, width=80), output=page)
    assert (result.findings, result.errors, result.page) == ((), (), str(page))
    assert "nothing is wrong with these data" in file.getvalue()
    assert "A training can start: nothing is wrong with these data" in page.read_text()
    assert result.timing is not None
    assert result.timing.seconds == 20 * (
        result.timing.seconds_per_step + (result.timing.seconds_per_baseline_step or 0)
    )
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["check.html", "new"]


def test_a_training_says_the_cheap_part(good: Path, bad: Path) -> None:
    splits = load_splits(configure(good).data, seed=0)
    assert quick_findings(configure(good), splits) == []
    config = configure(bad, allow_overlap=True, max_bad_fraction=0.1)
    with pytest.warns(UserWarning, match="in folders below those of the classes"):
        splits = load_splits(config.data, seed=0)
    texts = [str(finding) for finding in quick_findings(config, splits)]
    assert [text.partition(":")[0] for text in texts] == ["warning", "warning", "warning", "note", "warning"]
    assert texts[-1].startswith("warning: data.allow_overlap=true: 1 test images are labelled ones too")
    digits = parse_config({"data": {"name": "digits", "class_names": [*"012345678", "8s"]}})
    assert quick_findings(digits, tiny_splits()) == []


def test_a_streamed_pool_is_read_in_part(bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpl_ray.checking.checked.MAX_STREAMED", 5)
    monkeypatch.setattr("dpl_ray.checking.checked._ROWS_AT_A_TIME", 2)
    checked = run_checks(configure(bad, pool={"mode": "stream"}))
    assert checked.pool_size == 13
    assert len(checked.splits.unlabeled) in (3, 4, 5)  # type: ignore[arg-type]
    assert "Of the pool, which is streamed," in Outline(make_page(checked).html).text


def test_the_files_that_are_looked_at_are_from_the_whole_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_good(tmp_path)
    for number in range(8):
        save(tmp_path / "pool" / "z" / f"{number}.jpg", 600 + number)
    monkeypatch.setattr(files, "MAX_FILES", 4)
    headers = files.read_headers(configure(tmp_path).data)["data.unlabeled"]
    assert files.kinds(headers) == {"PNG, RGB": 2, "JPEG, RGB": 2}


def test_what_stops_a_training_stops_no_check(good: Path) -> None:
    checked = run_checks(configure(good, unlabeled=None))
    assert checked.timing is None
    assert [finding.level for finding in checked.findings] == ["error"]
    assert "there is no unlabelled image to learn from" in checked.findings[0].text
    assert anchors(make_page(checked)) == ["findings", "classes", "files", "copies", "views"]


def test_size_shape_and_channels_that_do_not_suit_the_files(good: Path, tmp_path: Path) -> None:
    texts = [str(finding) for finding in run_checks(configure(good, image_size=32)).findings]
    assert texts == [
        "note: 24 of 24 files are smaller than data.image_size=32 and are enlarged; a smaller data.image_size trains "
        "faster and loses nothing"
    ]
    for path in good.rglob("*.png"):
        place = tmp_path / path.relative_to(good)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("L").resize((48, 24)).save(place)
    notes = [finding.text for finding in run_checks(configure(tmp_path)).findings]
    assert [text[:20] for text in notes] == ["24 of 24 files are a", "all files are grey"]


def test_the_command_ends_as_a_mistake_where_a_training_would(bad: Path, good: Path, tmp_path: Path) -> None:
    small = ["model.depth=10", "model.width=1", "train.batch_size=2", "train.mu=1", f"output={tmp_path}/page.html"]

    def run(folder: Path, *more: str) -> int:
        fields = [f"data.train={folder}/train", f"data.unlabeled={folder}/pool", f"data.test={folder}/test"]
        return cli.run(cli.load_command("check"), ["data=image_folder", *fields, *small, *more])

    assert run(bad) == cli.WRONG_USE
    assert (tmp_path / "page.html").exists()
    assert run(good) == 0
    for output in (tmp_path, tmp_path / "page"):
        assert run(good, f"output={output}") == cli.WRONG_USE


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["output="], "output="),
        (["outptu=x.html"], "outptu=x.html: there is no field outptu; did you mean output?"),
        (["train.num_stepz=4"], "there is no field train.num_stepz"),
    ],
)
def test_a_wrong_field_is_answered(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_checking(overrides)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("ant", "bee", "cat"), []),
        (("cat", "cats"), [("cat", "cats", "their plural")]),
        (("bus", "buses", "fly", "flies"), [("bus", "buses", "their plural"), ("fly", "flies", "their plural")]),
        (("Cat", "cat"), [("Cat", "cat", "their case")]),
        (("\uff43at", "cat"), [("\uff43at", "cat", "their Unicode form")]),
        (("ice cream", "ice_cream"), [("ice cream", "ice_cream", "blanks, hyphens, underscores or case")]),
        (tuple("abcdefghijklmnopqrstuvwxyz"), []),
        (("0", "1", "10", "11", "-1"), [("1", "-1", "blanks, hyphens, underscores or case")]),
        (("a", "as"), []),
        (("_", "-"), []),
    ],
)
def test_names_that_only_a_computer_tells_apart(names: tuple[str, ...], found: list[tuple[str, str, str]]) -> None:
    assert similar_names(names) == found


def test_pseudo_labels_are_no_labelled_images() -> None:
    splits = tiny_splits(2, num_labeled=12)
    labeled = replace(splits.labeled, targets=np.array([0, 1] + [0] * 10))
    unequal, of_pseudo_labels = (replace(splits, labeled=labeled, num_pseudo_labeled=number) for number in (0, 10))
    assert [found.text for found in data_findings(unequal)] == ["11 labelled images of class0, but 1 of class1"]
    assert not data_findings(of_pseudo_labels)
    assert not data_findings(replace(splits, num_pseudo_labeled=12)), "there are pseudo-labels alone"


def test_the_sheets() -> None:
    labeled = tiny_set("x", 40, 3, 3, 8, seed=0)
    sheets = class_sheets(labeled, 3, DataConfig())
    assert [sheet[:2] for sheet in sheets] == [(0, 14), (1, 13), (2, 13)]
    assert Image.open(io.BytesIO(sheets[0][2])).size == (4 * 8 + 3, 4 * 8 + 3)
    rows = view_rows(labeled, ViewsConfig(crop_padding=0, num_operations=0, cutout=0))
    assert [(target, len(pngs)) for target, pngs in rows] == [(0, 6), (1, 6), (2, 6)]
    for _, pngs in rows:
        image, upright, mirrored = (np.asarray(Image.open(io.BytesIO(png))) for png in pngs[:3])
        assert (upright == image).all()
        assert (mirrored == image[:, ::-1]).all()
    for _, pngs in view_rows(labeled, ViewsConfig(crop_padding=0, num_operations=0, cutout=0, horizontal_flip=False)):
        assert pngs[0] == pngs[1] == pngs[2]


def test_steps_are_measured_and_nothing_is_left_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, float]] = []

    def step(state: object, batch: object, config: Config, workers: object) -> torch.Tensor:
        steps.append((config.policy.name, getattr(config.policy, "threshold", 0.5)))
        torch.rand(3)
        return original(state, batch, config, workers)  # type: ignore[arg-type]

    original = timing.train_step
    monkeypatch.setattr(timing, "train_step", step)
    before = torch.random.get_rng_state()
    measured = measure_steps(tiny_config(policy={"name": "fixmatch"}), tiny_splits(), num_steps=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    # FixMatch counts nothing of the pool at first: later steps, in which it counts most, take longer.
    assert steps == [("fixmatch", 0.95)] * 3 + [("fixmatch", 0.0)] * 3 + [("supervised", 0.5)] * 3
    assert measured.seconds_per_step > 0
    assert measured.peak_bytes > 10**7


def test_words() -> None:
    assert [described_time(seconds) for seconds in (0.25, 40, 119, 125, 5000, 9000, 10**6)] == [
        "0.2 seconds", "40 seconds", "119 seconds", "2.1 minutes", "83 minutes", "2.5 hours", "278 hours",
    ]  # fmt: skip
    assert headline((Finding("note", "x"), Finding("note", "y"))) == "A training can start: 2 notes"
    assert str(Finding("error", "x", "y")) == "error: x; y"
    assert CheckResult((Finding("error", "x"),), None, None).errors == (Finding("error", "x"),)


def test_published_data_keep_their_splits() -> None:
    config = load_config(["data=digits", "model.width=1", "train.batch_size=4"])
    result = run_checks(config)
    assert not [finding for finding in result.findings if finding.level == "error"]
