"""Text of data is shown as it is: in figures, pages, tables of the console and Markdown."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import weakref
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from rich.console import Console

from dpl_ray.jobs.explain import explain
from dpl_ray.jobs.fit import _note
from dpl_ray.labeling.console import label_table
from dpl_ray.labeling.figure import draw_summary
from dpl_ray.labeling.parts import Counts
from dpl_ray.page.console import show
from dpl_ray.page.markdown import markdown, markdown_table
from dpl_ray.page.plots import curves, draw
from dpl_ray.report.console import result_tables
from dpl_ray.studies.comparison import page as comparison
from dpl_ray.studies.comparison.console import comparison_tables
from dpl_ray.studies.comparison.table import make_rows, to_markdown
from dpl_ray.studies.self_training.folder import Round
from dpl_ray.studies.self_training.report import draw_rounds
from dpl_ray.studies.tuning import page as search
from dpl_ray.studies.tuning import table as trials
from dpl_ray.studies.tuning.console import search_table
from dpl_ray.studies.tuning.space import parse_space
from dpl_ray.studies.tuning.trials import TrialResult
from tests.builders import tiny_splits
from tests.page.test_html import Outline
from tests.report.test_report import finished, page_of_run
from tests.studies.test_comparison_table import cell

pytestmark = pytest.mark.rendered
LONG = "long" * 60
NAMES = ["$x$", r"$\frac{$", "[red]", "[/b]", ":cat:", "<b>", "a|b", "{{x}}", "{x}", "%s", "*_`", "שלום", "_", LONG]
SPACE = parse_space({"policy.cut": {"choice": NAMES}})


def text_of(svgs: list[bytes]) -> str:
    """What a browser reads in drawings."""
    return "\n".join(text for svg in svgs for text in ElementTree.fromstring(svg).itertext())


def svgs_of(page: str) -> list[bytes]:
    return [base64.b64decode(found) for found in re.findall(r"data:image/svg\+xml;base64,([^\"]*)", page)]


def printed(*shown: Any) -> str:
    """On a console that reads markup and emoji, as rich's does by itself."""
    console = Console(file=io.StringIO(), width=400)
    for each in shown:
        show(console, each) if isinstance(each, str) else console.print(each)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Place -> what it shows of a training, a comparison and a search whose names are NAMES."""
    splits = dataclasses.replace(tiny_splits(len(NAMES), num_labeled=28), class_names=tuple(NAMES))
    config, folder, outcomes = finished(tmp_path_factory.mktemp("$runs$") / "[b]", splits, train={"num_steps": 1})
    report = page_of_run(config, splits, folder, outcomes).html
    thresholds = {"over": dict.fromkeys(NAMES, 0.5), "under": dict.fromkeys(NAMES, 0.25)}
    cells = [cell(name, seed, 0.5, (0.3, 0.4)) for name in NAMES for seed in (0, 1)]
    rows = make_rows(cells, NAMES[0])
    compared = comparison.make_page("$n$", cells, rows, NAMES[0], {"data": "<b>"}, {"a": "[/b]"}, "x").html
    ranked = [TrialResult(place, {"policy.cut": name}, "finished", [(1, 0.5)]) for place, name in enumerate(NAMES)]
    searched = search.make_page("$n$", ranked, SPACE, "a|b", "x", {"data": "<b>"}, {"trial-0099": "[/b]"}).html
    return {
        "report": Outline(report).text,
        "figures of the report": text_of(svgs_of(report)),
        "comparison": Outline(compared).text,
        "figures of the comparison": text_of(svgs_of(compared)),
        "search": Outline(searched).text,
        "figures of the search": text_of(svgs_of(searched)),
        "console of a training": printed(*result_tables("dpl", {}, None, thresholds)),
        "console of a comparison": printed(*comparison_tables(rows, NAMES[0])),
        "console of a search": printed(search_table(ranked, SPACE)),
        "console of a labelling": printed(label_table(Counts([1], [1], dict.fromkeys(NAMES, 1)))),
        "lines": printed(*NAMES),
        "Markdown of a comparison": to_markdown(rows, NAMES[0], []),
        "Markdown of a search": trials.to_markdown(ranked, SPACE, "a|b", {}),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_wherever_it_is_shown(texts: dict[str, str], name: str) -> None:
    for place, text in texts.items():
        if name == LONG and place.startswith("figures"):
            assert re.search(r"long\w*…\w*long", text), place
        elif place.startswith("Markdown"):
            assert f"| {markdown(name)} " in text, place
            assert markdown(name).replace("\\", "") == name.replace("\\", "")
        else:
            assert name in text, place


def test_signs_of_markdown_are_escaped_and_those_within_words_are_not() -> None:
    names = [
        "a|b",
        "<b>",
        "*x*",
        "`x`",
        "$x$",
        "[a](b)",
        ":cat:",
        "_x_",
        "optim.learning_rate",
        "dpl(rule=band) [95 %]",
    ]
    assert list(map(markdown, names)) == [
        *(r"a\|b", r"\<b>", r"\*x\*", r"\`x\`", r"\$x\$", r"[a\](b)", r"\:cat:", r"\_x\_"),
        *("optim.learning_rate", "dpl(rule=band) [95 %]"),
    ]
    assert markdown_table(["a", "b"], [["1\n2", "|"]]) == ["| a | b |", "| --- | --- |", r"| 1 2 | \| |"]


def test_png_figures_draw_any_name() -> None:
    assert mpl.rcParams["text.parse_math"], "formulas are on, as by default"
    numbers, title = [1] * len(NAMES), " ".join(NAMES)
    counts = Counts(numbers, numbers, dict.fromkeys(NAMES, 4))
    rounds = [Round(number, "", "", 1, 2, 0, 1, {"round/accuracy": 0.5}) for number in range(2)]
    for png in (draw_summary(counts, NAMES, title), draw_rounds(rounds, title)):
        assert png.startswith(b"\x89PNG")


def test_a_drawing_is_freed_at_once() -> None:
    figures: list[weakref.ref[Any]] = []

    def plot(axes: Any) -> None:
        curves(axes, {"a": [(1, 2.0), (2, 3.0)], "b": [(1, 1.0)]})
        figures.append(weakref.ref(axes.figure))

    assert draw(plot).startswith(b"<?xml")
    assert figures[0]() is None


def test_an_image_is_explained_whatever_it_and_its_class_are_called(tmp_path: Path) -> None:
    from PIL import Image

    splits = dataclasses.replace(tiny_splits(2), class_names=("$x$ {{x}}", "[/b] <b>"))
    _, folder, _ = finished(tmp_path, splits, train={"num_steps": 1, "baseline": False})
    image = tmp_path / "<b> $x$ {{x}}.png"
    Image.new("RGB", (8, 8)).save(image)
    found = explain(str(folder.storage), image)
    text = Outline(Path(found.page).read_text()).text
    assert found.pseudo_label in splits.class_names
    for words in (*splits.class_names, str(image)):
        assert words in text


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_in_the_description_that_mlflow_shows(name: str) -> None:
    assert markdown(f'Collapsed: 90 % are "{name}"') in _note([f'Collapsed: 90 % are "{name}"', "It helped"])
