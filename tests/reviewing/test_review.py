"""The command `review` from labels to answers: the page by real keys, what the answers say, and what is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from dpl_ray.commands import cli
from dpl_ray.config.schema import DataConfig
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.reviewing.answers import read_answers
from dpl_ray.reviewing.config import ReviewConfig
from dpl_ray.reviewing.draw import Draw, Drawn
from dpl_ray.reviewing.job import review
from dpl_ray.reviewing.page import Item, write_review
from dpl_ray.runs.splits import write_splits
from dpl_ray.store.records import read_tree
from dpl_ray.store.storage import Storage
from tests.browser import CHROMIUM, CONTROL, Browser, browsing
from tests.builders import tiny_splits
from tests.labeling.jobs import CLASSES, SIZE, label, make_checkpoint, rows, write_images, write_parquet

NUM_FILES, NUM_ROWS, NUM = 120, 140, 200


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a run that has kept what it was trained on: none of the pool."""
    folder = tmp_path_factory.mktemp("run")
    made = make_checkpoint(folder, scale=0.5)
    write_splits(Storage(str(folder)), tiny_splits())
    return made


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and a parquet file, and a file that is no image."""
    folder = tmp_path_factory.mktemp("data") / "pool"
    write_images(folder, range(NUM_FILES))
    write_parquet(folder / "more.parquet", range(NUM_FILES, NUM_FILES + NUM_ROWS), 20)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def labels(checkpoint: str, pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out") / "labels"
    label(checkpoint, pool, output, rows_per_part=100, batch_size=100, max_bad_fraction=0.1)
    return output


@pytest.fixture(scope="module")
def drawn(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A review of NUM images."""
    output = tmp_path_factory.mktemp("drawn") / "review"
    review(labels=str(labels), output=str(output), num=NUM)
    return output


def copy_review(drawn: Path, output: Path) -> list[dict[str, str]]:
    """A copy of a review, and its answers: all as they are proposed."""
    shutil.copytree(drawn, output)
    draw = json.loads((output / "draw.json").read_text())
    return [
        {
            "path": item["sample_id"],
            "label": CLASSES[item["label"]],
            "proposed": CLASSES[item["label"]],
            "probability": str(NUM / (NUM_FILES + NUM_ROWS)),
            "review": draw["review"],
        }
        for item in draw["items"]
    ]


def write_answers(folder: Path, answers: Sequence[dict[str, str]]) -> str:
    with (folder / "answers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(answers[0]))
        writer.writeheader()
        writer.writerows(answers)
    return str(folder / "answers.csv")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium to press keys in")
    with browsing(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_two_hundred_images_are_answered_by_keys_and_nothing_is_lost(
    labels: Path, drawn: Path, tmp_path: Path, browser: Browser
) -> None:
    output = tmp_path / "review"
    proposed = [answer["label"] for answer in copy_review(drawn, output)]
    page = output / "review.html"
    browser.downloads(tmp_path)
    browser.open(page)
    expected = []
    for place, name in enumerate(proposed):
        kind = place % 10
        if kind == 3:  # another class
            other = (CLASSES.index(name) + 1) % 3
            browser.press(str(other + 1))
            expected.append(CLASSES[other])
        elif kind == 5:
            browser.press(" ")
            expected.append("")
        else:
            browser.press("Enter")
            expected.append(name)
        if place == 20:  # a wrong key; back, and the right one
            browser.press(" ")
            browser.press("Backspace")
            assert "Answered: cannot tell" in browser.value("document.getElementById('live').textContent")
            browser.press("z", CONTROL)
        if place == 30:
            browser.press("Backspace")
            browser.press("Backspace")
            browser.press("ArrowRight")
            browser.press(" ")
            expected[-1] = ""
        if place == 100:
            browser.open(page)  # as when the tab was closed
            assert browser.value("document.getElementById('count').textContent") == "101 of 200 answered"
            assert browser.value("document.getElementById('picture').alt") == "Image 102 of 200"
            browser.press("q")  # no class has this key
    assert browser.value("document.getElementById('live').textContent").endswith("Save the answers.")
    browser.press("Tab")
    browser.press("Enter")  # on the button that saves
    browser.wait_for("Browser.downloadProgress", state="completed")
    with (tmp_path / "answers.csv").open() as file:
        saved = list(csv.DictReader(file))
    assert [row["label"] for row in saved] == expected
    assert [row["proposed"] for row in saved] == proposed
    assert not [event for event in browser.events if event.get("method") == "Log.entryAdded"]
    found = review(labels=str(labels), output=str(output), answers=str(tmp_path / "answers.csv"))
    assert found.certificate is not None
    assert found.certificate["error"]["num_wrong"] == sum(a != b for a, b in zip(expected, proposed, strict=True))
    assert found.certificate["num_cannot_tell"] == expected.count("")
    again = tmp_path / "again.html"
    again.write_text(page.read_text().replace(saved[0]["review"], "another-draw"))
    browser.open(again)
    assert browser.value("document.getElementById('count').textContent") == "0 of 200 answered", "kept by its name"


def test_a_phone_has_large_buttons_and_nothing_beside_its_window(
    labels: Path, drawn: Path, tmp_path: Path, browser: Browser
) -> None:
    proposed = [answer["label"] for answer in copy_review(drawn, tmp_path / "review")]
    browser.open(tmp_path / "review" / "review.html")
    browser.value("localStorage.clear()")
    for width, height in ((1280, 800), (390, 844)):
        browser.open(tmp_path / "review" / "review.html", width, height)
        assert browser.value("document.documentElement.scrollWidth") <= width
        sizes = "[...document.querySelectorAll('button')].filter(b => b.offsetParent).map(b => b.offsetHeight)"
        assert min(browser.value(sizes)) >= 44
        unnamed = "[...document.querySelectorAll('button, input')].filter(e => !(e.textContent || e.labels?.length))"
        assert browser.value(f"{unnamed}.length") == 0
        assert browser.value("getComputedStyle(document.querySelector('button')).transitionDuration") == "0.12s"
    browser.tap("#candidates .first")
    browser.tap("#unknown")
    browser.tap("#classes button:nth-child(2)")
    browser.tap("#back")
    assert browser.value("answers.slice(0, 4)") == [CLASSES.index(proposed[0]), -1, 1, None]
    assert browser.value("document.activeElement.id") == "stage", "the next key is one of the page's"
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    assert browser.value("getComputedStyle(document.querySelector('button')).transitionDuration") == "0s"
    browser.call("Emulation.setEmulatedMedia", features=[])


def test_names_come_back_as_they_are(tmp_path: Path, browser: Browser) -> None:
    names, paths = ("=1+1", 'a,"b"', "NA"), ("/a b/é,1.png", '/"x".png', "/<i>.parquet:3")
    items = tuple(Drawn(path, label, 0.5, (), label) for label, path in enumerate(paths))
    draw = Draw("1-2", names, num=3, seed=0, cells=(1,) * 6, num_strata=1, items=items)
    shown = [Item(item.sample_id, "empty", item.label, probability=draw.probability) for item in items]
    page = Storage(str(tmp_path)) / "review.html"
    write_review(page, shown, names, title="x", review=draw.review, command="x")
    browser.downloads(tmp_path)
    browser.open(Path(page.path))
    for key in "312":
        browser.press(key)
    browser.tap("#save")
    browser.wait_for("Browser.downloadProgress", state="completed")
    assert read_answers("answers", str(tmp_path / "answers.csv"), draw) == [2, 0, 1]


def test_what_the_answers_say(labels: Path, drawn: Path, tmp_path: Path) -> None:
    answers = copy_review(drawn, tmp_path / "review")
    for place in (3, 17, 40):
        answers[place]["label"] = next(name for name in CLASSES if name != answers[place]["proposed"])
    answers[50]["label"] = ""
    given = write_answers(tmp_path, answers[:150])
    result = review(labels=str(labels), output=str(tmp_path / "review"), answers=given)
    told = read_tree(Storage(str(tmp_path / "review" / "certificate.json")))
    assert told == json.loads(json.dumps(result.certificate))
    error = told["error"]
    assert (error["num_images"], error["num_answered"], error["num_wrong"]) == (NUM_FILES + NUM_ROWS, 150, 4)
    assert told["num_cannot_tell"] == 1
    assert error["before"]["low"] < error["before"]["estimate"] < error["before"]["high"]
    assert error["after"]["estimate"] == pytest.approx(error["before"]["estimate"] - 3 / 260)
    assert sum(each["num_answered"] for each in told["classes"].values() if each) == 150
    assert sum(told[name]["num_images"] for name in ("selected", "rejected") if told[name]) == 260
    pairs = sorted((answers[place]["proposed"], answers[place]["label"]) for place in (3, 17, 40))
    found = sorted(
        pair for each in told["confusions"] for pair in [(each["proposed"], each["answer"])] * each["number"]
    )
    assert found == pairs
    page = Path(result.page).read_text()
    assert "4 of the\n150 labels" in page
    assert "1 of these are images that nobody could tell" in page
    assert re.search(r"wrong \d\.\d % \[", repr(result))


def test_answers_are_labels_to_train_on_and_an_audit(
    labels: Path, drawn: Path, pool: Path, checkpoint: str, tmp_path: Path
) -> None:
    answers = copy_review(drawn, tmp_path / "review")
    for place, name in ((2, "cat"), (3, "cat"), (5, "bee"), (7, "")):
        answers[place]["label"] = name
    result = review(labels=str(labels), output=str(tmp_path / "review"), answers=write_answers(tmp_path, answers[:100]))
    data = DataConfig(
        name="image_folder", train=result.true_labels, unlabeled=str(pool), labels=str(labels), image_size=SIZE
    )
    splits = load_splits(data, seed=0, uses_unlabeled=False)
    assert splits.class_names == CLASSES
    true = {answer["path"]: answer["label"] for answer in answers[:100] if answer["label"]}
    said = {name: row["class_name"] for name, row in rows(labels).items() if row["selected"]}
    found = splits.labeled.ids.tolist() + splits.test.ids.tolist()
    names = dict(zip(found, np.concatenate([splits.labeled.targets, splits.test.targets]).tolist(), strict=True))
    assert {name: CLASSES[target] for name, target in names.items()} == said | true
    with_audit = {"max_error": 0.2, "audit": result.true_labels, "rows_per_part": 100, "batch_size": 100}
    again = label(checkpoint, pool, tmp_path / "out", max_bad_fraction=0.1, **with_audit)
    assert again.certificate is not None
    assert again.certificate["num_labels"] == 100, "the probabilities are equal"


def change(place: int, **fields: str) -> Callable[[list[dict[str, str]]], None]:
    return lambda answers: answers[place].update(fields)


def add(place: int, **fields: str) -> Callable[[list[dict[str, str]]], None]:
    return lambda answers: answers.append(answers[place] | fields)


MISTAKES: dict[str, tuple[Callable[[list[dict[str, str]]], None], str]] = {
    "not in the labels": (
        change(3, path="/elsewhere/1.png"),
        r"row 4 names /elsewhere/1.png, which is none of",
    ),
    "twice": (add(2, label=""), r"row 201 has another label for .* than a row before; keep the right one"),
    "class": (change(5, label="caat"), r"row 6: caat is not one of the classes ant, bee, cat; did you mean cat\?"),
    "edited label": (
        change(0, proposed="dog"),
        r"row 1 says that dog was proposed for .*, but \w+ was: the",
    ),
    "edited probability": (
        change(9, probability="0.1"),
        r"row 10 says that .* was drawn with probability 0.1, but",
    ),
    "other labels": (change(1, review="0-1"), r"row 2 is an answer to a page of other labels \(0-1, not "),
    "of a model": (
        lambda answers: [each.update(confidence="0.9") for each in answers],
        ".* rows are labels of a model",
    ),
    "left out": (lambda answers: answers.pop(4), r"1 images are left out, as .*, and later ones are answered"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_answers_that_are_refused_cost_nothing(mistake: str, labels: Path, drawn: Path, tmp_path: Path) -> None:
    answers = copy_review(drawn, tmp_path / "review")
    good = write_answers(tmp_path, answers)
    fields = [f"labels={labels}", f"output={tmp_path / 'review'}"]
    review([*fields, f"answers={good}"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "review").iterdir()}
    spoil, message = MISTAKES[mistake]
    spoil(answers)
    with pytest.raises(ValueError, match=rf"^answers=.*/answers.csv: {message}") as error:
        review([*fields, f"answers={write_answers(tmp_path, answers)}"])
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "review").iterdir()} == before


def test_draws_that_are_refused(
    labels: Path, drawn: Path, checkpoint: str, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = copy_review(drawn, tmp_path / "review")
    given = write_answers(tmp_path, answers)
    before = (drawn / "draw.json").read_bytes()
    review(labels=str(labels), output=str(tmp_path / "review"), num=NUM)
    assert (tmp_path / "review" / "draw.json").read_bytes() == before, "the same one again"
    place = f"output={tmp_path / 'review'}"
    label(checkpoint, pool / "more.parquet", tmp_path / "other", rows_per_part=100)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    empty = tmp_path / "empty.csv"
    empty.write_text("path,label\n")
    unfinished = tmp_path / "unfinished"
    label(checkpoint, pool / "more.parquet", unfinished, rows_per_part=100)
    (unfinished / "_report" / "summary.json").unlink()
    for fields, message in (
        (
            [f"labels={labels}", place, "seed=1"],
            r"has a draw of num=200, seed=0 from 260 labels already",
        ),
        (
            [f"labels={tmp_path / 'other'}", place, f"answers={given}"],
            r"is a draw from other labels than labels=",
        ),
        (
            [f"labels={labels}", f"output={tmp_path / 'new'}", f"answers={given}"],
            r"holds no draw; run review without answers first",
        ),
        ([f"labels={labels}", f"output={tmp_path / 'full'}"], r"is there already and holds no review; take another"),
        ([f"labels={pool}"], r"labels=.*: is no output of dpl-ray label \(no _ledger/job.json in it\)"),
        ([f"labels={unfinished}"], r"labels=.*: is not finished \(no _report/summary.json\)"),
        ([f"labels={labels}", place, "answers=none.csv"], r"answers=none.csv: there is no such file"),
        ([f"labels={labels}", place, f"answers={empty}"], r"answers=.*empty.csv: has no answer; open the page"),
        ([f"labels={labels}", place, f"answers={drawn}"], r"answers=.*: there is no such file; give"),
        ([f"labels={labels}", "num=3"], r"num=3: must be greater than or equal to 10"),
    ):
        assert cli.run(cli.load_command("review"), fields) == cli.WRONG_USE
        assert re.match(rf"error: .*{message}", capsys.readouterr().err), message
    moved = pool.rename(pool.parent / "moved")
    with pytest.raises(ValueError, match=r"^pool=.*: none of the 200 drawn images can be read, as .* \(file is"):
        review(labels=str(labels), output=str(tmp_path / "gone"))
    moved.rename(pool)
    assert not (tmp_path / "gone").exists()
    with pytest.raises(ValueError, match="labels is missing"):
        ReviewConfig.load([])
