"""What is in real pools, to train on: in memory and streamed, the same images, and the same bad ones with reasons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpl_ray.config.schema import DataConfig
from dpl_ray.data.dataset import BadImage, ImageSet, Splits
from dpl_ray.data.files.kinds import FOREIGN
from dpl_ray.data.formats.parquet import NOT_PARQUET
from dpl_ray.data.formats.rows import PoolFiles
from dpl_ray.data.images.decode import EMPTY, MISSING, UNREADABLE
from dpl_ray.data.pool.choice import list_unlabeled
from dpl_ray.data.pool.windows import StreamedPool, Windows, read_window
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.jobs.fit import fit
from tests.data.test_pool_files import write_broken_group
from tests.data.test_windows import digits_like
from tests.labeling.test_labeling_real_pools import (
    BAD,
    FOREIGN_FILES,
    GOOD,
    encode,
    picture,
    png,
    with_empty_group,
    write,
)

GOOD_ROWS = {
    "broken group.parquet": (0, 1, 2, 6, 7, 8),
    "cells.parquet": range(len(GOOD)),
    "empty group.parquet": range(4),
    "labels.parquet": range(5),
    "structs.parquet": (0,),
    "wrong labels.parquet": range(2),
}


def write_pool(folder: Path) -> dict[str, str]:
    """Good images beside all that goes wrong; the reason of each that cannot be read."""
    files = GOOD | FOREIGN_FILES | {name: content for name, (content, _) in BAD.items()}
    for name, content in files.items():
        write(folder, name, content)
    write(folder, "text.parquet", b"this is no parquet")
    write(folder, "empty.parquet", b"")
    cells = [*GOOD.values(), *(content for content, _ in BAD.values()), None]
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary())}), folder / "cells.parquet", row_group_size=4)
    whole = (folder / "cells.parquet").read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    write(folder, "broken footer.parquet", whole[:footer] + b"\xff" * 16 + whole[footer + 16 :])
    write(folder, "half.parquet", whole[: len(whole) // 2])
    structs = [{"bytes": png(30), "path": "x"}, {"bytes": None, "path": "y"}, None]
    pq.write_table(pa.table({"image": structs}), folder / "structs.parquet")
    pq.write_table(pa.table({"picture": [png(31), png(32)]}), folder / "missing column.parquet")
    pq.write_table(pa.table({"image": [1, 2, 3]}), folder / "wrong type.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), folder / "none.parquet")
    labels = pa.array(["1", None, "no class", "-1", "0"]).dictionary_encode()
    images = [encode(picture(40), form) for form in ("png", "gif", "bmp", "jpeg", "tiff")]
    pq.write_table(pa.table({"image": images, "label": labels}), folder / "labels.parquet")
    pq.write_table(pa.table({"image": [png(50), png(51)], "label": [0.5, 1.0]}), folder / "wrong labels.parquet")
    with_empty_group(folder / "empty group.parquet")
    write_broken_group(folder / "broken group.parquet")
    reasons = {name: reason for name, (_, reason) in BAD.items()}
    reasons |= {f"cells.parquet:{len(GOOD) + row}": reason for row, (_, reason) in enumerate(BAD.values())}
    reasons |= {f"cells.parquet:{len(cells) - 1}": EMPTY, "structs.parquet:1": MISSING, "structs.parquet:2": EMPTY}
    reasons |= {f"{name}.parquet:0": NOT_PARQUET for name in ("text", "empty", "broken footer", "half")}
    reasons |= {f"missing column.parquet:{row}": "no column image" for row in range(2)}
    reasons |= {f"wrong type.parquet:{row}": "column image is no encoded image" for row in range(3)}
    reasons |= {f"broken group.parquet:{row}": UNREADABLE for row in (3, 4, 5)}
    reasons |= {"gone.png": MISSING, "gone.parquet:0": MISSING, "gone.parquet:1": MISSING}
    return {str(folder / name): reason for name, reason in reasons.items()}


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a pool, of which two files disappear after every listing."""
    folder = tmp_path / "a pool é"

    def list_and_lose(data: DataConfig, class_names: tuple[str, ...] | None) -> PoolFiles:
        write(folder, "gone.png", png(1))
        pq.write_table(pa.table({"image": [png(1), png(2)]}), folder / "gone.parquet")
        found = list_unlabeled(data, class_names)
        (folder / "gone.png").unlink()
        (folder / "gone.parquet").unlink()
        return found

    monkeypatch.setattr("dpl_ray.data.splits.sources.list_unlabeled", list_and_lose)
    return folder


def read_streamed(pool: StreamedPool) -> tuple[ImageSet, list[BadImage]]:
    """All that streaming gives of a pool in one pass, in the order of the files."""
    rows, numbers = pool.read(0, len(pool), seed=0)
    names = dict(zip(numbers.tolist(), (row[0] for row in rows), strict=True))
    window = read_window(pool, Windows(1, len(pool), 1, seed=0), 0, 0, 1)
    ids, first = np.unique(window["ids"], return_index=True)
    images = ImageSet(window["images"][first], window["targets"][first], np.array([names[i] for i in ids.tolist()]))
    found = zip(window["bad"], window["reasons"], strict=True)
    return images, [BadImage(name, reason) for name, reason in found if reason not in ("", FOREIGN)]


def load(folder: Path, pool: Path, mode: str) -> Splits:
    data = digits_like(folder, mode, unlabeled=str(pool), max_bad_fraction=1.0, allow_overlap=True).data
    return load_splits(data, seed=0)


def test_memory_and_stream_give_the_same(tmp_path: Path, pool: Path) -> None:
    reasons = write_pool(pool)
    memory, streamed = load(tmp_path, pool, "memory"), load(tmp_path, pool, "stream")
    assert isinstance(memory.unlabeled, ImageSet)
    assert isinstance(streamed.unlabeled, StreamedPool)
    images, bad = read_streamed(streamed.unlabeled)
    assert memory.unlabeled.ids.tolist() == images.ids.tolist()
    assert memory.unlabeled.targets.tolist() == images.targets.tolist()
    assert np.array_equal(memory.unlabeled.images, images.images)
    assert {image.id: image.reason for image in memory.bad} == reasons
    assert {image.id: image.reason for image in bad} == reasons
    assert len(memory.bad) == len(bad) == len(reasons)
    good = [*GOOD, *(f"{name}:{row}" for name, rows in GOOD_ROWS.items() for row in rows)]
    ids = [sample_id for sample_id in images.ids.tolist() if sample_id.startswith(f"{pool}/")]
    assert sorted(ids) == sorted(str(pool / name) for name in good), "no good image is lost"
    assert len(images) - len(ids) == len(digits_like_rest(tmp_path))
    files = [sample_id.removesuffix(f":{sample_id.rpartition(':')[2]}") for sample_id in ids]
    assert files == sorted(files)
    known = dict(zip(images.ids.tolist(), images.targets.tolist(), strict=True))
    assert [known[f"{pool}/labels.parquet:{row}"] for row in range(5)] == [1, -1, -1, -1, 0]
    assert [known[f"{pool}/wrong labels.parquet:{row}"] for row in range(2)] == [-1, 1]


def digits_like_rest(folder: Path) -> ImageSet:
    """What data.train gives to the pool."""
    rest = load_splits(digits_like(folder, "memory", unlabeled=None).data, seed=0).unlabeled
    assert isinstance(rest, ImageSet)
    return rest


def test_runs_list_the_same_bad_images(tmp_path: Path, pool: Path) -> None:
    reasons = write_pool(pool)
    for mode in ("memory", "stream"):
        fields = {"max_bad_fraction": 1.0, "pool": {"mode": mode, "shuffle_rows": 200}}  # all within one window
        fit(digits_like(tmp_path, mode, unlabeled=str(pool), **fields))
        listed = (tmp_path / "runs" / mode / "bad_images.csv").read_text().splitlines()
        assert sorted(listed[1:]) == sorted(f"{name},{reason}" for name, reason in reasons.items())


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_too_many_stop_a_run(tmp_path: Path, pool: Path, mode: str) -> None:
    write_pool(pool)
    config = digits_like(tmp_path, mode, unlabeled=str(pool), max_bad_fraction=0.1, pool={"mode": mode})
    message = (
        r"^data.max_bad_fraction=0.1: 4 of 14 parquet files of the pool cannot be opened, some 21\.3% of its images: "
        rf"{pool}/broken footer.parquet, {pool}/empty.parquet, .*half.parquet, .*text.parquet; repair or remove them"
    )
    with pytest.raises(ValueError, match=message):
        fit(config)
    for name in ("broken footer", "empty", "half", "text"):
        (pool / f"{name}.parquet").unlink()
    with pytest.raises(ValueError, match=r"data.max_bad_fraction=0.1: \d+ of \d+ images .*cannot be read.*, as /"):
        fit(config)


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_images_that_are_used_otherwise_are_left_out(tmp_path: Path, pool: Path, mode: str) -> None:
    """A pool of the labelled rows, a broken file beside them and one image."""
    write(pool, "text.parquet", b"this is no parquet")
    write(pool, "a.png", png(1))
    config = digits_like(tmp_path, mode)
    (tmp_path / "train.parquet").rename(pool / "train.parquet")
    data = config.data.model_copy(
        update={"train": str(pool / "train.parquet"), "unlabeled": str(pool), "max_bad_fraction": 1.0}
    )
    splits = load_splits(data, seed=0)
    images = splits.unlabeled if mode == "memory" else read_streamed(splits.unlabeled)[0]
    others = {sample_id for part in (splits.labeled, splits.validation, splits.test) for sample_id in part.ids.tolist()}
    assert not others & set(images.ids.tolist())
    rows = {f"{pool / 'train.parquet'}:{row}" for row in range(40)}
    assert others | set(images.ids.tolist()) == rows | {str(pool / "a.png")}
    assert len(others) + len(images) == 41
