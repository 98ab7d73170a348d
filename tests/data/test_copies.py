"""Copies in the user's own files: what is refused, what is left out, and what stays as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dpl_ray.config.schema import DataConfig
from dpl_ray.data.dataset import UNLABELED, Copies, ImageSet, Source, Splits
from dpl_ray.data.splits.copies import describe_copies, pixel_hashes, without_copies
from dpl_ray.data.splits.split import split
from tests.data.test_sources import CLASSES, all_labels, fails, load, png, write_folder, write_parquet, write_pool


def copy(path: Path, to: Path) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(path, to))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Thirty labelled images in `train`, three in `test`, five in `pool`: all are different."""
    write_folder(tmp_path / "train")
    write_pool(tmp_path / "pool")
    for index, name in enumerate(CLASSES):
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "0.png").write_bytes(png(190 + index))
    return tmp_path


def sizes(splits: Splits) -> tuple[int, ...]:
    return tuple(len(part) for part in (splits.labeled, splits.unlabeled, splits.validation, splits.test))  # type: ignore[arg-type]


def test_without_copies_nothing_changes(folders: Path) -> None:
    fields = {"train": folders / "train", "unlabeled": folders / "pool", "uses_unlabeled": True}
    for more in ({"test": folders / "test"}, {"num_labels_per_class": 3, "validation_fraction": 0.4}):
        splits, as_is = load(**fields, **more), load(**fields, **more, allow_overlap=True)  # type: ignore[arg-type]
        assert splits.copies == as_is.copies == Copies()
        assert splits.fingerprint() == as_is.fingerprint()


def test_a_copy_of_a_test_image_among_the_labelled_is_refused(folders: Path) -> None:
    copied = copy(folders / "test" / "ant" / "0.png", folders / "train" / "ant" / "z.bin")
    fields = {"train": folders / "train", "test": folders / "test"}
    fails(
        rf"^data.test={folders}/test: 1 of its 3 images are copies of labelled ones, as {folders}/test/ant/0.png of "
        rf"{copied}, and accuracy on them is false; remove them on one side, or set data.allow_overlap=true$",
        **fields,
    )
    splits = load(**fields, allow_overlap=True)
    assert (len(splits.labeled), splits.copies.num_test) == (31, 1)
    data = DataConfig(name="image_folder", allow_overlap=True)
    assert describe_copies(splits.copies, data) == (
        "data.allow_overlap=true: 1 test images are labelled ones too; accuracy may be false"
    )


def test_a_copy_under_another_size_and_format_is_one_where_training_reads_the_same(folders: Path) -> None:
    (folders / "train" / "bee" / "large.png").write_bytes(png(190, (8, 8)))  # of test/ant/0.png, 4 x 4
    fields = {"train": folders / "train", "test": folders / "test"}
    fails("1 of its 3 images are copies", **fields, image_size=4)
    (folders / "train" / "bee" / "large.png").write_bytes(png(77, (8, 8)))
    assert load(**fields, image_size=4).copies == Copies()


def test_copies_in_the_pool_are_left_out_and_counted(folders: Path) -> None:
    copy(folders / "train" / "ant" / "0.png", folders / "pool" / "a.png")
    copy(folders / "test" / "bee" / "0.png", folders / "pool" / "b.png")
    copy(folders / "pool" / "0.png", folders / "pool" / "c.png")  # of another one of the pool: stays
    fields = {"train": folders / "train", "test": folders / "test", "unlabeled": folders / "pool"}
    splits = load(**fields, uses_unlabeled=True)
    assert (sizes(splits), splits.copies) == ((30, 6, 0, 3), Copies(num_pool=2))
    assert describe_copies(splits.copies, DataConfig()) == "copies left out: 2 in the pool, of labelled or test images"
    as_is = load(**fields, uses_unlabeled=True, allow_overlap=True)
    assert (sizes(as_is), as_is.copies) == ((30, 8, 0, 3), Copies())


def test_a_pool_of_nothing_but_copies_is_refused(folders: Path) -> None:
    shutil.rmtree(folders / "pool")
    copy(folders / "train" / "ant" / "0.png", folders / "pool" / "a.png")
    fields = {"train": folders / "train", "unlabeled": folders / "pool"}
    fails(r"no unlabelled image to learn from \(1 copies of .* are left out\)", **fields, uses_unlabeled=True)


@pytest.mark.parametrize("seed", range(3))
def test_an_image_that_is_there_twice_is_on_one_side_of_the_splits(folders: Path, seed: int) -> None:
    for name in CLASSES:
        for number in range(10):
            copy(folders / "train" / name / f"{number}.png", folders / "train" / name / f"{number}b.png")
    splits = load(train=folders / "train", validation_fraction=0.3, num_labels_per_class=4, seed=seed)
    assert all_labels(splits) == {50 * c + n: c for c in range(3) for n in range(10)}
    assert (sizes(splits), splits.copies) == ((9, 12, 3, 6), Copies(num_labeled=30))
    assert describe_copies(splits.copies, DataConfig()) == "copies left out: 30 of labelled images"


def test_every_seed_has_the_same_images(folders: Path) -> None:
    # A comparison trains several seeds and demands it.
    copy(folders / "train" / "ant" / "0.png", folders / "train" / "ant" / "x.png")
    copy(folders / "train" / "bee" / "0.png", folders / "pool" / "x.png")
    fields = {"train": folders / "train", "unlabeled": folders / "pool", "num_labels_per_class": 1}
    found = {load(**fields, uses_unlabeled=True, seed=seed).seedless_fingerprint() for seed in range(4)}  # type: ignore[arg-type]
    assert len(found) == 1


def test_an_image_under_two_labels_stays_and_is_named(folders: Path) -> None:
    path = copy(folders / "train" / "ant" / "0.png", folders / "train" / "cat" / "a.png")
    splits = load(train=folders / "train", test=folders / "test")
    assert len(splits.labeled) == 31
    assert splits.copies.conflicts == ((str(folders / "train" / "ant" / "0.png"), "ant", str(path), "cat"),)


def test_streaming_compares_what_it_reads(folders: Path) -> None:
    fields = {"unlabeled": folders / "pool", "image_size": 4, "pool": {"mode": "stream"}, "uses_unlabeled": True}
    copy(folders / "train" / "ant" / "0.png", folders / "pool" / "a.png")
    copied = copy(folders / "test" / "ant" / "0.png", folders / "train" / "ant" / "z.png")
    fails("copies of labelled ones", train=folders / "train", test=folders / "test", **fields)
    copied.unlink()
    for number in range(10):
        copy(folders / "train" / "bee" / f"{number}.png", folders / "train" / "bee" / f"{number}b.png")
    splits = load(train=folders / "train", **fields)
    assert (splits.copies, len(splits.labeled) + len(splits.test)) == (Copies(num_labeled=10), 30)
    values = [part.images[:, 0, 0, 0].tolist() for part in (splits.labeled, splits.test)]
    assert not set(values[0]) & set(values[1])
    assert len(splits.unlabeled) == 6  # the pool is not read for it


def test_parquet_is_compared_too(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "train.parquet", [1, 2, 3, 4], [0, 1, 0, 1])
    test = write_parquet(tmp_path / "test.parquet", [4, 5], [1, 0])
    fails("as .*test.parquet:0 of .*train.parquet:3", "parquet", train=train, test=test)


def numbered(values: list[int], targets: list[int]) -> ImageSet:
    images = np.repeat(np.array(values, np.uint8), 16).reshape(-1, 1, 4, 4)
    return ImageSet(images, np.array(targets, np.int64), np.array([f"{n}/{v}" for n, v in enumerate(values)]))


def test_pseudo_labelled_images_that_are_copies_are_left_out() -> None:
    # dpl-ray label gives every image of a pool a label, those that are copies of test images too.
    source = Source(
        "data.train=x",
        ("a", "b"),
        numbered([1, 2, 3, 4, 9], [0, 1, UNLABELED, UNLABELED, UNLABELED]),
        test=numbered([9, 10], [0, 1]),
        selected=numbered([2, 10, 11], [1, 1, 0]),
        train_pseudo_labels=np.array([UNLABELED, UNLABELED, 1, UNLABELED, 0]),
    )
    found = without_copies(source, DataConfig())
    assert found.copies == Copies(num_pool=3)
    splits = split(found, DataConfig(), seed=0, uses_unlabeled=False)
    assert splits.labeled.images[:, 0, 0, 0].tolist() == [1, 2, 3, 11]
    assert splits.labeled.targets.tolist() == [0, 1, 1, 0]
    assert splits.unlabeled.images[:, 0, 0, 0].tolist() == [4]  # type: ignore[union-attr]


def test_a_test_image_among_pseudo_labels_alone_is_left_out() -> None:
    source = Source(
        "data.labels=x",
        ("a", "b"),
        numbered([1, 2, 9], [0, 1, 0]),
        test=numbered([9, 10], [0, 1]),
        pseudo_labels_alone=True,
    )
    found = without_copies(source, DataConfig())
    assert (len(found.train), found.copies) == (2, Copies(num_pool=1))


def test_hashes_are_of_the_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 5, 5)).astype(np.uint8)
    images[7] = images[3]
    hashes = pixel_hashes(images)
    assert len(set(hashes.tolist())) == 49
    assert hashes[7] == hashes[3]
    assert pixel_hashes(images[:0]).shape == (0,)
    assert (pixel_hashes(images[::2]) == hashes[::2]).all()
