"""Ray Train's trainer, without the processes that a run has no use for: each takes a second of a core to start."""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class Trainer(DataParallelTrainer):
    """Of workers that get no data set of Ray's; Ctrl-C is not for Ray Train, which aborts at the first one."""

    def __init__(self, *given: Any, is_own: bool, reads_data: bool, **named: Any) -> None:
        """
        Args:
            is_own: this process has started the Ray, which ends with it: nobody has to remove what a lost controller
                had reserved.
            reads_data: Ray Data reads meanwhile, which asks what else is reserved.
        """
        super().__init__(*given, **named)
        self.controllers: list[Any] = []
        self._is_own, self._reads_data = is_own, reads_data

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controllers.append(controller)

    def _create_default_callbacks(self) -> list[Any]:
        unneeded = (DatasetsCallback, *([PlacementGroupCleanerCallback] if self._is_own else []))
        return [each for each in super()._create_default_callbacks() if not isinstance(each, unneeded)]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        if self._is_own and not self._reads_data:
            settings["scaling_policy"] = _FixedScaling(self.scaling_config)
        return super()._initialize_and_run_controller(**settings)


class _FixedScaling(FixedScalingPolicy):
    """Does not tell Ray's autoscaler, which has no machine to add, what is reserved."""

    def _send_resource_request(self) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass

    def _cancel_resource_request(self) -> None:
        pass
