"""Running training workers with Ray Train, news of them flowing back to the driver."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dpl_ray.cluster import connect as cluster
from dpl_ray.cluster import local
from dpl_ray.cluster.connect import SECONDS_TO_ANSWER
from dpl_ray.cluster.mailbox import Mailbox
from dpl_ray.config.schema import ScaleConfig
from dpl_ray.training.interruption import Stop

SECONDS_TO_DRAIN = 10.0
SECONDS_UNTOLD = 30.0  # of waiting for workers
SECONDS_TO_GROW = 60.0  # between looks at whether there is room for more workers of a range


class WorkersLostError(RuntimeError):
    """Ray gave up on the workers, or ended itself."""

    run_name: str | None  # that a run was given which had none, and that it goes on under


def run_workers(
    work: Callable[[Any, Callable[[Any], None], threading.Event], Any],
    payload: Any,
    *,
    scale: ScaleConfig,
    name: str,
    storage_path: str,
    on_news: Callable[[Any], None],
    stop: Stop,
    reads_data: bool = False,
    allowed: Sequence[int] = (),
) -> Any:
    """Run `work(payload, tell, stop)` on every worker and return worker 0's result.

    Args:
        work: picklable; runs inside Ray Train with its process group set up.
        payload: put into the object store once; arrays in it are shared by the workers of a node.
        on_news: called in this process, in order, with what worker 0 passes to `tell`.
        stop: asked for in this process, from the first news on, worker 0's event is set.
        reads_data: whether the workers read by Ray Data.
        allowed: numbers of workers within the range of scale.num_workers, where that is one.

    Raises:
        WorkersLostError: a worker died more than scale.max_failures times, or Ray ended.
        ValueError: the cluster is not there or is too small.
    """
    gpu = " and a GPU" if scale.use_gpu else ""
    watch = Watch(
        scale.seconds_without_progress, f"{scale.worker_range[0]} of {scale.cpus_per_worker:g} CPUs{gpu} each"
    )

    def ask_to_stop() -> None:
        if not watch.has_news:
            raise KeyboardInterrupt
        if not watch.is_working():
            raise KeyboardInterrupt("no worker runs, the newest checkpoint is saved")
        mailbox.ask_to_stop.remote()

    stop.pass_on, is_lost = ask_to_stop, False
    started = cluster.connect(scale)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.config import LoggingConfig

    from dpl_ray.cluster.process_group import NodeAddressConfig
    from dpl_ray.cluster.trainer import Trainer

    for logger in ("ray", "ray.train", "ray.data"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    # One that dies is started again, and asked again: what it had is lost, what is told later is not. On this node, so
    # that it is not lost with another one.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # a label that Ray gives each node
    kept = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, label_selector=here)
    mailbox: Any = kept(Mailbox).remote()
    reader = threading.Thread(target=_read, args=(mailbox, on_news, watch), daemon=True)
    reader.start()
    threading.Thread(target=watch.run, daemon=True).start()

    trainer = Trainer(
        _worker,
        is_own=local.is_running(),
        reads_data=reads_data,
        allowed=allowed,
        train_loop_config={"work": work, "payload": ray.put(payload), "mailbox": mailbox},
        backend_config=NodeAddressConfig(),
        scaling_config=ScalingConfig(
            num_workers=scale.num_workers,
            elastic_resize_monitor_interval_s=SECONDS_TO_GROW,
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
        return ray.cloudpickle.loads(local.while_alive(lambda: trainer.fit().return_value))
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        raise WorkersLostError(_first_cause(error)) from error
    except local.EndedError as error:
        is_lost = True
        local.abandon()
        raise WorkersLostError(str(error)) from None
    except KeyboardInterrupt:
        for controller in trainer.controllers:
            if watch.is_working():  # else it may wait for a node, and answer nobody
                with contextlib.suppress(ray.exceptions.RayError):  # it ends with its answer
                    ray.get(controller.abort.remote(), timeout=SECONDS_TO_DRAIN)
            ray.kill(controller)
        raise
    finally:
        watch.end()
        if not is_lost:
            with contextlib.suppress(ray.exceptions.RayError):  # the mailbox may be lost, the result is not
                ray.get(mailbox.put.remote(None), timeout=SECONDS_TO_DRAIN)
                reader.join(SECONDS_TO_DRAIN)
                ray.kill(mailbox)
            if started:
                cluster.disconnect()


@dataclass(frozen=True)
class _Begun:
    """News that a worker has begun."""

    rank: int
    world_size: int
    actor: Any


class Watch:
    """Ends workers that make no progress; Ray Train then starts all of them anew.

    One that hangs holds up the others in the step's collective, and each of them is alive for Ray.
    """

    def __init__(self, seconds: float, needed: str) -> None:
        """
        Args:
            seconds: without news, after which workers are ended.
            needed: the workers that there has to be room for.
        """
        self._seconds, self._needed = seconds, needed
        self._silence, self._has_told = 0.0, False
        self._actors: list[Any] = []
        self._first: Any = None  # worker 0
        self._world_size, self._ended = 0, threading.Event()
        self.has_news = False  # of a step

    def hear(self, news: Any) -> None:
        """There is news of the workers."""
        self._silence, self._has_told = 0.0, False
        if not isinstance(news, _Begun):
            self.has_news = True
            return
        self._actors.append(news.actor)
        if news.rank == 0:
            self._first = news.actor
            before, self._world_size = self._world_size, news.world_size
            if before == news.world_size:
                _warn("a worker was lost: all go on from the newest checkpoint")
            elif before:
                _warn(f"{news.world_size} in place of {before} workers go on from the newest checkpoint")

    def is_working(self) -> bool:
        """Whether worker 0 lives, as far as Ray knows: not while the run waits for room."""
        import ray

        if self._first is None:
            return False
        try:
            ray.get(self._first.__ray_ready__.remote(), timeout=SECONDS_TO_ANSWER)
        except ray.exceptions.RayActorError:
            return False
        except ray.exceptions.GetTimeoutError:  # it has much to do
            pass
        return True

    def run(self) -> None:
        """Look at the workers now and then until the end."""
        import ray

        pause, looked = min(1.0, self._seconds / 10), time.monotonic()
        while not self._ended.wait(pause):
            # Not the time in which this process was stopped itself.
            self._silence += min(time.monotonic() - looked, 2 * pause)
            looked = time.monotonic()
            if not self._has_told and self._silence > SECONDS_UNTOLD and not self.is_working():
                self._has_told = True
                _warn(f"no worker runs: workers start once there is room for {self._needed}; Ctrl-C ends the run")
            if self._silence > self._seconds and self._actors:
                _warn(f"no progress for {self._seconds:g} s (scale.seconds_without_progress): the workers are ended")
                while self._actors:
                    ray.kill(self._actors.pop())

    def end(self) -> None:
        self._ended.set()


def _warn(text: str) -> None:
    with contextlib.suppress(UserWarning):  # where warnings are errors: this is none for the run
        warnings.warn(text, stacklevel=2)


def _worker(loop_config: dict[str, Any]) -> Any:
    import ray
    from ray.train import get_context

    mailbox, stop, context = loop_config["mailbox"], threading.Event(), get_context()
    rank = context.get_world_rank()
    mailbox.put.remote(_Begun(rank, context.get_world_size(), ray.get_runtime_context().current_actor))

    def tell(news: Any) -> None:
        # Not waited for: news that cannot be delivered must not hold up the training. Pickled, as the result is: who
        # passes them on would load torch to know what they are.
        mailbox.put.remote(ray.cloudpickle.dumps(news))

    def wait_for_stop() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the mailbox ends with the run
            ray.get(mailbox.wait_for_stop.remote())
            stop.set()

    if rank == 0:  # the others hear of it in the step's collective
        threading.Thread(target=wait_for_stop, daemon=True).start()
    return ray.cloudpickle.dumps(loop_config["work"](ray.get(loop_config["payload"]), tell, stop))


def _read(mailbox: Any, on_news: Callable[[Any], None], watch: Watch) -> None:
    failed = False
    for news in _news(mailbox):
        watch.hear(news)
        try:
            if not isinstance(news, _Begun):
                on_news(news)
        except Exception as error:  # what is shown and recorded must not stop what is trained, nor end silently
            if not failed:
                _warn(f"news of the run got lost: {type(error).__name__}: {error}")
            failed = True


def _news(mailbox: Any) -> Iterator[Any]:
    """Until the run has ended, or what brings the news is lost for good."""
    import ray

    with contextlib.suppress(ray.exceptions.RayError):
        while (news := ray.get(mailbox.get.remote())) is not None:
            yield ray.cloudpickle.loads(news) if isinstance(news, bytes) else news


def _first_cause(error: Exception) -> str:
    failures = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        if str(failure).strip():
            return f"worker {rank}: {cluster.cause_line(failure)}"
    return str(error).strip().splitlines()[0]
