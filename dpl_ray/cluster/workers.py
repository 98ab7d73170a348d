"""Running training workers with Ray Train, news of them flowing back to the driver."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Callable
from typing import Any

from dpl_ray.cluster import connect as cluster
from dpl_ray.config.schema import ScaleConfig

SECONDS_TO_DRAIN = 10.0


class WorkersLostError(RuntimeError):
    """Ray gave up on the workers."""


def run_workers(
    work: Callable[[Any, Callable[[Any], None]], Any],
    payload: Any,
    *,
    scale: ScaleConfig,
    name: str,
    storage_path: str,
    on_news: Callable[[Any], None],
) -> Any:
    """Run `work(payload, tell)` on every worker and return worker 0's result.

    Args:
        work: picklable; runs inside Ray Train with its process group set up.
        payload: put into the object store once; arrays in it are shared by the workers of a node.
        on_news: called in this process, in order, with what worker 0 passes to `tell`.

    Raises:
        WorkersLostError: a worker died more than scale.max_failures times.
        ValueError: the cluster is not there or is too small.
    """
    started = cluster.connect(scale)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig
    from ray.util.queue import Queue

    for logger in ("ray", "ray.train", "ray.data"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    mailbox = Queue(actor_options={"num_cpus": 0})
    reader = threading.Thread(target=_read, args=(mailbox, on_news), daemon=True)
    reader.start()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"work": work, "payload": ray.put(payload), "mailbox": mailbox},
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
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise WorkersLostError(_first_cause(error)) from error
    except SystemExit:
        # Ray Train answers Ctrl-C with its own handler, which ends the process.
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_interrupt)
        with contextlib.suppress(ray.exceptions.RayError):  # the mailbox may be lost with its node, the result is not
            mailbox.put(None)
            reader.join(SECONDS_TO_DRAIN)
            mailbox.shutdown()
        if started:
            ray.shutdown()


def _worker(loop_config: dict[str, Any]) -> Any:
    import ray

    mailbox = loop_config["mailbox"]

    def tell(news: Any) -> None:
        # Not waited for: news that cannot be delivered must not hold up the training.
        mailbox.actor.put_nowait.remote(news)

    return loop_config["work"](ray.get(loop_config["payload"]), tell)


def _read(mailbox: Any, on_news: Callable[[Any], None]) -> None:
    failed = False
    while (news := mailbox.get()) is not None:
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
