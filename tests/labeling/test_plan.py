"""How a pool is cut into inputs and blocks: each row in one block, numbers that stay, sizes that are watched."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpl_ray.data.features.rows import FeatureFiles
from dpl_ray.data.files.location import open_location
from dpl_ray.data.formats.rows import PoolFiles, list_pool
from dpl_ray.labeling import plan as plan_module
from dpl_ray.labeling.plan import BLOCKS_PER_INPUT, Plan, cut_rows, empty_plan, extend_plan, rows_per_block, usual_rows
from tests.labeling.jobs import png, write_images, write_parquet


def listed(folder: Path) -> PoolFiles:
    return list_pool(open_location("pool", str(folder)), image_column="image")


def plan_of(folder: Path, max_rows: int = 4, old: Plan | None = None) -> Plan:
    files = listed(folder)
    return extend_plan(old or empty_plan(files), files, max_rows)


def ids_by_part(plan: Plan) -> dict[str, list[str]]:
    found = {plan.part_name(block): plan.sample_ids(block) for block in range(plan.num_blocks)}
    assert len(found) == plan.num_blocks
    for block in range(plan.num_blocks):
        assert [row[0] for row in plan.read(block)] == plan.sample_ids(block)
        assert len(plan.sample_ids(block)) == plan.num_rows(block)
    return found


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 20), st.integers(0, 20))
def test_blocks_hold_all_rows_and_not_too_many(spans: list[int], usual: int, more: int) -> None:
    most = usual + more
    blocks = cut_rows(spans, usual, most)
    assert sum(blocks) == sum(spans)
    assert all(0 < count <= most for count in blocks)
    ends = {sum(blocks[: index + 1]) for index in range(len(blocks))}
    whole = [sum(spans[: index + 1]) for index, count in enumerate(spans) if count >= usual]
    assert set(whole) <= ends, "a long span ends a block"
    if max(spans, default=0) <= most:
        assert ends - {0} <= {sum(spans[: index + 1]) for index in range(len(spans))}, "no span is cut in vain"
    if max(spans, default=0) <= usual:
        assert all(count <= usual for count in blocks)


def pool_of(size: int, kind: type[PoolFiles] = PoolFiles) -> PoolFiles:
    pool = mock.MagicMock(spec=kind)
    pool.__len__.return_value = size
    return pool


def test_a_pool_has_many_blocks_as_long_as_they_are_not_tiny() -> None:
    rows = {0: 1024, 1024: 1024, 100_000: 1024, 256_000: 2000, 10**6: 7812, 10**7: 8192}
    assert {size: usual_rows(pool_of(size), 8192) for size in rows} == rows
    assert usual_rows(pool_of(10**7), 5) == 5
    assert usual_rows(pool_of(100_000, FeatureFiles), 8192) == 8192


def test_a_small_pool_is_cut_for_many_actors_but_for_large_row_groups(tmp_path: Path) -> None:
    write_images(tmp_path / "images", range(20))
    write_parquet(tmp_path / "a.parquet", range(12), row_group_size=2)
    write_parquet(tmp_path / "b.parquet", range(12), row_group_size=12)
    with mock.patch("dpl_ray.data.formats.rows.ROWS_PER_SPAN", 2):
        files = listed(tmp_path)
    with mock.patch.multiple(plan_module, LEAST_ROWS=2, MANY_BLOCKS=11):
        plan = extend_plan(empty_plan(files), files, 10)
    rows = [[plan.num_rows(block) for block in plan.blocks_of(number)] for number in range(plan.num_inputs)]
    assert rows == [[4] * 3, [6] * 2, [4] * 5]
    assert sum(map(len, ids_by_part(plan).values())) == len(plan) == 44


def test_a_plan_that_was_made_of_larger_blocks_keeps_them(tmp_path: Path) -> None:
    write_images(tmp_path, range(20))
    old = plan_of(tmp_path, 20)
    write_images(tmp_path, range(20, 30))
    with mock.patch.multiple(plan_module, LEAST_ROWS=2, MANY_BLOCKS=10):
        plan = plan_of(tmp_path, 20, old)
    assert [plan.num_rows(block) for block in range(plan.num_blocks)] == [20, *[3] * 3, 1]
    assert list(ids_by_part(plan).items())[:1] == list(ids_by_part(old).items())


def test_every_sample_is_in_one_block(tmp_path: Path) -> None:
    write_images(tmp_path / "images", range(2 * 4 * BLOCKS_PER_INPUT + 3))
    write_parquet(tmp_path / "b.parquet", range(11))
    write_parquet(tmp_path / "a.parquet", range(0))
    plan = plan_of(tmp_path)
    by_part = ids_by_part(plan)
    found = [sample_id for ids in by_part.values() for sample_id in ids]
    assert len(found) == len(set(found)) == len(plan) == 2 * 4 * BLOCKS_PER_INPUT + 3 + 11
    assert plan.num_inputs == 2 + 3
    assert len(plan.blocks_of(0)) == 0, "an empty parquet file"
    assert [len(plan.blocks_of(number)) for number in range(1, 5)] == [3, 16, 16, 1]
    assert plan.input_name(1) == str(tmp_path / "b.parquet")
    assert plan.input_name(4) == f"{tmp_path}/images/0128.png ... {tmp_path}/images/0130.png"


def test_a_saved_plan_is_the_same(tmp_path: Path) -> None:
    write_images(tmp_path / "é images", range(9))
    write_parquet(tmp_path / "b.parquet", range(11))
    plan = plan_of(tmp_path)
    again = Plan.from_bytes(plan.to_bytes(), plan.pool)
    assert ids_by_part(again) == ids_by_part(plan)
    assert plan_of(tmp_path, old=again) is again, "nothing is new"
    nothing = empty_plan(plan.pool)
    assert Plan.from_bytes(nothing.to_bytes(), plan.pool).num_inputs == 0


def test_new_files_are_appended_and_gone_ones_stay(tmp_path: Path) -> None:
    write_images(tmp_path / "images", range(1, 6))
    write_parquet(tmp_path / "b.parquet", range(6))
    old = plan_of(tmp_path)
    before = ids_by_part(old)
    (tmp_path / "images" / "0003.png").unlink()
    (tmp_path / "images" / "0000.png").write_bytes(png(0))
    write_parquet(tmp_path / "a.parquet", range(3))
    new = plan_of(tmp_path, old=Plan.from_bytes(old.to_bytes(), old.pool), max_rows=2)
    after = ids_by_part(new)
    assert {name: after[name] for name in before} == before
    added = [sample_id for name, ids in after.items() if name not in before for sample_id in ids]
    a = tmp_path / "a.parquet"
    assert added == [f"{a}:0", f"{a}:1", f"{a}:2", str(tmp_path / "images" / "0000.png")]
    again = Plan.from_bytes(new.to_bytes(), listed(tmp_path))
    assert ids_by_part(again) == after
    assert again.to_bytes() == new.to_bytes()
    assert plan_of(tmp_path, old=again) is again, "nothing is new"


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, range(3))
    old = plan_of(tmp_path)
    (tmp_path / "0001.png").write_bytes(png(1) + b"more")
    for plan in (old, Plan.from_bytes(old.to_bytes(), listed(tmp_path))):
        with pytest.raises(ValueError, match=r"^pool=.*0001\.png has changed since it was planned .* take another"):
            plan_of(tmp_path, old=plan)


def test_rows_of_a_block_are_bounded_by_memory() -> None:
    assert rows_per_block(8192, 3 * 32 * 32) == 8192
    assert rows_per_block(8192, 3 * 224 * 224) == 445
    assert rows_per_block(8192, 3 * 10_000 * 10_000) == 1
    assert rows_per_block(5, 1 * 4 * 4) == 5
