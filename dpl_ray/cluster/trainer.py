"""Ray Train's trainer, without the processes that a run has no use for: each takes a second of a core to start.

And how many workers it takes where scale.num_workers is a range.
"""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, FixedScalingPolicy, NoopDecision
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from dpl_ray.cluster.connect import SECONDS_TO_ANSWER, room

SECONDS_TO_WAIT = 1.0  # for nodes, where there is not room for the fewest workers


class Trainer(DataParallelTrainer):
    """Of workers that get no data set of Ray's; Ctrl-C is not for Ray Train, which aborts at the first one."""

    def __init__(self, *given: Any, is_own: bool, reads_data: bool, allowed: Sequence[int] = (), **named: Any) -> None:
        """
        Args:
            is_own: this process has started the Ray, which ends with it: nobody has to remove what a lost controller
                had reserved.
            reads_data: Ray Data reads meanwhile, which asks what else is reserved.
            allowed: numbers of workers, where they may change.
        """
        super().__init__(*given, **named)
        self.controllers: list[Any] = []
        self._is_own, self._reads_data, self._allowed = is_own, reads_data, allowed

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controllers.append(controller)

    def _create_default_callbacks(self) -> list[Any]:
        unneeded = (DatasetsCallback, *([PlacementGroupCleanerCallback] if self._is_own else []))
        return [each for each in super()._create_default_callbacks() if not isinstance(each, unneeded)]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            settings["scaling_policy"] = _ElasticScaling(self.scaling_config, self._allowed)
        elif self._is_own and not self._reads_data:
            settings["scaling_policy"] = _FixedScaling(self.scaling_config)
        return self._run_controller(**settings) if self._is_own else super()._initialize_and_run_controller(**settings)

    def _run_controller(self, **settings: Any) -> Any:
        """In this Ray's own environment: with another one, as Ray Train's, it would not get a process that is there."""
        controller = ray.remote(num_cpus=0)(TrainController).remote(**settings)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


class _FixedScaling(FixedScalingPolicy):
    """Does not tell Ray's autoscaler, which has no machine to add, what is reserved."""

    def _send_resource_request(self) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass

    def _cancel_resource_request(self) -> None:
        pass


class _ElasticScaling(ElasticScalingPolicy):
    """Ray Train's own, which may start workers for which there is no room: it counts nodes that are gone, until Ray has
    noticed, and what others hold. A healthy group would end for that, and the third time the run.
    """

    def __init__(self, scaling_config: ScalingConfig, allowed: Sequence[int]) -> None:
        super().__init__(scaling_config)
        self._allowed = allowed
        self._held = math.inf  # workers whose resources are this run's own

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:  # noqa: ARG002
        if isinstance(current_state, RestartingState):  # lost workers hold theirs until the next ones start
            self._held = math.inf
        elif isinstance(current_state, ReschedulingState):  # there was no room
            self._held = 0

    def make_decision_for_non_running_worker_group(self) -> Any:
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):  # Ray Train asks again at once
            time.sleep(SECONDS_TO_WAIT)
        return decision

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        self._held = worker_group_state.num_workers
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        grows = not isinstance(decision, NoopDecision) and decision.num_workers > worker_group_state.num_workers
        return decision if grows else NoopDecision()  # workers that are well go on

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        needed = self.scaling_config._resources_per_worker_not_none
        each = needed["CPU"], needed.get("GPU", 0.0)
        answering = _answering()
        places: float = room((found for node, found in reserved_resources.items() if node in answering), *each)
        if self._held < math.inf:
            places = min(places, self._held + room(available_resources_per_node().values(), *each))
        return max((number for number in self._allowed if number <= places), default=0)


def _answering() -> set[str]:
    """Ids of the nodes that take a connection; for up to half a minute Ray also lists those that are gone."""
    found = set()
    for node in ray.nodes():
        with contextlib.suppress(OSError):
            place = node["NodeManagerAddress"], node["NodeManagerPort"]
            socket.create_connection(place, SECONDS_TO_ANSWER).close()
            found.add(node["NodeID"])
    return found
