"""Pages: text is escaped, and the file needs nothing besides itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import ChoiceLoader, DictLoader
from markupsafe import Markup

from dpl_ray.page import html
from dpl_ray.page.html import Page, Section, Table, render_page
from dpl_ray.store.storage import Storage

VOID = ("meta", "link", "img", "br", "wbr")


class Outline(HTMLParser):
    """What a browser would make of a page: its text, its addresses, and whether all elements end in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.addresses, self.ids, self.names = "", list[str](), list[str](), set[str]()
        self.open: list[str] = []
        self.feed(page)
        self.close()
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


PARTS = """
{% extends "page/page.html" %}
{% from "page/parts.html" import banner, facts, figure, folded, picture, table %}
{% block first %}
<p>{{ text }}</p>
{% call banner(text, text) %}<code>{{ text }}</code>{% endcall %}
{{ facts({text: text, text ~ "2": text}, codes=(text,)) }}
{{ table(sections.first.table) }}
{{ figure(sections.first.drawings.x, text, text) }}
{{ picture(sections.first.drawings.x, text, text, text) }}
{% call folded(text) %}<pre>{{ text }}</pre>{% endcall %}
{% endblock %}
{% block second %}{{ text|pieces }}{% endblock %}
"""


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[None]:
    """A template of all parts, as studies/parts.html."""
    environment = html._environment()
    loader = environment.loader
    environment.loader = ChoiceLoader([DictLoader({"parts-of-all.html": PARTS}), loader])  # type: ignore[list-item]
    yield
    environment.loader = loader


def page_of(text: str, table: Table | None = None) -> Page:
    drawings = {"x": b"<svg/>"}
    sections = {
        "first": Section(title=text, drawings=drawings, table=table or Table(text, [text, text], [[text, text]])),
        "second": Section(title=text),
    }
    return render_page("parts-of-all.html", text, text, sections, text=text)


def anchors(page: Page) -> list[str]:
    """Of the sections, in their order."""
    return re.findall(r'<section id="([^"]*)"', page.html)


@given(st.text(min_size=1).filter(str.strip))
def test_whatever_the_text_is_the_page_stays_whole(text: str) -> None:
    plain = Outline(page_of("plain").html)
    found = Outline(page_of(text).html)
    assert found.open == []
    assert found.names == plain.names, "no element came out of the text"
    assert found.addresses == plain.addresses
    assert [name for name in found.ids if name] == plain.ids


def test_text_is_shown_as_it_is() -> None:
    text = "<script>alert('1 & 2')</script> \"quoted\""
    made = page_of(text).html
    assert "<script>" not in made
    plain = Outline(page_of("plain").html).text.count("plain")
    assert Outline(made).text.count(text) == plain > 20


def test_nothing_is_read_from_elsewhere() -> None:
    made = page_of("x").html
    assert all(address.startswith(("data:", "#")) for address in Outline(made).addresses)
    assert not re.search(r"https?://|@import|url\(", made)
    assert "default-src 'none'" in made


def test_every_link_of_the_contents_has_its_section() -> None:
    found = Outline(page_of("x").html)
    anchors = {address.removeprefix("#") for address in found.addresses if address.startswith("#")}
    assert anchors == {"first", "second"} <= set(found.ids)


def test_the_caption_of_a_table_is_not_moved_with_it_and_an_interval_stays_whole() -> None:
    rows = [["x [1]", "1.0 [0.5, 1.5]"], ["y", Markup("<b>2</b> [3]")]]
    made = page_of("text", Table("What it is", ["a", "b [95 %]"], rows)).html
    assert made.index("What it is</p>") < made.index('class="scroll"') < made.index("<table")
    assert "<span>1.0</span> <span>[0.5, 1.5]</span>" in made
    assert "<b>2</b> [3]</td>" in made, "markup is left alone"
    assert "1.0 [0.5, 1.5]" in Outline(made).text


def test_a_page_is_written_with_its_drawings_beside_it(tmp_path: Path) -> None:
    made = page_of("x")
    made.write(Storage(str(tmp_path)) / "page.html")
    assert (tmp_path / "page.html").read_text() == made.html
    assert [(file.name, file.read_bytes()) for file in (tmp_path / "figures").iterdir()] == [("first-x.svg", b"<svg/>")]
