"""Images of a streamed pool that cannot be read, and its files that turn out to be none."""

from __future__ import annotations

from itertools import islice

from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import BadImage, ImageSet
from dpl_ray.data.files.kinds import FOREIGN
from dpl_ray.data.pool.windows import PoolFeed
from dpl_ray.data.splits.bad_images import most_bad, read_bad
from dpl_ray.store.storage import Storage
from dpl_ray.training.distributed import Workers
from dpl_ray.training.records import Window


class Unreadable:
    """Counted over all workers and told; too many stop the run."""

    def __init__(
        self,
        config: Config,
        pool: ImageSet | PoolFeed | None,
        others: tuple[BadImage, ...],
        folder: Storage,
        workers: Workers,
        window: Window,
    ) -> None:
        """
        Args:
            others: of the run's unreadable images those that are not of the pool.
            folder: of the run, whose list has those that an earlier start has found.
        """
        self.stream = pool if isinstance(pool, PoolFeed) else None
        self.limit, self.workers, self.window = config.data.max_bad_fraction, workers, window
        #: Sample id -> reason; at most data.max_bad_fraction of the pool, or the run has stopped.
        self.known: dict[str, str] = {}
        self.left_out: set[str] = set()  # files that are no images, of this start
        if self.stream is not None:
            # Of one worker: the list may grow while they read it, and all have to stop in the same step.
            self.known = workers.gather_json({} if workers.rank else read_bad(folder))[0]
            for image in others:
                self.known.pop(image.id, None)

    def check(self, step: int) -> None:
        """`ValueError`, on every worker, where they are more than data.max_bad_fraction allows of the pool."""
        if self.stream is None:
            return
        mine = [(image.id, image.reason) for image in self.stream.take_bad()]
        found = [BadImage(*image) for images in self.workers.gather_json(mine) for image in images]
        foreign = {image.id for image in found if image.reason == FOREIGN}
        if foreign - self.left_out:
            self.left_out |= foreign
            self.window.tell(step, {"data/left_out": float(len(self.left_out))})
        new = {image.id: image.reason for image in found if image.id not in foreign and image.id not in self.known}
        self.known |= new
        if new:
            bad = tuple(BadImage(*item) for item in new.items())
            self.window.tell(step, {"data/unreadable": float(len(self.known))}, bad)
        if len(self.known) > most_bad(self.limit, self.stream.pool_size):
            listed = ", ".join(f"{name} ({reason})" for name, reason in islice((new or self.known).items(), 3))
            raise ValueError(
                f"data.max_bad_fraction={self.limit}: {len(self.known)} of {self.stream.pool_size} images of the pool "
                f"cannot be read, as {listed}; bad_images.csv has those found so far; repair or remove them, or raise "
                "the limit"
            )
