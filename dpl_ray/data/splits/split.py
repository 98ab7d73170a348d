"""Which images are labelled, unlabelled, for validation and for testing.

Every choice is made class by class, from a permutation that depends on (seed, class, number of images of the
class) alone. So 4 labels a class are among the 25 of the same seed, and another class more or less changes
nothing in this one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpl_ray.config.schema import FILE_FORMS, DataConfig
from dpl_ray.config.section import shown
from dpl_ray.data.dataset import UNLABELED, ImageSet, Source, Splits, concatenate, empty_like
from dpl_ray.data.pool.benchmark import shape_pool

_TEST_SEED = 0  # the same test split for every train.seed
_TEST, _LABELED = 1, 2  # which draw a permutation is for

Indices = NDArray[np.int64]


class EmptyPoolError(ValueError):
    """Pseudo-labels have taken the whole pool, or all but a few images of it."""


@dataclass(frozen=True)
class Plan:
    """Positions in the training images, each in exactly one of the four, ascending."""

    labeled: Indices
    unlabeled: Indices
    validation: Indices
    test: Indices


def split(source: Source, data: DataConfig, *, seed: int, uses_unlabeled: bool) -> Splits:
    """Split a source as the configuration says."""
    plan = plan_split(
        source.train.targets, source.class_names, data, seed=seed, hold_out_test=source.test is None, name=source.name
    )
    pool = source.unlabeled or empty_like(source.train)
    pseudo_labeled, rest = _pseudo_labeled(source, plan.unlabeled)
    if uses_unlabeled:
        check_pool(len(rest) + len(pool), data, source.name, num_copies=source.copies.num_pool)
    labeled = source.train.subset(plan.labeled)
    splits = Splits(
        labeled=concatenate(labeled, pseudo_labeled),
        unlabeled=concatenate(source.train.subset(rest), pool),
        validation=source.train.subset(plan.validation),
        test=source.train.subset(plan.test) if source.test is None else source.test,
        class_names=source.class_names,
        bad=source.bad,
        num_pseudo_labeled=len(labeled) if source.pseudo_labels_alone else len(pseudo_labeled),
        left_out=source.left_out,
        copies=source.copies,
    )
    return shape_pool(splits, data.pool, seed=seed_of(data, seed))


def seed_of(data: DataConfig, seed: int) -> int:
    """Of the labelled subset and all else that is drawn of the data."""
    return seed if data.subset_seed is None else data.subset_seed


def _pseudo_labeled(source: Source, unlabeled: Indices) -> tuple[ImageSet, Indices]:
    """The images that are trained on with pseudo-labels beside true ones, and what is left of `unlabeled`."""
    selected = source.selected or empty_like(source.train)
    if source.train_pseudo_labels is None:
        return selected, unlabeled
    rest = unlabeled_rest(unlabeled, source.train_pseudo_labels)
    moved = np.setdiff1d(unlabeled, rest)
    chosen = source.train.subset(moved)
    chosen = ImageSet(chosen.images, source.train_pseudo_labels[moved], chosen.ids)
    return concatenate(chosen, selected), rest


def unlabeled_rest(unlabeled: Indices, pseudo_labels: NDArray[np.int64] | None) -> Indices:
    """Those of the unlabelled positions that have no pseudo-label, of pseudo-labels (N,) of all positions."""
    return unlabeled if pseudo_labels is None else unlabeled[pseudo_labels[unlabeled] == UNLABELED]


def plan_split(
    targets: NDArray[np.int64],
    class_names: tuple[str, ...],
    data: DataConfig,
    *,
    seed: int,
    hold_out_test: bool,
    name: str,
    hint: str = "",
) -> Plan:
    """Draw the splits.

    Of each class, `test_fraction` is held out first where `hold_out_test` (at least one image, and at least one
    is left), the same for every seed. Of the rest, `num_labels_per_class` keep their labels, or all of them;
    `validation_fraction` of these, at least one where there are two, make the validation split. What has no
    label, or is to lose it, is unlabelled.

    Raises:
        ValueError: a class has no or too few labels; `name` is the data's in the message and `hint` its end.
    """
    seed = seed_of(data, seed)
    classes = [np.flatnonzero(targets == index) for index in range(len(class_names))]
    _check_every_class(classes, class_names, name, hint)
    test: list[Indices] = []
    if hold_out_test:
        for index, members in enumerate(classes):
            held = _share(len(members), data.test_fraction)
            order = _permuted(members, _TEST, _TEST_SEED, index)
            test.append(order[:held])
            classes[index] = np.sort(order[held:])
    _check_num_labels(classes, class_names, data, hint, num_held=sum(map(len, test)))
    labeled: list[Indices] = []
    validation: list[Indices] = []
    for index, members in enumerate(classes):
        chosen = _permuted(members, _LABELED, seed, index)[: data.num_labels_per_class]
        # The validation share is the end of the draw, so that the training labels are nested too.
        num_validation = _share(len(chosen), data.validation_fraction)
        labeled.append(chosen[: len(chosen) - num_validation])
        validation.append(chosen[len(chosen) - num_validation :])
    if data.validation_fraction and not any(map(len, validation)):
        raise ValueError(
            f"data.validation_fraction={data.validation_fraction}: every class has one label only, which training "
            "needs; have two labels of a class, or (not in a search) data.validation_fraction=0"
        )
    taken = [np.sort(np.concatenate([np.empty(0, np.int64), *part])) for part in (labeled, validation, test)]
    unlabeled = np.setdiff1d(np.arange(len(targets)), np.concatenate(taken), assume_unique=True)
    return Plan(labeled=taken[0], unlabeled=unlabeled, validation=taken[1], test=taken[2])


def check_pool(num_unlabeled: int, data: DataConfig, name: str, *, num_copies: int = 0) -> None:
    """Refuse a pool without an image: the policy learns from it.

    Args:
        num_copies: images of the pool that were left out, because they are copies of labelled or test images.
    """
    if num_unlabeled:
        return
    if data.labels is not None:
        raise EmptyPoolError(
            f"data.labels={data.labels}: the whole pool is trained on with pseudo-labels, and no unlabelled image is "
            "left to learn from; data.labels_per_class leaves some, and policy=supervised needs none"
        )
    gone = f" ({num_copies:,} copies of labelled or test images are left out)" if num_copies else ""
    if data.name == "arrays":
        raise ValueError(
            f"unlabeled=None: there is no unlabelled image to learn from{gone}; give some, label images -1, or set "
            "data.num_labels_per_class to a few labels a class"
        )
    if data.name in FILE_FORMS:
        raise ValueError(
            f"data.unlabeled={shown(data.unlabeled)}: there is no unlabelled image to learn from{gone}; set "
            "data.unlabeled to a folder, glob or parquet of them, or data.num_labels_per_class to a few labels a "
            "class; policy=supervised needs none"
        )
    number = data.num_labels_per_class or "null"
    raise ValueError(
        f"data.num_labels_per_class={number}: leaves no image of {name} unlabelled to learn "
        "from; set a few labels a class, as data.num_labels_per_class=4"
    )


def _permuted(members: Indices, draw: int, seed: int, class_index: int) -> Indices:
    return members[np.random.default_rng([draw, seed, class_index]).permutation(len(members))]


def _share(number: int, fraction: float) -> int:
    """A share of a class: nothing of a single image, else at least one and not all."""
    return min(number - 1, max(1, round(number * fraction))) if fraction and number > 1 else 0


def _check_every_class(classes: list[Indices], class_names: tuple[str, ...], name: str, hint: str) -> None:
    without = [class_names[index] for index, members in enumerate(classes) if not len(members)]
    if len(without) == len(classes):
        raise ValueError(f"{name}: not one image has a label{hint}; training starts from at least one a class")
    if without:
        listed = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
        noun = "class" if len(without) == 1 else "classes"
        raise ValueError(f"{name}: no labelled image of the {noun} {listed}{hint}; add some, or remove the class")


def _check_num_labels(
    classes: list[Indices], class_names: tuple[str, ...], data: DataConfig, hint: str, *, num_held: int
) -> None:
    smallest = min(range(len(classes)), key=lambda index: len(classes[index]))
    number = len(classes[smallest])
    if data.num_labels_per_class is not None and number < data.num_labels_per_class:
        held = f" left ({num_held} images of all classes are held out for testing)" if num_held else ""
        raise ValueError(
            f"data.num_labels_per_class={data.num_labels_per_class}: class {class_names[smallest]} has only {number} "
            f"labelled images{held}{hint}; use at most {number}"
        )
