"""The page on which a person answers what images show: one self-contained file, which saves the answers as a CSV."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from dpl_ray.page.html import render_page
from dpl_ray.reviewing.images import Picture
from dpl_ray.store.storage import Storage

#: Of the CSV that the page saves. `path` and `label` are those of a CSV of `data.train`.
COLUMNS = ("path", "label", "proposed", "probability", "review")


@dataclass(frozen=True)
class Item:
    """An image to be looked at."""

    sample_id: str
    picture: Picture
    label: int | None = None  # class index that is proposed
    confidence: float | None = None
    runners_up: tuple[tuple[int, float | None], ...] = ()  # class index and probability, the likeliest first
    probability: float | None = None  # with which the image was drawn; None: it was not drawn at random
    note: str = ""  # why it is shown


def write_review(
    place: Storage, items: Sequence[Item], class_names: Sequence[str], *, title: str, review: str, command: str
) -> None:
    """Write the page, in the order of the items.

    Args:
        review: names the labels and the draw. The browser keeps answers by it, and every row of the CSV has it.
        command: what reads the answers; shown when all images are answered.
    """
    data: dict[str, Any] = {
        "review": review,
        "columns": COLUMNS,
        "classes": list(class_names),
        "items": [_as_json(item) for item in items],
    }
    script = files("dpl_ray.reviewing").joinpath("review.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    subtitle = f"{len(items):,} images"
    page = render_page(
        "reviewing/review.html", title, subtitle, {}, data=data, script=script, digest=digest, command=command
    )
    place.write(page.html.encode())


def _as_json(item: Item) -> dict[str, Any]:
    picture, reason = item.picture, None
    if isinstance(picture, str):
        source, reason = None, picture
    else:
        kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
        source = f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
    return {
        "id": item.sample_id,
        "picture": source,
        "reason": reason,
        "label": item.label,
        "confidence": item.confidence,
        "others": item.runners_up,
        "probability": item.probability,
        "note": item.note,
    }
