"""The batches of a GPU: a thread makes the next one and copies it there while the step runs."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields

import torch

from dpl_ray.data.batches.feed import Batch, BatchFeed
from dpl_ray.training.capture import GPU_LOCK


class DeviceFeed:
    """`feed(step)` is the batch of that step on the device; on a CPU the feed's own, made when it is asked for."""

    def __init__(self, feed: BatchFeed, device: torch.device, num_steps: int) -> None:
        """
        Args:
            num_steps: of the run: no batch from this step on is made.
        """
        self.feed, self.device, self.num_steps = feed, device, num_steps
        self._is_ahead = device.type == "cuda"
        self._next: tuple[int, Future[tuple[Batch, torch.cuda.Event]]] | None = None
        if self._is_ahead:
            self._stream = torch.cuda.Stream(device)
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def __call__(self, step: int) -> Batch:
        if not self._is_ahead:
            return self.feed(step)
        if self._next is None or self._next[0] != step:
            self._ask(step)
        assert self._next is not None
        batch, copied = self._next[1].result()
        if step + 1 < self.num_steps:
            self._ask(step + 1)
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(copied)
        for field in fields(Batch):
            getattr(batch, field.name).record_stream(stream)
        return batch

    def _ask(self, step: int) -> None:
        self._next = step, self._thread.submit(self._make, step)

    def _make(self, step: int) -> tuple[Batch, torch.cuda.Event]:
        made = self.feed(step)
        with GPU_LOCK, torch.cuda.stream(self._stream):
            batch = made.to(self.device)
            copied = torch.cuda.Event()
            copied.record()
        return batch, copied

    def close(self) -> None:
        """Stop reading a streamed pool, and the thread."""
        self.feed.close()
        if self._is_ahead:
            self._thread.shutdown(cancel_futures=True)
