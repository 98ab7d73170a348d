"""Which images a person should label next: `python -m benchmarks.suggest --features FOLDER --fashion-mnist FOLDER`.

A model is trained on 4 labels a class. Then an oracle labels 20 images of the pool, five times, and each time a model
is trained anew. The images are those of `suggest`, or random ones, those of the least confidence, those of the
smallest margin between the two likeliest classes, or those that are farthest from all labelled ones (k-centre
greedy). Every way has the same start, seed by seed. The raw numbers go to docs/results/suggest.csv, of which `python
-m benchmarks.results` makes the table; what is there is not done again.

--features has the folders train and test that `python -m benchmarks.frozen` writes for CIFAR-10. Trainings are short,
so that all of it takes an hour of one core: after a full training the accuracy is higher.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.tables import read, write
from dpl_ray.checking.settings import settle_model
from dpl_ray.config.compose import load_config
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import ImageSet, Splits, concatenate
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.inference.look import Looked, look
from dpl_ray.reviewing.choice import balance, cover, draw_keys, mass, unsure, worth
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint import load_classifier, load_policy
from dpl_ray.training.distributed import Workers
from dpl_ray.training.loop import train

ROUNDS, ANSWERS = 5, 20
MAX_IMAGES = 5_000  # of a pool, and of a test split
NUM_CANDIDATES = 2_000
COLUMNS = ("data", "way", "seed", "round", "labels", "accuracy", "steps", "pool", "test_images")
COMMON = (
    "policy=dpl",
    "data.num_labels_per_class=4",
    "scale.num_workers=0",
    "train.baseline=false",
    "train.curve_images=0",
    "tracking.enabled=false",
)
FASHION14 = (
    "data=fashion_mnist", "data.image_size=14", "data.interpolation=area", "model.depth=10", "model.width=1",
    "train.batch_size=32", "train.mu=1",
)  # fmt: skip
DATA = {
    "digits": ("data=digits", "train.num_steps=200", "train.mu=3"),
    "fashion14": (*FASHION14, "train.num_steps=400"),
    "cifar10 frozen": ("data=features", "train.num_steps=250", "train.lambda_u_half=null"),
    "fashion14, half of the steps": (*FASHION14, "train.num_steps=200"),
}


def suggested(pool: Looked, labelled: Looked, rng: np.random.Generator) -> NDArray[np.int64]:
    """As `suggest` chooses."""
    worths = worth(unsure(*_two_largest(pool), pool.over))
    keys = draw_keys(worths, rng)
    order = np.argsort(-keys, kind="stable")
    drawn, left = order[:NUM_CANDIDATES], order[NUM_CANDIDATES:]
    masses = mass(worths[drawn], keys[left[0]] if len(left) else -np.inf) * (1 + pool.disagree()[drawn])
    classes = pool.probs.argmax(axis=1)
    masses = balance(masses, classes[drawn], np.bincount(classes, worths, pool.probs.shape[1]))
    return drawn[[place for place, _ in cover(pool.features[drawn], labelled.features, masses, ANSWERS)]]


def at_random(pool: Looked, labelled: Looked, rng: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG001
    return rng.choice(len(pool.probs), ANSWERS, replace=False)


def least_confidence(pool: Looked, labelled: Looked, rng: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG001
    return np.argsort(_two_largest(pool)[0], kind="stable")[:ANSWERS]


def smallest_margin(pool: Looked, labelled: Looked, rng: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG001
    largest, second = _two_largest(pool)
    return np.argsort(largest - second, kind="stable")[:ANSWERS]


def k_centre(pool: Looked, labelled: Looked, rng: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG001
    """Each time the image that is farthest from all chosen and labelled ones (core-set selection, Sener 2018)."""
    features, centres = (
        part / np.linalg.norm(part, axis=1, keepdims=True) for part in (pool.features, labelled.features)
    )
    nearest = (features @ centres.T).max(axis=1)
    chosen: list[int] = []
    for _ in range(ANSWERS):
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, features @ features[chosen[-1]])
    return np.array(chosen)


def _two_largest(pool: Looked) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    ascending = np.sort(pool.probs, axis=1)
    return ascending[:, -1], ascending[:, -2]


WAYS: dict[str, Callable[[Looked, Looked, np.random.Generator], NDArray[np.int64]]] = {
    "random": at_random,
    "suggest": suggested,
    "margin": smallest_margin,
    "least confidence": least_confidence,
    "k-centre": k_centre,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5, 10)))
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA)[:3])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--features", type=Path, default=Path("runs/backbones/features/cifar10"))
    parser.add_argument("--fashion-mnist", type=Path, help="folder of the four .gz files; else the usual ones")
    given = parser.parse_args()
    places = {"cifar10 frozen": [f"data.{part}={given.features / part}" for part in ("train", "test")]}
    if given.fashion_mnist:
        places |= {data: [f"data.root={given.fashion_mnist}"] for data in DATA if data.startswith("fashion14")}
    torch.set_num_threads(1)
    for seed in given.seeds:
        for data in given.data:
            config, splits = start([*DATA[data], *places.get(data, [])], seed)
            first: Trained | None = None
            for way in given.ways:
                own = {"data": data, "way": way, "seed": str(seed)}
                if any(own.items() <= row.items() for row in read("suggest")):
                    continue
                first = first or trained(config, splits)
                found = list(rounds(config, splits, first, WAYS[way], seed))
                rows = [[*own.values(), number, *numbers] for number, numbers in enumerate(found)]
                write("suggest", COLUMNS, rows, replaces=own)
                print(*own.values(), *(f"{accuracy:.4f}" for _, accuracy, *_ in found), flush=True)


def start(overrides: list[str], seed: int) -> tuple[Config, Splits]:
    """What all ways start from: pool and test split have MAX_IMAGES images at most."""
    config = settle_model(load_config([*overrides, *COMMON, f"train.seed={seed}"]))
    splits = load_splits(config.data, seed=seed)
    assert isinstance(splits.unlabeled, ImageSet), "it is in memory"
    parts = []
    for number, (part, draw) in enumerate(((splits.unlabeled, seed), (splits.test, 0)), start=1):
        order = np.random.default_rng([draw, number]).permutation(len(part))
        parts.append(part.subset(np.sort(order[:MAX_IMAGES])))
    return config, replace(splits, unlabeled=parts[0], test=parts[1])


@dataclass(frozen=True)
class Trained:
    """A training's score, and what the model sees in the pool and in the labelled images."""

    accuracy: float
    pool: Looked
    labelled: Looked


def trained(config: Config, splits: Splits) -> Trained:
    assert isinstance(splits.unlabeled, ImageSet)
    with tempfile.TemporaryDirectory() as folder:
        outcome = train(config, splits, Workers.current(torch.device("cpu")), Storage(folder), lambda record: None)  # noqa: ARG005
        (model, *_), policy = load_classifier(Storage(outcome.checkpoint)), load_policy(Storage(outcome.checkpoint))
    found = (look(model, policy, part.images) for part in (splits.unlabeled, splits.labeled))
    return Trained(outcome.metrics["eval/accuracy"], *found)


def rounds(
    config: Config, splits: Splits, first: Trained, choose: Callable[..., NDArray[np.int64]], seed: int
) -> Iterator[tuple[int, float, int, int, int]]:
    """Labels, accuracy, steps, images in the pool and test images, at the start and after each round."""
    model = first
    for number in range(ROUNDS + 1):
        assert isinstance(splits.unlabeled, ImageSet)
        sizes = (config.train.num_steps, len(splits.unlabeled), len(splits.test))
        yield len(splits.labeled), round(model.accuracy, 4), *sizes
        if number == ROUNDS:
            return
        chosen = np.sort(choose(model.pool, model.labelled, np.random.default_rng([seed, 2, number])))
        rest = np.setdiff1d(np.arange(len(splits.unlabeled)), chosen)
        labelled = concatenate(splits.labeled, splits.unlabeled.subset(chosen))
        splits = replace(splits, labeled=labelled, unlabeled=splits.unlabeled.subset(rest))
        model = trained(config, splits)


if __name__ == "__main__":
    main()
