"""Running training workers with Ray Train, news of them flowing back to the driver."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import warnings
from collections.abc import Callable
from typing import Any

from dpl_ray.cluster import connect as cluster
from dpl_ray.config.schema import ScaleConfig
from dpl_ray.training.interruption import Stop

SECONDS_TO_DRAIN = 10.0


class WorkersLostError(RuntimeError):
    """Ray gave up on the workers."""


def run_workers(
    work: Callable[[Any, Callable[[Any], None], threading.Event], Any],
    payload: Any,
    *,
    scale: ScaleConfig,
    name: str,
    storage_path: str,
    on_news: Callable[[Any], None],
    stop: Stop,
) -> Any:
    """Run `work(payload, tell, stop)` on every worker and return worker 0's result.

    Args:
        work: picklable; runs inside Ray Train with its process group set up.
        payload: put into the object store once; arrays in it are shared by the workers of a node.
        on_news: called in this process, in order, with what worker 0 passes to `tell`.
        stop: asked for in this process, from the first news on, worker 0's event is set.

    Raises:
        WorkersLostError: a worker died more than scale.max_failures times.
        ValueError: the cluster is not there or is too small.
    """
    begun, controllers = threading.Event(), list[Any]()

    def ask_to_stop() -> None:
        if not begun.is_set():
            raise KeyboardInterrupt
        mailbox.ask_to_stop.remote()

    stop.pass_on = ask_to_stop
    started = cluster.connect(scale)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    from dpl_ray.cluster.process_group import NodeAddressConfig

    for logger in ("ray", "ray.train", "ray.data"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    mailbox: Any = ray.remote(num_cpus=0)(_Mailbox).remote()
    reader = threading.Thread(target=_read, args=(mailbox, on_news, begun), daemon=True)
    reader.start()

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Not Ray Train's own handler, which aborts at the first Ctrl-C."""
            controllers.append(controller)

    trainer = Trainer(
        _worker,
        train_loop_config={"work": work, "payload": ray.put(payload), "mailbox": mailbox},
        torch_config=NodeAddressConfig(),
        scaling_config=ScalingConfig(
            num_workers=scale.num_workers,
            use_gpu=scale.use_gpu,
            resources_per_worker={"CPU": scale.cpus_per_worker} | ({"GPU": 1} if scale.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage_path,
            failure_config=FailureConfig(max_failures=scale.max_failures, controller_failure_limit=2),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        return trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise WorkersLostError(_first_cause(error)) from error
    except KeyboardInterrupt:
        with contextlib.suppress(ray.exceptions.RayError):  # it ends with its answer
            ray.get([controller.abort.remote() for controller in controllers])
        raise
    finally:
        with contextlib.suppress(ray.exceptions.RayError):  # the mailbox may be lost with its node, the result is not
            ray.get(mailbox.put.remote(None))
            reader.join(SECONDS_TO_DRAIN)
            ray.kill(mailbox)
        if started:
            cluster.disconnect()


class _Mailbox:
    """News from worker 0 to the driver, and the driver's word to worker 0."""

    def __init__(self) -> None:
        self._news: asyncio.Queue[Any] = asyncio.Queue()
        self._stop = asyncio.Event()

    async def put(self, news: Any) -> None:
        await self._news.put(news)

    async def get(self) -> Any:
        return await self._news.get()

    async def ask_to_stop(self) -> None:
        self._stop.set()

    async def wait_for_stop(self) -> None:
        await self._stop.wait()


def _worker(loop_config: dict[str, Any]) -> Any:
    import ray
    from ray.train import get_context

    mailbox, stop = loop_config["mailbox"], threading.Event()

    def tell(news: Any) -> None:
        # Not waited for: news that cannot be delivered must not hold up the training.
        mailbox.put.remote(news)

    def wait_for_stop() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the mailbox ends with the run
            ray.get(mailbox.wait_for_stop.remote())
            stop.set()

    if get_context().get_world_rank() == 0:  # the others hear of it in the step's collective
        threading.Thread(target=wait_for_stop, daemon=True).start()
    return loop_config["work"](ray.get(loop_config["payload"]), tell, stop)


def _read(mailbox: Any, on_news: Callable[[Any], None], begun: threading.Event) -> None:
    import ray

    failed = False
    while (news := ray.get(mailbox.get.remote())) is not None:
        begun.set()
        try:
            on_news(news)
        except Exception as error:  # what is shown and recorded must not stop what is trained, nor end silently
            if not failed:
                warnings.warn(f"news of the run got lost: {type(error).__name__}: {error}", stacklevel=1)
            failed = True


def _first_cause(error: Exception) -> str:
    failures = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        if str(failure).strip():
            return f"worker {rank}: {cluster.cause_line(failure)}"
    return str(error).strip().splitlines()[0]
