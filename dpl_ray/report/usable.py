"""Whether pseudo-labels may be made with a checkpoint: what its run has measured of it (dpl_ray/report/health.py)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dpl_ray.report.curves import History
from dpl_ray.report.health import Finding, chance_finding, health_lines
from dpl_ray.runs.folder import RUN_FILE, run_of
from dpl_ray.store.history import read_history
from dpl_ray.store.records import read_tree
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint_folder import load_config_and_info

NEXT_STEP = "train longer, or look at the labels with dpl-ray check"


def known_health(checkpoint: Storage) -> tuple[Finding, ...] | None:
    """What its run has found of a checkpoint, or of one on the way what its newest score says; None: nothing is known.

    Args:
        checkpoint: a finished one.
    """
    config, info = load_config_and_info(checkpoint)
    run, step = run_of(checkpoint), re.fullmatch(r"step-(\d+)", checkpoint.name)
    if not step or not (run / RUN_FILE).exists():
        return None
    known = read_tree(run / RUN_FILE)
    result = known["result"] or {}
    if str(run) == str(checkpoint.parent) and result.get("checkpoint") == checkpoint.name and "health" in result:
        return tuple(Finding(**found) for found in result["health"])
    history = History(read_history(run), config.policy.name)
    for split, key in (("test", "curve/accuracy"), ("validation", "validation/accuracy")):
        number, largest = known.get("held_out", {}).get(split, (0, 0))
        scores = [score for at, score in history.points(key) if at <= int(step[1])]
        if number and scores:
            size = min(number, config.train.curve_images) if split == "test" else number
            share = largest / number
            found = chance_finding(scores[-1], size, share, len(info.class_names), NEXT_STEP)
            return (found,) if found else ()
    return None


def refuse_useless(what: str, findings: Sequence[Finding], *, force: bool) -> None:
    """`ValueError` where a model is no better than guessing or has collapsed, unless it is forced.

    Args:
        what: the checkpoint, as messages name it.
    """
    if (useless := [found for found in findings if found.blocks]) and not force:
        line = health_lines(useless)[0]
        raise ValueError(f"{what}: {line[0].lower()}{line[1:]}; force=true goes on with this model all the same")
