"""Images of a run that cannot be read: how many there may be, and the list of them in its folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from itertools import islice

from dpl_ray.store.records import csv_text, damaged, from_cell
from dpl_ray.store.storage import Storage

BAD_IMAGES_FILE = "bad_images.csv"
COLUMNS = ("id", "reason")
MAX_LISTED = 100_000  # the list is in memory


def most_bad(fraction: float, num_images: int) -> float:
    """How many of so many images may be unreadable: the share of them, and at least one, but for a share of 0."""
    return max(1.0, fraction * num_images) if fraction else 0.0


def read_bad(folder: Storage) -> dict[str, str]:
    """Sample id -> reason of those listed; none where there is no list.

    Raises:
        ValueError: the file is not as it was written.
    """
    place = folder / BAD_IMAGES_FILE
    if not place.exists():
        return {}
    try:
        names, *rows = csv.reader(io.StringIO(place.read().decode(), newline=""), strict=True)
        if tuple(names) != COLUMNS:
            raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
        return {from_cell(sample_id): reason for sample_id, reason in rows}
    except (ValueError, csv.Error) as error:
        raise damaged(place, error, "remove it: images that are met again are listed again") from None


def write_bad(folder: Storage, bad: Mapping[str, str]) -> None:
    """Write the list anew, of sample id -> reason, the first MAX_LISTED of them."""
    (folder / BAD_IMAGES_FILE).write(csv_text([COLUMNS, *islice(bad.items(), MAX_LISTED)]).encode())
