"""What the result of a job says of itself: a line in Python, a table in a notebook."""

from __future__ import annotations

from abc import ABC, abstractmethod

from markupsafe import Markup

from dpl_ray.page.console import inert


class Result(ABC):
    """The base of results: dataclasses without a `repr` of their own."""

    @abstractmethod
    def _facts(self) -> dict[str, str | None]:
        """What there is to say in short, by name; None is left out."""

    def _told(self) -> list[tuple[str, str]]:
        return [(name, value) for name, value in self._facts().items() if value is not None]

    def __repr__(self) -> str:
        return inert(f"<{type(self).__name__}: {', '.join(f'{name} {value}' for name, value in self._told())}>")

    def _repr_html_(self) -> str:
        row = Markup('<tr><th style="text-align: left">{}</th><td style="text-align: left">{}</td></tr>')
        rows = Markup("").join(row.format(name, value) for name, value in self._told())
        return Markup("<table><caption>{}</caption>{}</table>").format(type(self).__name__, rows)


def percent(share: float | None) -> str | None:
    """A share as text; None of None."""
    return None if share is None else f"{100 * share:.1f} %"
