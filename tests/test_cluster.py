"""Is there room for the workers: sums that need no cluster."""

from __future__ import annotations

import pytest

from dpl_ray.cluster import check_resources, count_places
from dpl_ray.config import ScaleConfig


@pytest.mark.parametrize(
    ("nodes", "cpus", "use_gpu", "places"),
    [
        ([{"CPU": 4.0}], 1, False, 4),
        ([{"CPU": 4.0}, {"CPU": 4.0}], 5, False, 0),  # 8 CPUs, and no node with 5
        ([{"CPU": 4.0}, {"CPU": 4.0}], 3, False, 2),
        ([{"CPU": 2.0}], 0.5, False, 4),
        ([{"CPU": 8.0, "GPU": 2.0}], 1, True, 2),
        ([{"CPU": 8.0}, {"GPU": 4.0}], 1, True, 0),  # CPUs here and GPUs there
        ([], 1, False, 0),
    ],
)
def test_a_worker_fits_on_one_node_or_not_at_all(
    nodes: list[dict[str, float]], cpus: float, use_gpu: bool, places: int
) -> None:
    assert count_places(nodes, ScaleConfig(num_workers=1, cpus_per_worker=cpus, use_gpu=use_gpu)) == places


def test_more_than_this_machine_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    check_resources(ScaleConfig(num_workers=4, cpus_per_worker=0.5))
    with pytest.raises(ValueError, match=r"scale\.num_workers=5 .* needs 2\.5 CPUs, this machine has 2; at most 4"):
        check_resources(ScaleConfig(num_workers=5, cpus_per_worker=0.5))
