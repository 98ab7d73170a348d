"""Pages: text is escaped, and the file needs nothing besides itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from dpl_ray.page.html import (
    Html,
    Page,
    Section,
    banner,
    code,
    element,
    facts,
    figure,
    folded,
    grid,
    note,
    numbers,
    paragraph,
    picture,
    table,
)

VOID = ("meta", "link", "img", "br", "wbr")


class Outline(HTMLParser):
    """What a browser would make of a page: its text, its addresses, and whether all elements end in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.addresses, self.ids, self.names = "", list[str](), list[str](), set[str]()
        self.open: list[str] = []
        self.feed(page)
        self.close()

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


def page_of(text: str) -> Page:
    parts = [
        paragraph(text),
        note(text),
        banner(text, text, code(text)),
        numbers([(text, text, text)]),
        facts({text: text}),
        table(text, [text, text], [[text, text]]),
        grid([figure(b"<svg/>", text, text), picture(b"png", text, text)], "tiny"),
        folded(text, element("pre", text)),
    ]
    return Page(text, text, [Section("first", text, *parts), Section("second", text)], text)


@given(st.text(min_size=1).filter(str.strip))
def test_whatever_the_text_is_the_page_stays_whole(text: str) -> None:
    plain = Outline(page_of("plain").render())
    found = Outline(page_of(text).render())
    assert found.open == []
    assert found.names == plain.names, "no element came out of the text"
    assert found.addresses == plain.addresses
    assert [name for name in found.ids if name] == plain.ids


def test_text_is_shown_as_it_is() -> None:
    text = "<script>alert('1 & 2')</script> \"quoted\""
    made = page_of(text).render()
    assert "<script>" not in made
    plain = Outline(page_of("plain").render()).text.count("plain")
    assert Outline(made).text.count(text) == plain > 20


def test_markup_is_not_escaped_twice() -> None:
    assert element("p", element("b", "1 < 2"), " & ", Html("<i>x</i>")) == "<p><b>1 &lt; 2</b> &amp; <i>x</i></p>"
    assert element("a", "x", href='"', class_=None, aria_label="y") == '<a href="&quot;" aria-label="y">x</a>'


def test_nothing_is_read_from_elsewhere() -> None:
    made = page_of("x").render()
    assert all(address.startswith(("data:", "#")) for address in Outline(made).addresses)
    assert not re.search(r"https?://|@import|url\(", made)
    assert "default-src 'none'" in made


def test_every_link_of_the_contents_has_its_section() -> None:
    found = Outline(page_of("x").render())
    anchors = {address.removeprefix("#") for address in found.addresses if address.startswith("#")}
    assert anchors == {"first", "second"} <= set(found.ids)


def test_the_caption_of_a_table_is_not_moved_with_it_and_an_interval_stays_whole() -> None:
    made = table("What it is", ["a", "b [95 %]"], [["x [1]", "1.0 [0.5, 1.5]"], ["y", Html("<b>2</b> [3]")]])
    assert made.index("What it is</p>") < made.index('class="scroll"') < made.index("<table")
    assert "<span>1.0</span> <span>[0.5, 1.5]</span>" in made
    assert "<b>2</b> [3]</td>" in made, "markup is left alone"
    assert "1.0 [0.5, 1.5]" in Outline(made).text
