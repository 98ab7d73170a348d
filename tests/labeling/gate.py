"""A labelling that stands still at a number of parts, so that it is never killed too late.

Beside the test file, because Ray's workers import it.
"""

from __future__ import annotations

import time
from pathlib import Path

from dpl_ray.labeling import blocks
from dpl_ray.labeling.parts import Counts
from tests.processes import SECONDS


def num_parts(output: Path) -> int:
    return len(list(output.glob("part-*.parquet"))) if output.exists() else 0


def let_through(output: Path, number: int) -> None:
    """A held labelling into this folder goes on to so many parts."""
    place = _place(output)
    new = place.with_suffix(".new")
    new.write_text(str(number))
    new.replace(place)


def hold() -> None:
    """Hold the labelling of this process, in its actors too; for `Command`."""
    blocks.BlockLabeler = Held  # type: ignore[misc]


class Held(blocks.BlockLabeler):
    """One that labels no block more than is let through."""

    def write(self, block: blocks.DecodedBlock) -> tuple[Counts, int]:
        output, deadline = Path(self.output.path), time.monotonic() + SECONDS
        while num_parts(output) >= int(_place(output).read_text()):
            assert time.monotonic() < deadline, "it was neither let through nor killed"
            time.sleep(0.005)
        return super().write(block)


def _place(output: Path) -> Path:
    return output.parent / "most_parts"
