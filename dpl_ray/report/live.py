"""The page of a run that goes on: there from its first record, and written again as the run goes on."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import Splits
from dpl_ray.page.html import Page, Section, render_page
from dpl_ray.page.plots import MAX_POINTS
from dpl_ray.report.console import training_state
from dpl_ray.report.curves import History, pseudo_section, training_section
from dpl_ray.report.page import REPORT_FILE, subtitle
from dpl_ray.runs.folder import RunFolder
from dpl_ray.store.history import read_history

if TYPE_CHECKING:
    from dpl_ray.training.records import Record

SHARE = 0.02  # of the time: most that writing the page takes, and as much again for drawing
SECONDS_AT_FIRST = 2.0  # of writing beside that share: the first page loads libraries
SECONDS_TO_RELOAD = 15  # of the page in a browser


class Allowance:
    """SHARE of the time for something that is done again and again, and so many seconds beside it."""

    def __init__(self, seconds: float) -> None:
        self._began, self._spent = time.monotonic(), -seconds

    def is_left(self) -> bool:
        return self._spent <= SHARE * (time.monotonic() - self._began)

    @contextmanager
    def spent(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent += time.monotonic() - began


class LivePage:
    """Of one training; the page of the finished run is written over this one.

    A record costs some milliseconds: its numbers are written into a page whose drawings are those of an earlier record
    where new ones would take too long.
    """

    def __init__(self, config: Config, splits: Splits, folder: RunFolder) -> None:
        self.config, self.splits, self.folder = config, splits, folder
        self._writing, self._drawing, self._has_failed = Allowance(SECONDS_AT_FIRST), Allowance(0.0), False
        self._metrics: dict[str, dict[str, float]] = {}  # phase -> the newest values
        self._drawn: tuple[str, dict[str, Section]] = ("", {})  # phase, and sections with drawings of it

    def update(self, record: Record) -> None:
        """After a record that the folder has; nothing where writing would take more than SHARE of the time.

        A page that cannot be written costs a warning and not the run.
        """
        self._metrics[record.phase] = self._metrics.get(record.phase, {}) | record.metrics
        if not self._writing.is_left():
            return
        try:
            if record.phase != self._drawn[0] or self._drawing.is_left():
                self._drawn = (record.phase, {})
                with self._drawing.spent():
                    self._drawn = (record.phase, self._draw(record))
            with self._writing.spent():
                (self.folder.storage / REPORT_FILE).write(self._page(record).html.encode())
        except Exception as error:
            if not self._has_failed:
                warnings.warn(f"{REPORT_FILE}: cannot be written ({type(error).__name__}: {error})", stacklevel=2)
            self._has_failed = True

    def _page(self, record: Record) -> Page:
        progress = Section(
            title="The run goes on",
            record=record,
            state=training_state(self._metrics[record.phase]),
            time=datetime.now().astimezone().strftime("%H:%M:%S %Z"),
            seconds_to_reload=SECONDS_TO_RELOAD,
        )
        sections = {"progress": progress, **self._drawn[1]}
        return render_page("report/live.html", self.folder.name, subtitle(self.config, self.splits), sections)

    def _draw(self, record: Record) -> dict[str, Section]:
        has_baseline = self.config.train.baseline and record.phase != "supervised"
        most = 2 * MAX_POINTS  # the memory of a long run is not to grow by its records
        history = History(read_history(self.folder.storage), record.phase, most)
        sections = {
            "training": training_section(
                history,
                History(read_history(self.folder.storage), "supervised", most) if has_baseline else None,
                num_curve_images=min(self.config.train.curve_images, len(self.splits.test)),
                num_test=len(self.splits.test),
                num_validation=len(self.splits.validation),
            ),
        }
        if history.points("pseudo/coverage"):
            sections["pseudo-labels"] = pseudo_section(history)
        return sections
