"""The ledger of a labelling: what it holds of many parts, and parts that go while it goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.ledger import PARTS_EACH, memory, plan_of
from dpl_ray.labeling.ledger import Ledger, LedgerError
from dpl_ray.labeling.parts import Counts, make_part, write_part

MOST_BYTES = 30  # some 15, and what is there once


def test_a_part_costs_a_few_bytes_whatever_is_done_of_it(tmp_path: Path) -> None:
    numbers = (2, 12)
    few, many = (memory(plan_of(number, str(tmp_path)), str(tmp_path / str(number))) for number in numbers)
    for name, (held, _) in many.items():
        each = (held - few[name][0]) / (numbers[1] - numbers[0]) / PARTS_EACH
        assert each <= MOST_BYTES, f"{name}: {each:.0f} bytes a part"


def test_a_part_that_goes_while_its_input_is_labelled_is_named(tmp_path: Path) -> None:
    plan = plan_of(1, str(tmp_path))

    def write(ledger: Ledger, block: int) -> tuple[Counts, int]:
        nothing = np.zeros(0, np.int64)
        columns = dict.fromkeys(("pseudo_label", "confidence", "selected"), nothing) | {"selected": nothing > 0}
        rows = plan.num_rows(block)
        table, counts = make_part(["x"] * rows, nothing, dict.fromkeys(range(rows), "truncated"), columns, ("a", "b"))
        return counts, write_part(ledger.storage / plan.part_name(block), table)

    first = Ledger(str(tmp_path / "out"), {}, 2)
    first.begin(plan.pool, 445)
    for block in range(2):
        first.add(block, *write(first, block))
    ledger = Ledger(str(tmp_path / "out"), {}, 2)
    ledger.begin(plan.pool, 445)
    *others, last = ledger.missing.tolist()
    assert [*others, last] == list(range(2, PARTS_EACH))
    for block in others:
        ledger.add(block, *write(ledger, block))
    (tmp_path / "out" / plan.part_name(1)).unlink()
    with pytest.raises(LedgerError, match=r"part-000000-00001\.parquet: is gone or damaged since the start"):
        ledger.add(last, *write(ledger, last))
