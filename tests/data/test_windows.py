"""Streamed pools without Ray: which rows a step takes, resuming, bad images, and whole runs."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpl_ray.cluster.windows import shares_ahead
from dpl_ray.config.parse import parse_policy
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import Splits
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.pool.windows import (
    PoolFeed,
    StreamedPool,
    UnreadablePoolError,
    WindowReader,
    WindowRows,
    Windows,
    read_here,
    read_window,
)
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.jobs.fit import FitResult, fit
from tests.builders import png, tiny_config, write_images
from tests.data.test_pool_files import pool as list_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parquet files of 100, 37 and 1 rows and three images; the pixels say which row it is."""
    folder = tmp_path_factory.mktemp("pool")
    write_images(folder / "a.parquet", range(100), row_group_size=10)
    write_images(folder / "b.parquet", range(100, 137), row_group_size=8)
    write_images(folder / "c.parquet", [137])
    for level in (138, 139, 140):
        (folder / f"d{level}.png").write_bytes(png(level))
    return folder


@pytest.fixture(scope="module")
def pool(folder: Path) -> StreamedPool:
    return StreamedPool((list_files(folder),), DecodeSettings(4, 3), ("0", "1"))


def levels(images: np.ndarray) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def stream(pool: StreamedPool, windows: Windows, num_steps: int, **options: int) -> PoolFeed:
    return PoolFeed(pool, windows, num_steps=num_steps, **{"first_step": 0} | options)


def taken(pool: StreamedPool, windows: Windows, steps: range, **options: int) -> list[list[int]]:
    """Ids of each step."""
    source = stream(pool, windows, steps.stop, first_step=steps.start, **options)
    ids = [source(step)[1].tolist() for step in steps]
    source.close()
    return ids


def test_ids_number_the_rows(pool: StreamedPool) -> None:
    assert len(pool) == 141
    window = read_window(pool, Windows(1, 141, 1, seed=0), 0, 0, 1)
    assert sorted(window["ids"].tolist()) == list(range(141))
    assert levels(window["images"]) == window["ids"].tolist()
    assert window["targets"].tolist() == [i % 2 if i < 138 else -1 for i in window["ids"].tolist()]


@settings(max_examples=12)
@given(batch_size=st.sampled_from([1, 2, 4, 6]), mu=st.integers(1, 5), steps=st.integers(1, 9), seed=st.integers(0, 3))
def test_every_pass_takes_every_image_once(pool: StreamedPool, batch_size: int, mu: int, steps: int, seed: int) -> None:
    """Up to the window that a pass ends in, in which two passes meet."""
    windows = Windows(batch_size, mu, steps, seed)
    num_passes = 2
    num_windows = math.ceil(num_passes * len(pool) / windows.rows)
    ids = [i for step in taken(pool, windows, range(num_windows * steps)) for i in step]
    times = Counter(ids)
    assert len(ids) == num_windows * windows.rows
    assert min(times.values()) >= num_passes
    assert sum(times.values()) - num_passes * len(pool) < windows.rows


def test_a_pass_that_ends_with_a_window_takes_every_image_once(pool: StreamedPool) -> None:
    windows = Windows(batch_size=3, mu=1, steps=47, seed=5)
    ids = taken(pool, windows, range(94))
    for number in (0, 1):
        assert sorted(i for step in ids[47 * number : 47 * number + 47] for i in step) == list(range(141))
    assert ids[:47] != ids[47:], "another order in every pass"
    assert ids[:47] != taken(pool, Windows(3, 1, 47, seed=6), range(47))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> StreamedPool:
    """100 rows, of which a third cannot be read, and 20 that follow each other: some chunks have no image."""
    images = [b"no image" if number % 3 == 0 or 30 <= number < 50 else png(number) for number in range(100)]
    folder = tmp_path_factory.mktemp("damaged")
    write_images(folder / "a.parquet", range(100), row_group_size=10, images=images)
    return StreamedPool((list_files(folder),), DecodeSettings(4, 3), ("0", "1"))


@settings(max_examples=10)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 3, 6]), st.integers(1, 9)), min_size=2, max_size=4))
@pytest.mark.parametrize("name", ["pool", "damaged"])
def test_the_global_batches_are_those_of_one_worker_however_the_number_changes(
    request: pytest.FixtureRequest, name: str, parts: list[tuple[int, int]]
) -> None:
    """Within windows of five steps, and passes of eight to twelve."""
    pool, windows, found = (
        request.getfixturevalue(name),
        Windows(batch_size=6, mu=2, steps=5, seed=1),
        list[list[int]](),
    )
    for world_size, num_steps in parts:
        steps = range(len(found), len(found) + num_steps)
        shares = [taken(pool, windows, steps, rank=rank, world_size=world_size) for rank in range(world_size)]
        found += [list(itertools.chain(*rows)) for rows in zip(*shares, strict=True)]
    assert found == taken(pool, windows, range(len(found)))


@pytest.mark.parametrize("first_step", [1, 4, 5, 13])
def test_a_run_goes_on_exactly(pool: StreamedPool, first_step: int) -> None:
    windows = Windows(batch_size=6, mu=2, steps=5, seed=1)
    assert taken(pool, windows, range(first_step, 17)) == taken(pool, windows, range(17))[first_step:]


def test_rows_of_a_window_are_shuffled(pool: StreamedPool) -> None:
    ids = taken(pool, Windows(batch_size=4, mu=5, steps=7, seed=0), range(7))
    neighbours = sum(b - a == 1 for step in ids for a, b in itertools.pairwise(step))
    assert neighbours < 20, "of 133: the files alone would give more than 100"


def test_every_window_is_shuffled_in_a_way_of_its_own() -> None:
    windows = Windows(batch_size=2, mu=3, steps=4, seed=0)
    orders = [windows.order(number, 0, 1) for number in range(3)]
    for order in orders:
        assert sorted(order.flatten().tolist()) == list(range(windows.rows))
    for first, second in itertools.combinations(orders, 2):
        assert not np.array_equal(first, second)


def test_nothing_is_read_beyond_the_next_window(pool: StreamedPool) -> None:
    read = []

    def reader(pool: StreamedPool, windows: Windows, numbers: range, rank: int, world_size: int):
        for number, rows in zip(numbers, read_here(pool, windows, numbers, rank, world_size), strict=True):
            read.append(number)
            yield rows

    windows = Windows(batch_size=2, mu=2, steps=3, seed=0)
    source = PoolFeed(pool, windows, first_step=4, num_steps=18, read=reader)
    for step in range(4, 9):
        source(step)
    source.close()
    assert read in ([1, 2], [1, 2, 3]), "of 1 to 5: the next one may be on its way"


def test_the_place_of_a_bad_image_is_taken_by_another(tmp_path: Path) -> None:
    write_images(tmp_path / "a.parquet", range(10))
    for name in ("b.png", "c.png"):
        (tmp_path / name).write_bytes(b"no image")
    source = stream(StreamedPool((list_files(tmp_path),), DecodeSettings(4, 3), ("0", "1")), Windows(1, 12, 1, 0), 1)
    images, ids, targets = source(0)
    assert levels(images) == ids.tolist()
    assert targets.tolist() == (ids % 2).tolist()
    assert set(ids.tolist()) == set(range(10)), "no good image is lost"
    assert len(ids) == 12
    found = source.take_bad()
    assert {(Path(image.id).name, image.reason) for image in found} == {
        ("b.png", "not an image"),
        ("c.png", "not an image"),
    }
    assert not source.take_bad()
    source.close()


def test_a_window_without_an_image_takes_those_of_the_next(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(b"no image" if number else png(7))
    pool = StreamedPool((list_files(tmp_path),), DecodeSettings(4, 3), ("0", "1"))
    source = stream(pool, Windows(1, 2, 1, 0), 3)
    assert {level for step in range(3) for level in levels(source(step)[0])} == {7}
    assert len(source.take_bad()) == 5
    source.close()


def test_a_pool_of_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    pool = StreamedPool((list_files(tmp_path),), DecodeSettings(4, 3), ("0", "1"))
    with pytest.raises(UnreadablePoolError, match=r"none of 2 images .* as .*a.png \(not an image\)"):
        stream(pool, Windows(1, 2, 1, 0), 1)(0)


def digits_like(folder: Path, mode: str, **data: object) -> Config:
    """Forty labelled rows of which two a class keep their label, and a pool beside."""
    folder.mkdir(exist_ok=True)
    if not (folder / "train.parquet").exists():
        write_images(folder / "train.parquet", range(40), row_group_size=7)
        write_images(folder / "pool.parquet", range(40, 140), row_group_size=16)
    return tiny_config(
        data={
            "name": "parquet",
            "train": str(folder / "train.parquet"),
            "unlabeled": str(folder / "pool.parquet"),
            "image_size": 8,
            "num_labels_per_class": 2,
            "validation_fraction": 0.5,
            "max_bad_fraction": 0.05,
            "pool": {"mode": mode, "shuffle_rows": 30},
        }
        | data,
        train={"batch_size": 4, "mu": 2, "num_steps": 12, "checkpoint_every": 5, "baseline": False, "log_every": 4},
        run={"storage_path": str(folder / "runs"), "name": mode},
        tracking={"enabled": False},
    )


def streamed_ids(splits: Splits) -> set[str]:
    assert isinstance(splits.unlabeled, StreamedPool)
    rows, _ = splits.unlabeled.read(0, len(splits.unlabeled), seed=0)
    return {row[0] for row in rows}


def test_streaming_splits_as_memory_does(tmp_path: Path) -> None:
    memory, streamed = (load_splits(digits_like(tmp_path, mode).data, seed=3) for mode in ("memory", "stream"))
    for part in ("labeled", "validation", "test"):
        assert np.array_equal(getattr(memory, part).ids, getattr(streamed, part).ids)
        assert np.array_equal(getattr(memory, part).images, getattr(streamed, part).images)
        assert np.array_equal(getattr(memory, part).targets, getattr(streamed, part).targets)
    assert streamed_ids(streamed) == set(memory.unlabeled.ids.tolist())
    assert streamed.fingerprint() == load_splits(digits_like(tmp_path, "stream").data, seed=3).fingerprint()
    assert streamed.fingerprint() != load_splits(digits_like(tmp_path, "stream").data, seed=4).fingerprint()
    window = read_window(streamed.unlabeled, Windows(1, len(streamed.unlabeled), 1, 0), 0, 0, 1)
    assert (window["targets"] >= 0).all(), "true labels are known, for the records"


def test_a_folder_and_a_csv_are_streamed_too(tmp_path: Path) -> None:
    for level in range(20):
        place = tmp_path / "train" / f"class{level % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{level}.png").write_bytes(png(level))
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in sorted(tmp_path.rglob("*.png"))]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(rows))
    for train in (tmp_path / "train", tmp_path / "labels.csv"):
        data = digits_like(tmp_path, "stream", name="image_folder", train=str(train), unlabeled=None).data
        splits = load_splits(data, seed=0)
        in_memory = data.pool.model_copy(update={"mode": "memory"})
        memory = load_splits(data.model_copy(update={"pool": in_memory}), seed=0)
        assert streamed_ids(splits) == set(memory.unlabeled.ids.tolist())
        window = read_window(splits.unlabeled, Windows(1, len(splits.unlabeled), 1, 0), 0, 0, 1)
        assert (np.array(levels(window["images"])) % 2 == window["targets"]).all()


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_a_pool_of_images_and_parquet_is_both(tmp_path: Path, mode: str) -> None:
    config = digits_like(tmp_path, mode, unlabeled=str(tmp_path / "mixed"))
    (tmp_path / "mixed").mkdir()
    write_images(tmp_path / "mixed" / "a.parquet", range(200, 210))
    (tmp_path / "mixed" / "b.png").write_bytes(png(220))
    pool = load_splits(config.data, seed=0).unlabeled
    rest = load_splits(config.data.model_copy(update={"unlabeled": None}), seed=0).unlabeled
    assert len(pool) == len(rest) + 11


def test_auto_streams_what_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = 140 * 3 * 8 * 8
    config = digits_like(tmp_path, "auto")
    monkeypatch.setattr(
        "dpl_ray.data.pool.choice.memory_size", lambda: math.ceil(decoded / config.data.pool.memory_share)
    )
    assert not isinstance(load_splits(config.data, seed=0).unlabeled, StreamedPool)
    monkeypatch.setattr(
        "dpl_ray.data.pool.choice.memory_size", lambda: int((decoded - 10) / config.data.pool.memory_share)
    )
    assert isinstance(load_splits(config.data, seed=0).unlabeled, StreamedPool)
    monkeypatch.setattr("dpl_ray.data.pool.choice.memory_size", lambda: 1)
    with pytest.raises(ValueError, match=r"data.pool.memory_share=0.2: the 140 images .* data.image_size=32"):
        load_splits(digits_like(tmp_path, "auto", image_size=None).data, seed=0)


def breaking(number: int) -> WindowReader:
    """A reader that fails at this window."""

    def breaks(
        pool: StreamedPool, windows: Windows, numbers: range, rank: int, world_size: int
    ) -> Generator[WindowRows, None, None]:
        yield from read_here(pool, windows, range(numbers.start, number), rank, world_size)
        raise OSError("the disk is gone")

    return breaks


def fit_broken_off(config: Config, monkeypatch: pytest.MonkeyPatch) -> FitResult:
    """Broken off where window 3 begins, at step 9 of 12, and going on from step 5, in window 1."""
    broken = config.model_copy(update={"run": config.run.model_copy(update={"name": "broken"})})
    with monkeypatch.context() as patch:
        patch.setattr("dpl_ray.data.pool.windows.read_here", breaking(3))
        with pytest.raises(OSError, match="the disk is gone"):
            fit(broken)
    return fit(broken)


def test_a_streamed_run_that_is_broken_off_ends_as_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = digits_like(tmp_path, "stream")
    whole, again = fit(config), fit_broken_off(config, monkeypatch)
    assert again.metrics["eval/accuracy"] == whole.metrics["eval/accuracy"]
    for name in ("student", "teacher", "policy"):
        files = [(Path(result.checkpoint) / f"{name}.safetensors").read_bytes() for result in (whole, again)]
        assert files[0] == files[1]


@pytest.mark.parametrize("policy", ["dpl", "supervised"])
def test_room_to_read_with_is_asked_for_where_the_pool_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    asked = []
    monkeypatch.setattr("dpl_ray.jobs.fit.check_readers", asked.append)
    fit(digits_like(tmp_path, "stream").model_copy(update={"policy": parse_policy({"name": policy})}))
    assert bool(asked) == (policy == "dpl")


def test_too_many_bad_images_stop_a_streamed_run_with_the_list(tmp_path: Path) -> None:
    config = digits_like(tmp_path, "stream", max_bad_fraction=0.02)
    table = pq.read_table(tmp_path / "pool.parquet").to_pydict()
    table["image"][7:14] = [b"no image"] * 7
    write_images(tmp_path / "pool.parquet", range(40, 140), row_group_size=16, images=table["image"])
    with pytest.raises(ValueError, match=r"data.max_bad_fraction=0.02: \d of 1\d\d images of the pool cannot be read"):
        fit(config)
    listed = (tmp_path / "runs" / "stream" / "bad_images.csv").read_text().splitlines()
    assert listed[0] == "id,reason"
    assert all(line.endswith(",not an image") for line in listed[1:])
    assert len(listed) > 2
    with pytest.raises(
        ValueError, match=r"data.max_bad_fraction=0.02: run.name=stream has found \d images .* to go on"
    ):
        fit(config)
    free = config.data.model_copy(update={"max_bad_fraction": 0.1})
    assert fit(config.model_copy(update={"data": free})).metrics["data/unreadable"] == 7


def test_the_message_names_each_bad_image_once(tmp_path: Path) -> None:
    """However often it has been read: a window takes this pool twice and more."""
    pool = {"mode": "stream", "shuffle_rows": 96}
    config = digits_like(tmp_path, "stream", unlabeled=str(tmp_path / "pool"), max_bad_fraction=0, pool=pool)
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "e.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot be read, as [^ ]*e\.png \(empty\); bad_images\.csv has those"):
        fit(config)


def test_bad_images_of_an_earlier_start_count_where_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window that they were found in is not read again. Those of the test split are not of the pool."""
    digits_like(tmp_path, "stream")
    images = [b"no image" if number % 4 == 0 else png(number) for number in range(100)]
    write_images(tmp_path / "pool.parquet", range(40, 140), row_group_size=16, images=images)
    write_images(tmp_path / "test.parquet", range(4), images=[b"", *map(png, range(200, 203))])
    given = {"num_labels_per_class": None, "test": str(tmp_path / "test.parquet"), "max_bad_fraction": 0.3}
    config = digits_like(tmp_path, "stream", **given)
    whole, again = fit(config), fit_broken_off(config, monkeypatch)
    assert again.metrics["data/unreadable"] == whole.metrics["data/unreadable"]
    listed = (tmp_path / "runs" / "broken" / "bad_images.csv").read_text().splitlines()
    assert len(listed) == 1 + 1 + again.metrics["data/unreadable"]


def test_a_bad_image_is_counted_once_however_often_it_is_read(tmp_path: Path) -> None:
    """A window of 8,192 rows takes this pool many times."""
    config = digits_like(tmp_path, "stream", unlabeled=str(tmp_path / "pool"), pool={"mode": "stream"})
    (tmp_path / "pool").mkdir()
    for number in range(60):
        (tmp_path / "pool" / f"{number}.png").write_bytes(png(number) if number else b"no image")
    (tmp_path / "pool" / "notes").write_bytes(b"no image, and not called one")
    metrics = fit(config).metrics
    assert (metrics["data/unreadable"], metrics["data/left_out"]) == (1, 1)
    listed = (tmp_path / "runs" / "stream" / "bad_images.csv").read_text().splitlines()
    assert listed == ["id,reason", f"{tmp_path / 'pool' / '0.png'},not an image"]


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_a_column_that_no_file_has_is_refused_and_one_that_some_have_not(tmp_path: Path, mode: str) -> None:
    data = digits_like(tmp_path, mode, unlabeled=str(tmp_path / "pool")).data
    (tmp_path / "pool").mkdir()
    pq.write_table(pa.table({"picture": [png(1)]}), tmp_path / "pool" / "a.parquet")
    with pytest.raises(ValueError, match=r"data.image_column=image: .*a.parquet has no such column but picture"):
        load_splits(data, seed=0)
    write_images(tmp_path / "pool" / "b.parquet", [200])
    rest = load_splits(data.model_copy(update={"unlabeled": None}), seed=0).unlabeled
    splits = load_splits(data, seed=0)
    assert len(splits.unlabeled) + len(splits.bad) == len(rest) + 2


def test_streaming_needs_files_and_a_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.pool.mode=stream: data=digits is in memory"):
        tiny_config(data={"pool": {"mode": "stream"}})
    with pytest.raises(ValueError, match=r"^data.pool.foreign=0.5: .*mode=stream; set data.pool.mode=memory"):
        load_splits(digits_like(tmp_path, "stream", pool={"mode": "stream", "foreign": 0.5}).data, seed=0)
    with pytest.raises(ValueError, match=r"data.pool.mode=stream, which takes images of one size"):
        load_splits(digits_like(tmp_path, "stream", image_size=None).data, seed=0)


@pytest.mark.parametrize(
    ("num_cpus", "object_store_bytes", "num_workers", "expected"),
    [
        (2, 1e12, 1, 6),  # three for each CPU
        (16, 1e12, 4, 12),  # of all workers together
        (2, 1e12, 4, 1),  # 1.5, rounded down
        (16, 2000, 1, 9),  # half of the store has 10 shares of 100 bytes, one of them is in use
        (16, 2000, 2, 4),  # for both workers together
        (16, 1999, 1, 8),
        (16, 300, 1, 1),  # too small a store
        (0, 0, 1, 1),  # a cluster that says nothing of itself
    ],
)
def test_shares_are_read_ahead_by_cpus_in_half_of_the_object_store(
    num_cpus: float, object_store_bytes: float, num_workers: int, expected: int
) -> None:
    assert shares_ahead(num_cpus, object_store_bytes, 100, num_workers) == expected


def test_shares_read_ahead_follow_the_cluster_unless_they_are_given() -> None:
    given = [tiny_config(data={"name": "parquet", "train": "t", "pool": pool}) for pool in ({}, {"windows_ahead": 4})]
    assert [Windows.from_config(config).ahead for config in given] == [None, 4]
