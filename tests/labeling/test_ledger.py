"""The ledger of a labelling: what it holds of many parts, parts that go while it goes on, and where it may stop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from benchmarks import paper
from benchmarks.ledger import BOUND, PARTS_EACH, ROWS, memory, plan_of
from dpl_ray.data.files.location import open_location
from dpl_ray.data.formats.rows import list_pool
from dpl_ray.labeling.ledger import Ledger, LedgerError
from dpl_ray.labeling.parts import Counts, make_part, write_part
from tests.labeling.jobs import write_images, write_parquet
from tests.store.test_crashes import every_state

MOST_BYTES = 1e6 * BOUND * ROWS / paper.NUM_IMAGES  # of a part: 22, so that 2.2 million stay below the bound


def test_a_part_costs_a_few_bytes_whatever_is_done_of_it(tmp_path: Path) -> None:
    memory(plan_of(2, str(tmp_path)), str(tmp_path / "first"))  # what is imported and kept once is there
    numbers = (2, 62)
    few, many = (memory(plan_of(number, str(tmp_path)), str(tmp_path / str(number))) for number in numbers)
    for name, (held, _) in many.items():
        each = (held - few[name][0]) / (numbers[1] - numbers[0]) / PARTS_EACH
        assert each <= MOST_BYTES, f"{name}: {each:.0f} bytes a part"


def write_unread(ledger: Ledger, block: int) -> tuple[Counts, int]:
    """The part of a block none of whose images can be read."""
    nothing, ids = np.zeros(0, np.int64), ledger.plan.sample_ids(block)
    columns = dict.fromkeys(("pseudo_label", "confidence", "selected"), nothing) | {"selected": nothing > 0}
    table, counts = make_part(ids, nothing, dict.fromkeys(range(len(ids)), "truncated"), columns, ("a", "b"))
    return counts, write_part(ledger.storage / ledger.plan.part_name(block), table)


def test_a_part_that_goes_while_its_input_is_labelled_is_named(tmp_path: Path) -> None:
    plan = plan_of(1, str(tmp_path))

    first = Ledger(str(tmp_path / "out"), {}, 2)
    first.begin(plan.pool, 445)
    for block in range(2):
        first.add(block, *write_unread(first, block))
    ledger = Ledger(str(tmp_path / "out"), {}, 2)
    ledger.begin(plan.pool, 445)
    *others, last = ledger.missing.tolist()
    assert [*others, last] == list(range(2, PARTS_EACH))
    for block in others:
        ledger.add(block, *write_unread(ledger, block))
    (tmp_path / "out" / plan.part_name(1)).unlink()
    with pytest.raises(LedgerError, match=r"part-000000-00001\.parquet: is gone or damaged since the start"):
        ledger.add(last, *write_unread(ledger, last))


def test_labels_are_there_once_wherever_the_process_or_the_machine_stopped(tmp_path: Path) -> None:
    """Parts, the plan and the other books, as tests/crashes.py says: two inputs of two parts each."""
    write_images(tmp_path / "pool", range(4))
    write_parquet(tmp_path / "pool" / "a.parquet", range(4, 8), row_group_size=2)
    listed = list_pool(open_location("pool", str(tmp_path / "pool")), image_column="image")
    (root := tmp_path / "root").mkdir()
    found_done = set[int]()

    def go_on(folder: Path) -> int:
        """Parts that were there; raises unless all are there in the end, and agree with the books."""
        ledger = Ledger(str(folder), {}, 2)
        ledger.begin(listed, 2)
        done = ledger.plan.num_blocks - len(ledger.missing)
        for block in ledger.missing.tolist():
            ledger.add(block, *write_unread(ledger, block))
        assert ledger.check().num_rows == len(list(ledger.bad_rows())) == 8
        return done

    def check(when: str, place: Path) -> None:
        found_done.add(go_on(place))
        ids = ds.dataset(sorted(map(str, place.glob("part-*.parquet")))).to_table()["sample_id"].to_pylist()
        assert len(ids) == len(set(ids)) == 8, when

    number = every_state(root, lambda _: go_on(root), check)
    assert number > 25
    assert found_done == {0, 1, 2, 3, 4}
