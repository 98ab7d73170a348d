"""Comparisons whose cells are Ray tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpl_ray import CompareConfig
from dpl_ray.cluster.connect import connected_nodes
from dpl_ray.studies.comparison.job import Comparison
from tests.studies.test_comparison import TWO, config_for, measured, run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_cells_are_ray_tasks_with_the_same_results(tmp_path: Path) -> None:
    here, _ = run(tmp_path / "here", "scale.threads_per_worker=1")
    damaged = tmp_path / "there" / "first" / "dpl-seed-1" / "step-00000002"
    damaged.mkdir(parents=True)
    (damaged / "manifest.json").write_text("{}")
    overrides = ("scale.num_workers=1", "scale.threads_per_worker=1")
    two_at_once = TWO.model_copy(update={"cpus_per_cell": 2})
    broken, output = run(tmp_path / "there", *overrides, options=two_at_once)
    assert list(broken.failed) == ["dpl-seed-1"]
    assert broken.failed["dpl-seed-1"].startswith("ValueError: checkpoint=")
    assert "manifest.json is damaged" in broken.failed["dpl-seed-1"]
    assert "3 of 4 cells done" in output
    (damaged / "manifest.json").unlink()
    there, output = run(tmp_path / "there", *overrides, options=two_at_once)
    assert "goes on, 3 of them finished before" in output
    assert there.failed == {}
    assert measured(there) == measured(here)


def test_a_cell_that_no_node_of_the_cluster_carries_is_refused(tmp_path: Path) -> None:
    study = Comparison(config_for(tmp_path), CompareConfig(cpus_per_cell=5))
    with pytest.raises(ValueError, match=r"cpus_per_cell=5: no node of the cluster has that many CPUs; at most 4"):
        study.count_places(connected_nodes(), "the cluster")
