"""A training step as one CUDA graph: a replay launches all of its kernels at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from dpl_ray.config.schema import Config
from dpl_ray.data.batches.feed import Batch
from dpl_ray.data.batches.views import compile_views
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import TrainState, step_numbers

Step = Callable[[TrainState, Batch, Config, Workers], Tensor]

NUM_PLAIN_STEPS = 3  # before a capture: libraries choose and allocate in them

#: Held while a graph is captured, and by other threads that use the GPU: nothing may be allocated meanwhile.
GPU_LOCK = threading.Lock()


class Captured:
    """Calls the training step: as it is on a CPU, launched one by one on several GPUs, as a graph on a single one.

    Gradient buckets work beside a compiled network: its backward pass is one node of autograd, behind which the hooks
    of its parameters run as they always do. (torch's compiled autograd, which is off, would trace them.) So its buckets
    are sent in their order, but not before that pass has ended.
    """

    def __init__(self, state: TrainState, config: Config, workers: Workers) -> None:
        self.state, self.config, self.workers = state, config, workers
        is_on_gpu = state.fixed is not None and workers.device.type == "cuda"
        self.has_graphs = is_on_gpu and workers.world_size == 1
        if is_on_gpu:
            torch.backends.cudnn.benchmark = not config.train.deterministic  # the shapes stay
            if config.train.precision == "bfloat16":  # then the heads' few products need no more digits than TF32's
                torch.backends.cuda.matmul.allow_tf32 = True
            if config.train.compile:
                state.student.compile(dynamic=False)
                compile_views()
        self._plain_steps: Counter[int] = Counter()  # by capacity
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._batch: Batch | None = None  # whose memory the graphs read
        self._last: torch.cuda.Event | None = None  # behind the newest step

    def __call__(self, step: Step, batch: Batch) -> Tensor:
        """The step's sums; of a graph their memory is the same every time."""
        sums = self._step(step, batch) if self.has_graphs else step(self.state, batch, self.config, self.workers)
        if self.workers.device.type == "cuda":
            self._last = torch.cuda.Event()
            self._last.record()
        return sums

    def is_busy(self) -> bool:
        """Whether the device still works on earlier steps: then the host's waiting costs nothing."""
        return self._last is not None and not self._last.query()

    def _step(self, step: Step, batch: Batch) -> Tensor:
        state, fixed = self.state, self.state.fixed
        assert fixed is not None
        if fixed.capacity not in self._graphs:
            if self._plain_steps[fixed.capacity] < NUM_PLAIN_STEPS:
                self._plain_steps[fixed.capacity] += 1
                return step(state, batch, self.config, self.workers)
            self._graphs[fixed.capacity] = self._capture(step, batch)
        assert self._batch is not None
        for field in fields(Batch):
            getattr(self._batch, field.name).copy_(getattr(batch, field.name), non_blocking=True)
        step_numbers(state, self.config)  # loads them
        graph, sums = self._graphs[fixed.capacity]
        graph.replay()
        state.step += 1
        return sums

    def _capture(self, step: Step, batch: Batch) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Record the step's kernels; none of them runs."""
        if self._batch is None:
            self._batch = Batch(**{field.name: getattr(batch, field.name).clone() for field in fields(Batch)})
        for group in self.state.optimizer.param_groups:
            if "capturable" in group:  # AdamW's, which a checkpoint may say otherwise
                group["capturable"] = True
        number, graph = self.state.step, torch.cuda.CUDAGraph()
        pool = next((other.pool() for other, _ in self._graphs.values()), None)  # graphs never run at the same time
        try:
            with GPU_LOCK, torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                sums = step(self.state, self._batch, self.config, self.workers)
        except RuntimeError as error:
            raise RuntimeError(
                f"the step cannot be captured as a CUDA graph: {error}. A policy or a network of your own must not "
                "read tensors on the host (item, tolist, nonzero, bool)"
            ) from error
        self.state.step = number
        return graph, sums
