"""Which images' labels would teach a model most: those that stand for many images, and more so for unsure ones.

An image is *unsure* by 1 - (largest probability - second largest), and by nothing from the over-confident threshold of
its class on. Half of the *worth* of a pool is shared equally by its images, the other half in proportion to how unsure
they are. Candidates are drawn by worth. Among them, an image on which LGP and HGP say different classes counts twice,
and one of a class of k times the worth counts 1 / sqrt(k). The choice covers the worth of the pool in feature space. It
is the greedy maximization of the facility-location function

    f(S) = sum_i mass_i * max_{j in S or labelled} max(0, cosine(z_i, z_j)),

which is within 1 - 1/e of the best choice (G. L. Nemhauser, L. A. Wolsey and M. L. Fisher, An analysis of
approximations for maximizing submodular set functions, 1978; for active learning K. Wei, R. Iyer and J. Bilmes,
Submodularity in data subset selection and active learning, 2015). k-centre greedy, which covers the farthest image
first, chooses outliers; docs/suggestions.md has both beside random choices.

Legend: N candidates, L labelled images, C classes, D features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def unsure(confidence: Floats, second: Floats, over: Floats | None = None) -> Floats:
    """(N,) how unsure the model is of each image, from 0 to 1.

    Args:
        confidence, second: (N,) the two largest probabilities.
        over: (N,) over-confident threshold of the likeliest class; None: the policy has none.
    """
    found = np.clip(1 - (confidence - second), 0, 1)
    return found if over is None else np.where(confidence < over, found, 0)


def worth(unsure: Floats) -> Floats:
    """(N,) of a pool's images, 2 on average: 1 each, and how unsure each is beside the others."""
    mean = float(unsure.mean()) if len(unsure) else 0.0
    return 1 + unsure / mean if mean else np.full(len(unsure), 2.0)


def draw_keys(worths: Floats, rng: np.random.Generator) -> NDArray[np.float64]:
    """(N,) log(uniform) / worth: the images of the largest keys are drawn in proportion to worth.

    P. S. Efraimidis and P. G. Spirakis, Weighted random sampling with a reservoir, 2006.
    """
    return np.log(rng.random(len(worths))) / worths


def mass(worths: Floats, largest_left: float) -> Floats:
    """(N,) the worth of the pool that each drawn image stands for: its own, over the probability that it was drawn.

    Args:
        worths: (N,) of the drawn images.
        largest_left: key of the first image that was not drawn, given which one of worth w is drawn with probability
            1 - exp(w key) (E. Cohen and H. Kaplan, Summarizing data using bottom-k sketches, 2007); -inf: none is left.
    """
    return (worths / -np.expm1(worths * largest_left)).astype(np.float32)


def balance(masses: Floats, classes: NDArray[np.int64], totals: NDArray[Any]) -> Floats:
    """(N,) the masses, of which those of a class of large total worth count less.

    Args:
        classes: (N,) pseudo-labels.
        totals: (C,) worth of each class in the pool.
    """
    return (masses / np.sqrt(totals[classes])).astype(np.float32)


def cover(features: Floats, known: Floats, masses: Floats, number: int) -> list[tuple[int, float]]:
    """Greedy choice of so many candidates, or of all.

    Args:
        features, known: (N, D), (L, D) of candidates and of labelled images.
        masses: (N,) what each candidate counts.

    Returns:
        Place of each, in the order of the choice, and by how much it raised the function, as a share of sum(masses).
    """
    candidates, labelled = _on_sphere(features), _on_sphere(known)
    similar = np.maximum(candidates @ candidates.T, 0)  # (N, N)
    covered = np.maximum(candidates @ labelled.T, 0).max(axis=1, initial=0)  # (N,)
    total = max(float(masses.sum()), float(np.finfo(np.float32).tiny))
    chosen: list[tuple[int, float]] = []
    is_left = np.ones(len(features), bool)
    for _ in range(min(number, len(features))):
        gains = masses @ np.maximum(similar - covered[:, None], 0)
        best = int(np.argmax(np.where(is_left, gains, -1)))
        chosen.append((best, float(gains[best]) / total))
        is_left[best] = False
        covered = np.maximum(covered, similar[best])
    return chosen


def _on_sphere(features: Floats) -> Floats:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
