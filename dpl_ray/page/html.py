"""Pages: one self-contained HTML file of sections, figures and tables, that reads nothing from a network.

    page = Page("my-run", "what it is", [Section("loss", "Loss", paragraph("Cross-entropy, in nats."), ...)])
    file.write(page.render().encode())

What comes in as `str` is text, and is escaped; what these functions return is `Html`, and is not.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Literal

MISSING = "\u2013"  # of a value that is not there


class Html(str):
    """Markup that is made."""

    __slots__ = ()


def markup(part: object) -> Html:
    """Markup as it is, anything else as escaped text."""
    return part if isinstance(part, Html) else Html(html.escape(str(part)))


def element(name: str, *parts: object, **attributes: str | None) -> Html:
    """`<name attribute="...">parts</name>`; a trailing _ of an attribute is dropped, other _ become -."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{''.join(map(markup, parts))}</{name}>")


def paragraph(*parts: object) -> Html:
    return element("p", *parts)


def note(*parts: object) -> Html:
    """A remark in smaller letters."""
    return element("p", *parts, class_="note")


def strong(text: str) -> Html:
    return element("strong", text)


def code(text: str) -> Html:
    return element("code", text)


def link(text: str, address: str) -> Html:
    return element("a", text, href=address)


def image(data: bytes, kind: Literal["svg+xml", "png"], description: str, *, class_: str | None = None) -> Html:
    """A picture within the file; the description is read to those who do not see it."""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Html(f'<img alt="{html.escape(description)}" src="{source}"{f" class={class_}" if class_ else ""}>')


def figure(svg: bytes, title: str, *caption: object) -> Html:
    """A drawing with its title above and, where there is one, its caption below."""
    below = element("figcaption", *caption) if caption else ""
    return element("figure", element("h3", title), image(svg, "svg+xml", title), below)


def drawings(page: str) -> dict[str, bytes]:
    """File name without ending -> SVG, of the figures of a page that was made here: section and title."""
    found: dict[str, bytes] = {}
    section = ""
    pattern = r'<section id="([^"]*)"|<img alt="([^"]*)" src="data:image/svg\+xml;base64,([^"]*)"'
    for anchor, title, svg in re.findall(pattern, page):
        section = anchor or section
        if svg:
            stem = re.sub(r"[^\w]+", "-", f"{section} {html.unescape(title)}".lower()).strip("-")[:100]
            names = chain([stem], (f"{stem}-{number}" for number in count(2)))
            found[next(name for name in names if name not in found)] = base64.b64decode(svg)
    return found


def picture(png: bytes, description: str, *caption: object) -> Html:
    """A small image with its caption, as of a sample; a pixel of it stays a square."""
    return element("figure", image(png, "png", description, class_="pixels"), element("figcaption", *caption))


def grid(parts: Iterable[Html], size: Literal["wide", "medium", "small", "tiny"] = "wide") -> Html:
    """Figures beside each other, as many as there is room for."""
    return element("div", *parts, class_=f"grid {size}")


def facts(values: Mapping[str, object]) -> Html:
    """Name and value, one pair below the other."""
    return element("dl", *(element("div", element("dt", key), element("dd", value)) for key, value in values.items()))


def numbers(values: Sequence[tuple[str, str, str]]) -> Html:
    """Headline numbers: (name, value, what it is of)."""
    cards = [
        element("li", element("span", name, class_="name"), element("b", value), element("span", below, class_="of"))
        for name, value, below in values
    ]
    return element("ul", *cards, class_="numbers")


def banner(sign: str, headline: str, *parts: object) -> Html:
    """The sentence that a page is there for."""
    mark = element("span", sign, class_="sign", aria_hidden="true")
    return element("div", mark, element("div", element("p", headline, class_="headline"), *parts), class_="banner")


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, text_columns: int = 1) -> Html:
    """A table whose first column names the row; the first `text_columns` are set left, numbers right.

    Where it is too wide for the window it is moved sideways, and its caption and its first column stay.
    """

    def align(place: int) -> str | None:
        return None if place < text_columns else "number"

    head = [element("th", _breakable(name), scope="col", class_=align(place)) for place, name in enumerate(columns)]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", _breakable(value), class_=align(place)) for place, value in enumerate(row[1:], start=1)),
        )
        for row in rows
    ]
    made = element("table", element("thead", element("tr", *head)), element("tbody", *body), aria_label=caption)
    # Focusable, so that the keyboard scrolls what is too wide for the window.
    moved = element("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)
    return element("div", element("p", caption, class_="caption"), moved, class_="table")


def _breakable(value: object) -> object:
    """A number that has its interval, deviation or count behind it: there a narrow window may break the line."""
    parts = re.split(r" (?=[\[(±])", value) if isinstance(value, str) and not isinstance(value, Html) else []
    pieces = Html(" ".join(element("span", part) for part in parts))
    return element("span", pieces, class_="pieces") if len(parts) > 1 else value


def folded(summary: str, *parts: object) -> Html:
    """What is shown when it is asked for; printed, it is there."""
    return element("details", element("summary", summary), *parts)


@dataclass(frozen=True, init=False)
class Section:
    """A part of a page, with an anchor of its own."""

    anchor: str
    title: str
    parts: tuple[Html, ...]

    def __init__(self, anchor: str, title: str, *parts: Html) -> None:
        object.__setattr__(self, "anchor", anchor)
        object.__setattr__(self, "title", title)
        object.__setattr__(self, "parts", parts)

    def render(self) -> Html:
        heading = element("h2", self.title, id=f"{self.anchor}-title")
        return element("section", heading, *self.parts, id=self.anchor, aria_labelledby=f"{self.anchor}-title")


@dataclass(frozen=True)
class Page:
    """One file."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    footer: str = ""

    def render(self) -> str:
        """The file's text."""
        links = [element("li", link(section.title, f"#{section.anchor}")) for section in self.sections]
        contents = element("nav", element("ul", *links), aria_label="Contents") if len(links) > 1 else ""
        body = element(
            "body",
            element("header", element("h1", self.title), element("p", self.subtitle), contents),
            element("main", *(section.render() for section in self.sections)),
            element("footer", element("p", self.footer)) if self.footer else "",
        )
        # Nothing but what is in the file may be loaded, whatever came into it.
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        head = (
            '<meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{html.escape(self.title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style>'
        )
        return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n{body}</html>\n'


STYLE = """
:root { --ink: #16181d; --soft: #565c66; --line: #d9dce1; --paper: #fff; --shade: #f4f5f7; --accent: #1d4f91; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 1120px; padding: 2.5rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; letter-spacing: -0.01em; }
header > p { margin: .4rem 0 0; color: var(--soft); max-width: 52rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.3rem; margin: 1.2rem 0 0; padding: .7rem 0; list-style: none;
  border-block: 1px solid var(--line); font-size: .92rem; }
a { color: var(--accent); text-underline-offset: .18em; text-decoration-thickness: 1px; }
section { margin-top: 3rem; scroll-margin-top: 1rem; }
h2 { margin: 0 0 .8rem; font-size: 1.3rem; line-height: 1.3; }
h3 { margin: 0 0 .4rem; font-size: .95rem; line-height: 1.35; overflow-wrap: anywhere; }
p { margin: .6rem 0; max-width: 48rem; }
.note, figcaption { color: var(--soft); font-size: .86rem; line-height: 1.45; }
code { font: .9em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
pre { margin: 0; padding: 1rem; overflow-x: auto; background: var(--shade); font-size: .82rem; line-height: 1.45; }
.banner { display: flex; gap: 1.1rem; padding: 1.1rem 1.3rem; border: 1px solid var(--line);
  border-left: 6px solid var(--ink); border-radius: 4px; background: var(--shade); }
.banner .sign { font-size: 1.9rem; line-height: 1.15; }
.banner p { margin: .3rem 0 0; }
.banner .headline { margin: 0; font-size: 1.3rem; line-height: 1.35; font-weight: 650; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1px; margin: 1.2rem 0;
  padding: 0; list-style: none; border: 1px solid var(--line); border-radius: 4px; overflow: hidden; }
.numbers li { display: flex; flex-direction: column; padding: .8rem 1rem; box-shadow: 0 0 0 1px var(--line); }
.numbers .name { font-size: .86rem; color: var(--soft); }
.numbers b { font-size: 1.55rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
.numbers .of { font-size: .8rem; color: var(--soft); }
.grid { display: grid; gap: 1.8rem 2rem; margin: 1rem 0; }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
.medium { grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 11.5rem), 1fr)); gap: 1rem 1.2rem; }
.tiny { grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 1.1rem .9rem; }
figure { margin: 0; min-width: 0; } figure img { display: block; width: 100%; height: auto; }
.wide > figure { max-width: 40rem; } .small h3 { margin: 0; font-size: .85rem; }
figcaption { margin-top: .4rem; } .tiny figcaption { font-size: .78rem; overflow-wrap: anywhere; }
.pixels { image-rendering: pixelated; border: 1px solid var(--line); background: var(--shade); }
.table { margin: 1.2rem 0; } .grid > .table, .grid > div > .table:first-child { margin-top: 0; }
.caption { margin: 0 0 .2rem; font-weight: 650; font-size: .95rem; line-height: 1.35; }
.scroll { overflow-x: auto; /* a shadow at a side where there is more */
  background: linear-gradient(to right, var(--paper) 1.5rem, transparent) left / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--paper) 1.5rem, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to right, #0003, transparent) left / .8rem 100% no-repeat scroll,
    linear-gradient(to left, #0003, transparent) right / .8rem 100% no-repeat scroll; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; line-height: 22px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px .9rem 5px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 1.5px solid var(--ink); font-weight: 600; vertical-align: bottom; }
tr > :first-child { position: sticky; left: 0; background: var(--paper); /* stays where a table is moved */ }
tbody th { font-weight: 500; overflow-wrap: break-word; max-width: 18rem; } .pieces { white-space: normal; }
.pieces span { white-space: nowrap; }
.number { text-align: right; padding: 5px .2rem 5px 1.1rem; }
td.number { white-space: nowrap; } .grid + h3 { margin-top: 1.8rem; } figcaption code { display: block; }
dl { margin: 1rem 0; } dl > div { display: grid; grid-template-columns: 14rem 1fr; gap: .2rem 1rem; padding: .34rem 0;
  border-bottom: 1px solid var(--line); } dt { color: var(--soft); } dd { margin: 0; }
dt, dd { overflow-wrap: anywhere; min-width: 0; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line); }
footer { color: var(--soft); font-size: .86rem; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media (max-width: 600px) { body { padding: 1.4rem 1rem 3rem; } h1 { font-size: 1.5rem; }
  section { margin-top: 2.3rem; } .small, .numbers { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tiny { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  table { font-size: .8rem; } thead { font-size: .74rem; } th, td { padding-right: .4rem; }
  .number { padding: 5px .1rem 5px .4rem; } tbody th { max-width: 7rem; } table { line-height: 20px; }
  tr > :first-child { box-shadow: 1px 0 var(--line); } tr > :nth-child(2) { padding-left: .5rem; }
  .banner { gap: .8rem; padding: 1rem; } .banner .headline { font-size: 1.1rem; }
  dl > div { grid-template-columns: 1fr; gap: 0; } }
@media print { body { max-width: none; padding: 0; } nav { display: none; } figure, tr { break-inside: avoid; } }
"""
