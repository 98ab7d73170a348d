"""Every file of a run that is damaged is named, or what is read of it is what was written."""

from __future__ import annotations

from pathlib import Path

from tests.damages import check_damages


def test_a_flipped_bit_or_a_lost_end_of_any_file_is_named_or_costs_nothing(tmp_path: Path) -> None:
    """150 of them here; `make faults` tries 1,000."""
    counts = check_damages(tmp_path, 150, seed=0)
    assert counts["named"] > 40
    assert counts["told"] > 60
    assert counts["harmless"] < 30
