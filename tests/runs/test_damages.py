"""Every file of a run that is damaged is named, or what is read of it is what was written; and how much is tried."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import faults
from tests.damages import check_damages
from tests.documents import ROOT


def test_a_flipped_bit_or_a_lost_end_of_any_file_is_named_or_costs_nothing(tmp_path: Path) -> None:
    """150 of them here; `make faults` tries 1,000."""
    counts = check_damages(tmp_path, 150, seed=0)
    assert counts["named"] > 40
    assert counts["told"] > 60
    assert counts["harmless"] < 30


def test_a_round_has_25_kills_and_the_soak_200_of_every_kind(tmp_path: Path) -> None:
    runs = [run for _, of_job in faults.plan(tmp_path) for run in of_job]
    num_nodes = 2  # of a training and of a labelling
    assert sum(map(len, runs)) + num_nodes == 25
    assert sum(len(run) > 1 for run in runs) > 4, "several within one run"
    others = {faults.WORKER, faults.NEWS, faults.READER, faults.DECODER, faults.LABELLER}
    assert {what for run in runs for what in run} == {faults.DRIVER, *others}
    soak = (ROOT / "Makefile").read_text().partition("\nsoak:")[2].partition("\n\n")[0]
    (rounds,) = re.findall(r"benchmarks\.faults --rounds (\d+)", soak)
    assert int(rounds) * 25 == 200
    assert re.findall(r"FUZZ_CASES=(\d+)|fuzz_atheris (\d+)", soak) == [("10000", ""), ("", "10000")]
