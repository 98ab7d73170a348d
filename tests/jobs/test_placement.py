"""Where a training runs and with how many threads, where it is not told to, and that it stays so."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from torch import nn

from dpl_ray import fit, load_config
from dpl_ray.config.schema import Config, ModelConfig
from dpl_ray.data.dataset import Splits
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.pool.windows import StreamedPool
from dpl_ray.jobs import placement
from dpl_ray.jobs.placement import count_operations, place
from dpl_ray.models import build_model, count_forward_operations
from dpl_ray.training.threads import free_cores
from tests.builders import tiny_config, tiny_splits
from tests.jobs.test_fit import fail_at


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores, three of them free, four GPUs, and no cluster."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(placement, "nodes_for", lambda scale: ([{"CPU": 8.0, "GPU": 4.0}], "this machine"))
    monkeypatch.setattr(placement, "free_cores", lambda: 3)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def placed(saved: dict[str, Any] | None = None, splits: Splits | None = None, **groups: Any) -> tuple[Any, Any, str]:
    """Workers, threads, and why."""
    config = tiny_config(**{"scale": {"num_workers": None}} | groups)
    found, why = place(config, splits or tiny_splits(), saved or {})
    assert found.changed(scale=config.scale) == config
    return found.scale.num_workers, found.scale.threads_per_worker, why


def test_a_small_job_runs_here_with_the_cores_that_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    num_workers, threads, why = placed()
    assert (num_workers, threads) == (0, 3)
    assert why.startswith("scale=auto: this process with 3 threads, as the job is small (")
    monkeypatch.setattr(placement, "SMALL", 1.0)
    num_workers, threads, why = placed()
    assert (num_workers, threads) == (2, 4)
    assert why.startswith("scale=auto: 2 Ray Train workers, as the job is large (")


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"train": {"batch_size": 5}}, (0, 3, "this process with 3 threads, as there is work for one worker alone")),
        ({"scale": {"use_gpu": True}}, (4, 2, "4 Ray Train workers, one for each GPU")),
        ({"scale": {"use_gpu": True}, "train": {"batch_size": 6}}, (3, 2, "3 Ray Train workers, one for each GPU")),
        ({"scale": {"address": "head:6379"}}, (2, None, "2 Ray Train workers, as there is a cluster")),
    ],
)
def test_what_there_is_decides(groups: dict[str, Any], expected: tuple[int, int | None, str]) -> None:
    num_workers, threads, why = expected
    groups |= {"scale": {"num_workers": None} | groups.get("scale", {})}
    assert placed(**groups) == (num_workers, threads, f"scale=auto: {why}")


def test_a_pool_that_is_streamed_is_read_by_others() -> None:
    splits = dataclasses.replace(tiny_splits(), unlabeled=StreamedPool((), DecodeSettings(8, 3), ()))
    assert placed(splits=splits) == (2, 4, "scale=auto: 2 Ray Train workers, as Ray Data reads the pool meanwhile")


def test_what_is_given_is_taken() -> None:
    assert placed(scale={"num_workers": 0}) == (0, 3, "")
    assert placed(scale={"num_workers": 0, "threads_per_worker": 2}) == (0, 2, "")
    assert placed(scale={"num_workers": 4}) == (4, 2, "")
    assert placed(scale={"num_workers": [1, 4]}) == ((1, 4), 2, "")


def test_a_run_that_goes_on_has_what_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "SMALL", 1.0)
    here = {"num_workers": 0, "threads_per_worker": 7}
    assert placed(here) == (0, 7, "scale=auto: this process with 7 threads, as before")
    assert placed(here, scale={"num_workers": None, "threads_per_worker": 2})[:2] == (0, 2), "the word of today"
    assert placed(here, scale={"num_workers": 2})[:2] == (2, 4), "seven threads were those of one process"
    assert placed({"num_workers": 2, "threads_per_worker": None})[:2] == (2, 4), "as an older version has kept it"
    elastic = {"num_workers": [1, 4], "threads_per_worker": 3}  # as YAML has it
    assert placed(elastic) == ((1, 4), 3, "scale=auto: 1 to 4 Ray Train workers, as before")
    assert placed(elastic, scale={"num_workers": (1, 4)})[:2] == ((1, 4), 3)


def test_after_an_interruption_the_threads_are_those_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = ["train.num_steps=4", "train.log_every=2", "model.width=1", "train.batch_size=4", "train.baseline=false"]
    fixed += [f"run.storage_path={tmp_path}", "run.name=tiny", "tracking.enabled=false"]
    set_to, printed = list[int](), io.StringIO()
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    fail_at(monkeypatch, "dpl", 2)
    with pytest.raises(OSError, match="interrupted"):
        fit(load_config(fixed))
    kept = yaml.safe_load((tmp_path / "tiny" / "config.yaml").read_text())["scale"]
    assert (kept["num_workers"], kept["threads_per_worker"]) == (0, 3)
    monkeypatch.setattr(placement, "free_cores", lambda: pytest.fail("it is known"))
    fit(load_config(fixed), console=Console(file=printed, width=200))
    assert "\nscale=auto: this process with 3 threads, as before\n" in printed.getvalue()
    usual = torch.get_num_threads()
    assert set_to == [3, usual, 3, usual], "the threads of the program that calls are left as they were"


@pytest.mark.parametrize(
    ("busy", "allowed", "expected"),
    [
        ([0.0] * 4, 4, 4),
        ([100.0, 90.0, 10.0, 0.0], 4, 2),
        ([100.0] * 4, 4, 1),
        ([0.0] * 64, 4, 4),
        ([0.0] * 4, 9, 4),
    ],
)
def test_cores_are_free_that_no_program_uses(
    busy: list[float], allowed: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: allowed)
    monkeypatch.setattr("psutil.cpu_percent", lambda interval, percpu: busy)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert free_cores() == expected
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr("psutil.cpu_percent", lambda interval, percpu: pytest.fail("it need not look"))
    assert free_cores() == 1


def test_operations_are_those_of_convolutions_and_linear_layers() -> None:
    config, total = ModelConfig(depth=10, width=1), 0

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        weight: Any = module.weight
        total += 2 * weight[0].numel() * output.numel()

    model = build_model(config, 3, 5).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, 8, 8))
    assert count_forward_operations(config, 3, (8, 8), 5) == total


def test_operations_of_a_job() -> None:
    def images(**groups: Any) -> float:
        config: Config = tiny_config(**groups)
        forward = count_forward_operations(config.model, 3, (8, 8), 3)
        return count_operations(config, tiny_splits()) / forward

    # Per step 4 labelled images with gradient for both models, 12 weak views without and 12 strong ones with gradient.
    assert images() == 20 * (2 * 4 * 3 + 12 * 1 + 12 * 3)
    assert images(train={"baseline": False}) == 20 * (4 * 3 + 12 * 4)
    assert images(policy={"name": "supervised"}) == 20 * 4 * 3
