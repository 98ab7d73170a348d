"""split.py: who is labelled, unlabelled, for validation and for testing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpl_ray.config.schema import DataConfig
from dpl_ray.data.dataset import UNLABELED, ImageSet, Source
from dpl_ray.data.splits.split import Plan, plan_split, split

CLASSES = ("ant", "bee", "cat")


def config(**fields: Any) -> DataConfig:
    return DataConfig(**fields)


def plan(targets: Any, data: DataConfig, seed: int = 0, *, hold_out_test: bool = True) -> Plan:
    return plan_split(np.array(targets), CLASSES, data, seed=seed, hold_out_test=hold_out_test, name="data=test")


@st.composite
def labels(draw: st.DrawFn) -> list[int]:
    """Three classes of 12 to 40 images each and some without a label, in any order."""
    counts = [draw(st.integers(12, 40)) for _ in CLASSES] + [draw(st.integers(0, 20))]
    targets = np.repeat([0, 1, 2, UNLABELED], counts)
    return np.random.default_rng(draw(st.integers(0, 999))).permutation(targets).tolist()


@given(
    targets=labels(),
    number=st.sampled_from([None, 1, 2, 5]),
    validation=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    seed=st.integers(0, 99),
    hold_out_test=st.booleans(),
)
@settings(max_examples=150)
def test_partition_by_class(
    targets: list[int], number: int | None, validation: float, seed: int, hold_out_test: bool
) -> None:
    data = config(num_labels_per_class=number, validation_fraction=validation, test_fraction=0.25)
    if number == 1 and validation:
        with pytest.raises(ValueError, match=r"data.validation_fraction=0.\d: every class has one label only"):
            plan(targets, data, seed, hold_out_test=hold_out_test)
        return
    drawn = plan(targets, data, seed, hold_out_test=hold_out_test)
    parts = (drawn.labeled, drawn.unlabeled, drawn.validation, drawn.test)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(targets))), "each image exactly once"
    assert all((np.diff(part) > 0).all() for part in parts)
    known = np.array(targets)
    for part in (drawn.labeled, drawn.validation, drawn.test):
        assert (known[part] != UNLABELED).all()
    for index in range(len(CLASSES)):
        total = int((known == index).sum())
        num_test, num_validation, num_labeled = (
            int((known[part] == index).sum()) for part in (drawn.test, drawn.validation, drawn.labeled)
        )
        assert num_test == (round(0.25 * total) if hold_out_test else 0)
        budget = number or total - num_test
        assert num_labeled + num_validation == budget
        assert num_labeled >= 1
        assert num_validation == (min(budget - 1, max(1, round(validation * budget))) if validation else 0)


@given(targets=labels(), seed=st.integers(0, 99), validation=st.sampled_from([0.0, 0.3]))
@settings(max_examples=50)
def test_fewer_labels_are_among_more(targets: list[int], seed: int, validation: float) -> None:
    few, more = (plan(targets, config(num_labels_per_class=n, validation_fraction=validation), seed) for n in (2, 7))
    assert set(few.labeled) <= set(more.labeled)
    np.testing.assert_array_equal(few.test, more.test)


def test_the_seed_draws_the_labels_but_not_the_test_split() -> None:
    targets = [0, 1, 2] * 30
    data = config(num_labels_per_class=4)
    first, again, other = (plan(targets, data, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.labeled, again.labeled)
    assert set(first.labeled) != set(other.labeled)
    np.testing.assert_array_equal(first.test, other.test)
    fixed = plan(targets, config(num_labels_per_class=4, subset_seed=0), seed=1)
    np.testing.assert_array_equal(fixed.labeled, first.labeled)


def test_a_class_is_drawn_without_regard_to_the_others() -> None:
    few = plan([0] * 20 + [1] * 20 + [2] * 20, config(num_labels_per_class=4))
    more = plan([0] * 20 + [1] * 50 + [2] * 20 + [UNLABELED] * 9, config(num_labels_per_class=4))
    np.testing.assert_array_equal(few.labeled[few.labeled < 20], more.labeled[more.labeled < 20])
    last = (few.labeled >= 40, (more.labeled >= 70) & (more.labeled < 90))
    np.testing.assert_array_equal(few.labeled[last[0]] - 40, more.labeled[last[1]] - 70)


def test_a_single_image_of_a_class_goes_to_training() -> None:
    drawn = plan([0, 0, 0, 1, 1, 1, 2], config(validation_fraction=0.5))
    assert 6 in drawn.labeled
    assert (len(drawn.labeled), len(drawn.validation), len(drawn.test)) == (3, 2, 2)


@pytest.mark.parametrize(
    ("targets", "fields", "message"),
    [
        ([-1, -1], {}, "data=test: not one image has a label"),
        ([0, 0, 2], {}, "data=test: no labelled image of the class bee; add some, or remove the class"),
        ([2], {}, "data=test: no labelled image of the classes ant, bee; add some"),
        (
            [0] * 30 + [1] * 10 + [2] * 30,
            {"num_labels_per_class": 9},
            r"data.num_labels_per_class=9: class bee has only 8 labelled images left \(14 images of all classes are "
            r"held out for testing\); use at most 8",
        ),
        ([0, 1, 2], {"validation_fraction": 0.5}, "data.validation_fraction=0.5: every class has one label only"),
    ],
)
def test_errors(targets: list[int], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(targets, config(**fields))


def numbered(targets: list[int], start: int = 0) -> ImageSet:
    """Images whose pixels, and names, are their number."""
    numbers = np.arange(start, start + len(targets))
    images = np.ascontiguousarray(np.broadcast_to(numbers[:, None, None, None], (len(targets), 1, 2, 2)), np.uint8)
    return ImageSet(images, np.array(targets, np.int64), numbers.astype(np.str_))


def test_images_targets_and_ids_stay_together() -> None:
    targets = [0, 1, 2, UNLABELED] * 12
    source = Source("data=test", CLASSES, numbered(targets), numbered([UNLABELED, 1], start=48))
    splits = split(source, config(num_labels_per_class=3, validation_fraction=0.4), seed=5, uses_unlabeled=True)
    known = [*targets, UNLABELED, 1]
    seen = []
    for part in (splits.labeled, splits.unlabeled, splits.validation, splits.test):
        assert part.images[:, 0, 0, 0].tolist() == [int(name) for name in part.ids]
        assert part.targets.tolist() == [known[int(name)] for name in part.ids]
        seen += part.ids.tolist()
    assert sorted(seen, key=int) == [str(number) for number in range(50)]
    assert splits.unlabeled.ids[-2:].tolist() == ["48", "49"], "data.unlabeled after the rest of data.train"


def test_an_empty_pool_is_a_mistake_only_for_who_uses_it() -> None:
    source = Source("data=digits", CLASSES, numbered([0, 1, 2] * 5))
    with pytest.raises(ValueError, match=r"data.num_labels_per_class=null: leaves no image of data=digits unlabelled"):
        split(source, config(), seed=0, uses_unlabeled=True)
    with pytest.raises(ValueError, match=r"data.unlabeled=null: .* set data.unlabeled to a folder, glob or parquet"):
        split(source, config(name="image_folder", train="x"), seed=0, uses_unlabeled=True)
    splits = split(source, config(), seed=0, uses_unlabeled=False)
    assert len(splits.unlabeled) == 0
    assert splits.unlabeled.images.shape[1:] == (1, 2, 2)


def test_the_seedless_fingerprint_sees_the_same_but_for_the_seed() -> None:
    def fingerprint(
        train: ImageSet, seed: int = 0, class_names: tuple[str, ...] = CLASSES, test: ImageSet | None = None
    ) -> str:
        source = Source("x", class_names, train, None, test, ())
        data = config(num_labels_per_class=3, validation_fraction=0.4)
        return split(source, data, seed=seed, uses_unlabeled=True).seedless_fingerprint()

    base = numbered([0, 1, 2] * 5)
    pixels = base.images.copy()
    pixels[7] ^= 1
    assert len({fingerprint(base, seed) for seed in range(4)}) == 1
    variants = [
        fingerprint(base),
        fingerprint(base, class_names=("ant", "bee", "dog")),
        fingerprint(ImageSet(pixels, base.targets, base.ids)),
        fingerprint(ImageSet(base.images, base.targets, np.array([f"{name}x" for name in base.ids]))),
        fingerprint(ImageSet(base.images, np.roll(base.targets, 1), base.ids)),
        fingerprint(base.subset(np.arange(14))),
        fingerprint(base, test=base.subset(np.arange(3))),
        fingerprint(base, test=base.subset(np.arange(4))),
    ]
    assert len(set(variants)) == len(variants)


def test_fingerprint_sees_names_targets_pixels_and_place() -> None:
    def fingerprint(train: ImageSet, seed: int = 0, class_names: tuple[str, ...] = CLASSES) -> str:
        source = Source("data=test", class_names, train)
        return split(source, config(num_labels_per_class=2), seed=seed, uses_unlabeled=True).fingerprint()

    base = numbered([0, 1, 2] * 5)
    pixels = base.images.copy()
    pixels[3, 0, 0, 0] += 1
    variants = [
        fingerprint(base),
        fingerprint(base, seed=1),
        fingerprint(base, class_names=("ant", "bee", "dog")),
        fingerprint(ImageSet(pixels, base.targets, base.ids)),
        fingerprint(ImageSet(base.images, base.targets, np.array([f"{name}x" for name in base.ids]))),
        fingerprint(ImageSet(base.images, np.roll(base.targets, 1), base.ids)),
    ]
    assert len(set(variants)) == len(variants)
    assert fingerprint(numbered([0, 1, 2] * 5)) == variants[0]
