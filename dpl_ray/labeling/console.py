"""What the console shows of a labelling: what has become of the pool."""

from __future__ import annotations

from rich.table import Table

from dpl_ray.data.files.kinds import FOREIGN
from dpl_ray.labeling.parts import Counts
from dpl_ray.page.console import console_table


def label_table(counts: Counts) -> Table:
    """What has become of the pool."""
    numbers = [("selected", counts.num_selected), ("rejected", counts.num_rejected)]
    for reason, number in counts.unreadable.items():
        numbers.append((f"{'left out' if reason == FOREIGN else 'unreadable'}: {reason}", number))
    rows = [
        (name, f"{number:,}", f"{100 * number / max(1, counts.num_rows):.1f} %")
        for name, number in [*numbers, ("all", counts.num_rows)]
    ]
    return console_table("The pool", ["", "images", "share"], rows)
