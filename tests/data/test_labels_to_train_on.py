"""data.labels: the selected samples of a labelled pool as labels to train on, with the mistakes that users make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dpl_ray.data.splits.pseudo_labels
from dpl_ray.config.parse import parse_config
from dpl_ray.config.schema import DataConfig
from dpl_ray.data.dataset import Splits
from dpl_ray.data.pool.windows import StreamedPool
from dpl_ray.data.splits.pseudo_labels import read_pseudo_labels
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.runs.provenance import describe_run
from tests.data.test_sources import CLASSES, write_folder, write_parquet, write_pool
from tests.labeling.outputs import write_labels

POOL_SIZE = 12


def load(*, uses_unlabeled: bool = True, seed: int = 0, **fields: Any) -> Splits:
    fields = {key: str(value) if isinstance(value, Path) else value for key, value in fields.items()}
    data = DataConfig(name=fields.pop("name", "image_folder"), channels=1, **fields)
    return load_splits(data, seed=seed, uses_unlabeled=uses_unlabeled)


def fails(message: str, **fields: Any) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load(**fields)
    assert "\n" not in str(error.value)


def pseudo(splits: Splits) -> dict[int, int]:
    """Pixel value -> target of the images that are trained on."""
    return dict(zip(splits.labeled.images[:, 0, 0, 0].tolist(), splits.labeled.targets.tolist(), strict=True))


class Pool:
    """A pool of images of values 200, 201, ... in a parquet file with (wrong) labels of its own, and an output."""

    def __init__(self, folder: Path) -> None:
        self.train = write_folder(folder / "train")
        self.path = write_parquet(folder / "pool" / "a.parquet", list(range(200, 200 + POOL_SIZE)), [0] * POOL_SIZE)
        self.ids = [f"{self.path}:{row}" for row in range(POOL_SIZE)]
        self.output = folder / "labels"

    def write(self, rows: list[tuple[int, int | None, float | None, bool]], **options: Any) -> Path:
        options = {"class_names": CLASSES, "pool": self.path.parent} | options
        return write_labels(self.output, [(self.ids[row], *rest) for row, *rest in rows], **options)

    def write_all(self, selected: set[int], **options: Any) -> Path:
        """Row r has pseudo-label r % 3 and confidence r / 100."""
        return self.write([(row, row % 3, row / 100, row in selected) for row in range(POOL_SIZE)], **options)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path)


def test_the_selected_leave_the_pool_with_their_pseudo_labels(pool: Pool) -> None:
    given = {"train": pool.train, "unlabeled": pool.path.parent, "num_labels_per_class": 2, "validation_fraction": 0.5}
    without, splits = load(**given), load(**given, labels=pool.write_all({0, 1, 2, 7, 11}))
    assert pseudo(splits) == pseudo(without) | {200: 0, 201: 1, 202: 2, 207: 1, 211: 2}
    assert splits.num_pseudo_labeled == 5
    assert splits.labeled.ids[-5:].tolist() == [pool.ids[row] for row in (0, 1, 2, 7, 11)]
    left = set(without.unlabeled.ids) - {pool.ids[row] for row in (0, 1, 2, 7, 11)}
    assert set(splits.unlabeled.ids) == left
    for name in ("validation", "test"):
        part, before = getattr(splits, name), getattr(without, name)
        assert part.ids.tolist() == before.ids.tolist()
        assert part.targets.tolist() == before.targets.tolist()
    assert splits.fingerprint() != without.fingerprint()
    assert describe_run(splits)["data.num_pseudo_labeled"] == "5"
    assert describe_run(without)["data.num_pseudo_labeled"] == "0"


def test_the_pool_is_that_of_the_output_where_none_is_given(pool: Pool) -> None:
    labels = pool.write_all({3})
    given = load(train=pool.train, unlabeled=pool.path.parent, labels=labels)
    assert load(train=pool.train, labels=labels).fingerprint() == given.fingerprint()


def test_other_pseudo_labels_are_other_data(pool: Pool) -> None:
    first = load(train=pool.train, labels=pool.write_all({3})).fingerprint()
    assert load(train=pool.train, labels=pool.write([(3, 1, 0.5, True)])).fingerprint() != first


def test_the_most_confident_of_each_class(pool: Pool) -> None:
    labels = pool.write_all(set(range(11)), per_part=3)  # 11 is not selected, though it is the most confident
    splits = load(train=pool.train, labels=labels, labels_per_class=2)
    assert splits.labeled.ids[-6:].tolist() == [pool.ids[row] for row in (5, 6, 7, 8, 9, 10)]
    assert splits.num_pseudo_labeled == 6


@pytest.mark.parametrize("uses_unlabeled", [True, False])
@pytest.mark.parametrize("folder_of_everything", [False, True])
def test_a_streamed_pool_gives_the_same(tmp_path: Path, uses_unlabeled: bool, folder_of_everything: bool) -> None:
    train, pool = write_folder(tmp_path / "train"), write_pool(tmp_path / "pool", 9)
    given = {"train": train, "unlabeled": train if folder_of_everything else pool, "num_labels_per_class": 2}
    given |= {"validation_fraction": 0.5, "image_size": 4, "uses_unlabeled": uses_unlabeled}
    ids = sorted(map(str, given["unlabeled"].rglob("*.png")))[::2]
    rows = [(path, number % 3, 0.5, True) for number, path in enumerate(ids)]
    labels = write_labels(tmp_path / "labels", rows, class_names=CLASSES, pool=given["unlabeled"])
    memory, streamed = (load(**given, labels=labels, pool={"mode": mode}) for mode in ("memory", "stream"))
    assert memory.num_pseudo_labeled == streamed.num_pseudo_labeled > 3
    for name in ("labeled", "validation", "test"):
        part, other = getattr(memory, name), getattr(streamed, name)
        assert part.ids.tolist() == other.ids.tolist()
        assert part.targets.tolist() == other.targets.tolist()
        assert (part.images == other.images).all()
    if uses_unlabeled:
        assert len(streamed.unlabeled) == len(memory.unlabeled)


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_what_the_labels_call_unreadable_is_not_in_the_pool(tmp_path: Path, mode: str) -> None:
    """Where all others are selected, nothing is left: told before anything starts."""
    train, pool = write_folder(tmp_path / "train"), write_pool(tmp_path / "pool", 4)
    ids = sorted(map(str, pool.rglob("*.png")))
    rows = [(path, number % 3, 0.5, True) for number, path in enumerate(ids)]
    rows[1:2] = [(ids[1], None, None, False)]
    labels = write_labels(tmp_path / "labels", rows, class_names=CLASSES, pool=pool)
    with pytest.raises(ValueError, match="the whole pool is trained on with pseudo-labels"):
        load(train=train, unlabeled=pool, labels=labels, image_size=4, pool={"mode": mode})


def test_equal_confidence_is_decided_by_the_ids(pool: Pool) -> None:
    rows = [(row, 0, 0.5, True) for row in (7, 3, 5, 1)]
    for order in (rows, rows[::-1]):
        splits = load(train=pool.train, labels=pool.write(order), labels_per_class=2)
        assert splits.labeled.ids[-2:].tolist() == [pool.ids[1], pool.ids[3]]


def test_a_pool_of_image_files(tmp_path: Path) -> None:
    train, images = write_folder(tmp_path / "train"), write_pool(tmp_path / "my pool")
    ids = [str(images / "0.png"), str(images / "deep" / "3.png")]
    labels = write_labels(
        tmp_path / "labels", [(ids[0], 2, 0.5, True), (ids[1], 1, 0.5, True)], class_names=CLASSES, pool=images
    )
    splits = load(train=train, labels=labels)
    assert splits.labeled.ids[-2:].tolist() == ids
    assert pseudo(splits)[200] == 2
    assert pseudo(splits)[203] == 1
    assert len(splits.unlabeled) == 3


def test_true_labels_win_and_test_images_are_never_trained_on(tmp_path: Path) -> None:
    """The pool is the folder of everything: its pseudo-labels are of labelled, validation and test images too."""
    train = write_folder(tmp_path / "train")
    ids = sorted(map(str, train.rglob("*.png")))
    labels = write_labels(
        tmp_path / "labels", [(path, 0, 0.5, True) for path in ids], class_names=CLASSES, pool=tmp_path / "train"
    )
    given = {"train": train, "unlabeled": train, "num_labels_per_class": 4, "validation_fraction": 0.5}
    without = load(**given)
    fails(
        r"data.labels=.*: the whole pool is trained on with pseudo-labels, .*policy=supervised", **given, labels=labels
    )
    splits = load(**given, labels=labels, uses_unlabeled=False)
    for name in ("validation", "test"):
        assert getattr(splits, name).ids.tolist() == getattr(without, name).ids.tolist()
        assert getattr(splits, name).targets.tolist() == getattr(without, name).targets.tolist()
    assert pseudo(splits).items() >= pseudo(without).items()
    assert splits.num_pseudo_labeled == len(without.unlabeled) == 12
    assert set(splits.labeled.targets[6:]) == {0}
    assert not len(splits.unlabeled)


def test_a_test_set_within_the_pool(tmp_path: Path, pool: Pool) -> None:
    test = write_folder(pool.path.parent / "test", per_class=2)
    ids = [str(path) for path in sorted(test.rglob("*.png"))]
    labels = write_labels(
        pool.output,
        [(ids[0], 0, 0.9, True), (str(pool.path.parent / "x" / "0.png"), 1, 0.9, True)],
        class_names=CLASSES,
        pool=pool.path.parent,
    )
    write_pool(pool.path.parent / "x")
    splits = load(train=pool.train, test=test, labels=labels, allow_overlap=True)
    assert splits.num_pseudo_labeled == 1
    assert ids[0] in splits.test.ids
    assert ids[0] not in splits.labeled.ids


def test_pseudo_labels_alone(pool: Pool) -> None:
    labels = pool.write_all(set(range(10)))
    with pytest.warns(UserWarning, match="agreement with pseudo-labels, not with true labels"):
        splits = load(labels=labels, name="parquet")
    assert splits.class_names == CLASSES
    assert (len(splits.labeled), len(splits.test), len(splits.unlabeled)) == (7, 3, 2)
    assert splits.num_pseudo_labeled == 7
    test = write_folder(pool.train.parent / "test", per_class=1)
    splits = load(labels=labels, test=test)
    assert (len(splits.labeled), splits.num_pseudo_labeled, len(splits.test)) == (10, 10, 3)
    assert pseudo(splits) == {200 + row: row % 3 for row in range(10)}


@pytest.mark.parametrize("name", ["parquet", "image_folder"])
@pytest.mark.filterwarnings("ignore:data.test=null")
def test_what_is_not_drawn_of_pseudo_labels_alone_goes_back_into_the_streamed_pool(pool: Pool, name: str) -> None:
    labels = pool.write_all(set(range(10)))
    given = {"labels": labels, "name": name, "num_labels_per_class": 1, "image_size": 4}
    memory, streamed = (load(**given, pool={"mode": mode}) for mode in ("memory", "stream"))
    assert pseudo(memory) == pseudo(streamed)
    assert isinstance(streamed.unlabeled, StreamedPool)
    rows, _ = streamed.unlabeled.read(0, len(streamed.unlabeled), seed=0)
    assert sorted(row[0] for row in rows) == sorted(memory.unlabeled.ids.tolist())


def test_the_pool_is_not_read_where_nothing_learns_from_it(pool: Pool) -> None:
    splits = load(train=pool.train, labels=pool.write_all({4}), uses_unlabeled=False)
    assert splits.num_pseudo_labeled == 1
    assert not len(splits.unlabeled)


def test_selected_images_that_cannot_be_read_are_set_aside(pool: Pool) -> None:
    table = pq.read_table(pool.path)
    cells = table.column("image").to_pylist()
    cells[5]["bytes"] = b"no image"
    table = table.set_column(0, "image", pa.array(cells, table.schema.field("image").type))
    pq.write_table(table, pool.path, row_group_size=7)
    splits = load(train=pool.train, labels=pool.write_all({4, 5, 6}), max_bad_fraction=0.1)
    assert [bad.id for bad in splits.bad] == [pool.ids[5]]
    assert splits.num_pseudo_labeled == 2
    assert pseudo(splits)[206] == 0


def test_rows_without_a_label_are_no_mistake(pool: Pool) -> None:
    labels = pool.write([(0, None, None, False), (1, 1, 0.5, True)])
    assert load(train=pool.train, labels=labels).num_pseudo_labeled == 1


def test_outputs_that_are_none(tmp_path: Path, pool: Pool) -> None:
    fails(r"data.labels=.*/lables: there is no such file or folder", train=pool.train, labels=tmp_path / "lables")
    fails(r"is no output of dpl-ray label \(no _ledger/job.json in it\)", train=pool.train, labels=pool.path.parent)
    fails(r"is no output of dpl-ray label \(no _ledger/job.json in it\)", train=pool.train, labels=pool.path)
    unfinished = pool.write_all({1}, finished=False)
    message = r"data.labels=.*: is not finished \(no _report/summary.json\); run the same dpl-ray label command"
    fails(message, train=pool.train, labels=unfinished)
    labels = pool.write_all({1})
    (labels / "_ledger" / "job.json").write_text("{")
    fails(r"is no output of dpl-ray label \(_ledger/job.json: ", train=pool.train, labels=labels)
    (labels / "_ledger" / "job.json").write_text("[]")
    fails(r"is no output of dpl-ray label \(_ledger/job.json: ", train=pool.train, labels=labels)
    pool.write_all({1})
    for part in labels.glob("*.parquet"):
        part.unlink()
    fails(r"no image and no parquet file in it \(1 _ledger/, 1 _report/ left out\)", train=pool.train, labels=labels)
    pq.write_table(pa.table({"x": [1]}), labels / "part-00000.parquet")
    fails(r"is no output of dpl-ray label \(.*", train=pool.train, labels=labels)
    (labels / "part-00000.parquet").write_bytes(b"PAR1")
    fails(r"is no output of dpl-ray label \(.*", train=pool.train, labels=labels)


def test_labels_that_are_wrong(tmp_path: Path, pool: Pool) -> None:
    given = {"train": pool.train}
    fails(r"data.labels=.*: not one of its samples is selected", **given, labels=pool.write_all(set()))
    twice = pool.write([(1, 1, 0.5, True), (1, 1, 0.5, True)])
    fails(r"data.labels=.*a.parquet:1 is there more than once", **given, labels=twice)
    outside = pool.write([(1, 3, 0.5, True)])
    fails(r"pseudo-label 3 of .*:1 is outside its 3 classes", **given, labels=outside)
    labels = pool.write_all({1, 2})
    other = write_pool(tmp_path / "other")
    fails(
        r"data.labels=.*: 2 of its 2 selected samples are not in data.unlabeled=.*other, as .*a.parquet:1; give the p",
        **given,
        labels=labels,
        unlabeled=other,
    )
    short = write_parquet(pool.path, [200, 201])
    assert short == pool.path
    fails(r"1 of its 2 selected samples are not in data.unlabeled=.*, as .*a.parquet:2;", **given, labels=labels)


def test_classes_that_do_not_agree(pool: Pool) -> None:
    labels = pool.write_all({1}, class_names=("ant", "cat", "bee"))
    message = r"data.labels=.*: its classes are ant, cat, bee, but those of data.train are ant, bee, cat; "
    fails(message, train=pool.train, labels=labels)
    splits = load(train=pool.train, labels=labels, class_names=("ant", "cat", "bee"))
    assert splits.class_names == ("ant", "cat", "bee")
    fails(
        r"its classes are ant, cat, bee, but those of data.class_names are ant, bee, cat",
        labels=labels,
        class_names=CLASSES,
    )


def test_more_than_fits_is_refused_before_an_image_is_decoded(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = pool.write_all(set(range(POOL_SIZE)))
    monkeypatch.setattr(dpl_ray.data.splits.pseudo_labels, "memory_size", lambda: 2 * 9 * 16)
    message = r"the 12 selected images take .* GiB decoded, more than half of .*; take fewer, as data.labels_per_class="
    for image_size in (4, None):
        fails(message, train=pool.train, labels=labels, image_size=image_size)
        assert load(train=pool.train, labels=labels, labels_per_class=3, image_size=image_size).num_pseudo_labeled == 9


def test_only_the_selected_are_held(pool: Pool) -> None:
    found = read_pseudo_labels(DataConfig(name="parquet", labels=str(pool.write_all({2, 5}))))
    assert found.labels == {pool.ids[2]: 2, pool.ids[5]: 2}
    assert found.pool == str(pool.path.parent)


def test_fields_that_do_not_go_together(pool: Pool) -> None:
    fails(r"data.labels_per_class=2: there are no pseudo-labels to choose from", train=pool.train, labels_per_class=2)
    for given, message in (
        ({"name": "digits", "labels": "x"}, "data.labels=x: data=digits brings its own images"),
        (
            {"name": "parquet", "labels": "x", "num_labels_per_class": 2},
            "=2: without data.train there are pseudo-label",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            parse_config({"data": given})
    assert parse_config({"data": {"name": "parquet", "labels": "x"}}).data.train is None


def test_the_order_is_that_of_the_pool(tmp_path: Path, pool: Pool) -> None:
    """Not that of the parts, which may be written by many workers: the same labels are the same data."""
    rows = [(row, row % 3, 0.5, True) for row in range(10)]
    first = load(train=pool.train, labels=pool.write(rows)).fingerprint()
    for part in pool.output.glob("*.parquet"):
        part.unlink()
    assert load(train=pool.train, labels=pool.write(rows[::-1])).fingerprint() == first
