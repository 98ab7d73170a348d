"""Pages by Jinja2: one self-contained HTML file with drawings and tables, that reads nothing from a network.

A room has the template of its page beside its code. It extends `page/page.html`, has a block for each section, and
uses the macros of `page/parts.html`; the stylesheet is `page/style.css`. What a template is given is text, and is
escaped.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dpl_ray.store.storage import Storage

MISSING = "\u2013"  # of a value that is not there
FIGURES = "figures"  # folder of the drawings, beside the page


class Table(NamedTuple):
    """A table whose first column names the row; the first columns are set left, the others, of numbers, right."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_text_columns: int = 1


class Section(SimpleNamespace):
    """What a template is told of a section: its title, its drawings (name -> SVG), and values of its own."""

    title: str
    drawings: Mapping[str, bytes] = {}


@dataclass(frozen=True)
class Page:
    """A page, and the drawings that are in it: file name without ending -> SVG."""

    html: str
    drawings: dict[str, bytes]

    def write(self, file: Storage) -> None:
        """Write the page, and its drawings into the folder `figures` beside it."""
        for name, svg in self.drawings.items():
            (file.parent / FIGURES / f"{name}.svg").write(svg)
        file.write(self.html.encode())


def render_page(template: str, title: str, subtitle: str, sections: Mapping[str, Section], **values: Any) -> Page:
    """
    Args:
        template: file below dpl_ray/.
        sections: anchor -> what the block of that name (with _ for -) is told, in their order.
        values: what the template is told besides.
    """
    made = _environment().get_template(template).render(title=title, subtitle=subtitle, sections=sections, **values)
    drawings = {
        f"{anchor}-{name}": svg for anchor, section in sections.items() for name, svg in section.drawings.items()
    }
    return Page(made, drawings)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dpl_ray", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "base64": lambda data: base64.b64encode(data).decode(),
        "count": "{:,}".format,
        "percent": lambda share: f"{100 * share:.1f} %",
        "points": lambda share: f"{100 * share:+.1f}",
        "pieces": _pieces,
    }
    return environment


def _pieces(text: str) -> Markup | str:
    """A number that has its interval, deviation or count behind it: there a narrow window may break the line."""
    parts = [] if isinstance(text, Markup) else re.split(r" (?=[\[(±])", text)
    pieces = Markup(" ").join(Markup("<span>{}</span>").format(part) for part in parts)
    return Markup('<span class="pieces">{}</span>').format(pieces) if len(parts) > 1 else text
