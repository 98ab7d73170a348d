"""A node is lost and another one comes, in the middle of a pass: training goes on with as many workers as there are.

In `make test-jobs` alone, which takes more than a minute.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from dpl_ray.store.history import read_history
from dpl_ray.store.storage import Storage
from tests.builders import write_images
from tests.cluster.changing import BACK_AT, LOST_AT, hold
from tests.cluster.nodes import Cluster
from tests.processes import SECONDS, Command

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]
NUM_STEPS = 26
TRAINING = (
    f"train.num_steps={NUM_STEPS} train.log_every=2 train.checkpoint_every=4 train.batch_size=4 train.mu=2 "
    "model.depth=10 model.width=1 model.normalization=group optim.learning_rate=0.003 train.baseline=false "
    "tracking.enabled=false run.name=first"
).split()
STREAMED = ["data.pool.mode=stream", "data.pool.shuffle_rows=64"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("nodes"))
    started.add()
    yield started
    started.end()


def losses(folder: Path) -> dict[int, tuple[float, float]]:
    """Step -> both losses, as they were told last."""
    rows = read_history(Storage(str(folder / "first")))
    found = [(row["step"], row["metrics"]) for row in rows if "train/loss_labeled" in row["metrics"]]
    return {step: (metrics["train/loss_labeled"], metrics["train/loss_unlabeled"]) for step, metrics in found}


@pytest.mark.parametrize("pool", [["data.pool.mode=memory"], STREAMED], ids=["memory", "stream"])
def test_two_workers_become_one_and_two_again_and_the_losses_are_those_of_an_undisturbed_run(
    cluster: Cluster, tmp_path: Path, pool: list[str]
) -> None:
    write_images(tmp_path / "train.parquet", range(20))
    write_images(tmp_path / "pool.parquet", range(20, 321), row_group_size=50)  # a pass has 38 steps
    data = ["data=parquet", f"data.train={tmp_path}/train.parquet", f"data.unlabeled={tmp_path}/pool.parquet"]
    data += ["data.image_size=8", *pool]
    place = [f"scale.address={cluster.address}", "scale.num_workers=[1,2]", "scale.cpus_per_worker=1.5"]  # one a node
    arguments = [*data, *TRAINING, *place, f"run.storage_path={tmp_path}/elastic"]
    process = Command("pipelines.train", arguments, tmp_path / "printed", partial(hold, cluster.env))
    for step, change in ((LOST_AT, lambda: cluster.nodes.pop().kill()), (BACK_AT, cluster.add)):
        process.wait_for((tmp_path / "elastic" / "first" / f"at-{step}").exists)
        assert process.status is None, process.end()
        change()
    printed = process.end()
    assert process.status == 0, printed
    assert "1 in place of 2 workers go on from the newest checkpoint" in printed
    assert "2 in place of 1 workers go on from the newest checkpoint" in printed

    alone = [*data, *TRAINING, "scale.num_workers=0", f"run.storage_path={tmp_path}/alone"]
    undisturbed = Command("pipelines.train", alone, tmp_path / "alone printed")
    assert undisturbed.end()
    found, expected = losses(tmp_path / "elastic"), losses(tmp_path / "alone")
    assert found.keys() == expected.keys() == set(range(2, NUM_STEPS + 1, 2))
    for step, pair in expected.items():
        assert found[step] == pytest.approx(pair, abs=1e-5)


def test_a_run_that_waits_for_a_node_ends_with_ctrl_c(cluster: Cluster, tmp_path: Path) -> None:
    place = [f"scale.address={cluster.address}", "scale.num_workers=2", "scale.cpus_per_worker=1.5"]
    arguments = ["data=digits", *TRAINING, *place, f"run.storage_path={tmp_path}"]
    process = Command("pipelines.train", arguments, tmp_path / "printed", partial(hold, cluster.env))
    process.wait_for((tmp_path / "first" / f"at-{LOST_AT}").exists)
    assert process.status is None, process.end()

    def told() -> int:
        return (tmp_path / "printed").read_text().count("no worker runs")

    before = told()  # of the start, where that takes its time
    cluster.nodes.pop().kill()
    process.wait_for(lambda: told() > before)
    os.kill(process.pid, signal.SIGINT)
    printed = process.end()
    cluster.add()
    assert process.status == 130, printed
    assert "room for 2 of 1.5 CPUs each; Ctrl-C ends the run" in printed
    assert "interrupted: no worker runs, the newest checkpoint is saved; go on with: " in printed
    assert "a checkpoint is saved after this step" not in printed
    deadline = time.monotonic() + SECONDS
    while any("ray::" in title and "Train" in title for title in cluster.processes().values()):
        assert time.monotonic() < deadline, cluster.processes()
