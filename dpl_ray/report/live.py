"""The page of a run that goes on: there from its first record, and written again as the run goes on."""

from __future__ import annotations

import time
import warnings
from datetime import datetime
from typing import TYPE_CHECKING

from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import Splits
from dpl_ray.page.html import Page, Section, render_page
from dpl_ray.report.curves import History, pseudo_section, training_section
from dpl_ray.report.page import REPORT_FILE, subtitle
from dpl_ray.runs.folder import RunFolder

if TYPE_CHECKING:
    from dpl_ray.training.records import Record

SHARE = 0.02  # of the time: most that writing the page takes, the first time aside
SECONDS_TO_RELOAD = 15  # of the page in a browser


class LivePage:
    """Of one training; the page of the finished run is written over this one."""

    def __init__(self, config: Config, splits: Splits, folder: RunFolder) -> None:
        self.config, self.splits, self.folder = config, splits, folder
        self._due, self._has_failed = 0.0, False

    def update(self, record: Record) -> None:
        """After a record that the folder has; nothing where it would take more than SHARE of the time.

        A page that cannot be written costs a warning and not the run.
        """
        began = time.monotonic()
        if began < self._due:
            return
        try:
            (self.folder.storage / REPORT_FILE).write(self._page(record).html.encode())
        except Exception as error:
            if not self._has_failed:
                warnings.warn(f"{REPORT_FILE}: cannot be written ({type(error).__name__}: {error})", stacklevel=2)
            self._has_failed = True
        ended = time.monotonic()
        self._due = ended + (ended - began) * (1 / SHARE - 1)

    def _page(self, record: Record) -> Page:
        has_baseline = self.config.train.baseline and record.phase != "supervised"
        history = History(self.folder.history, record.phase)
        sections = {
            "progress": Section(
                title="The run goes on",
                record=record,
                time=datetime.now().astimezone().strftime("%H:%M:%S %Z"),
                seconds_to_reload=SECONDS_TO_RELOAD,
            ),
            "training": training_section(
                history,
                History(self.folder.history, "supervised") if has_baseline else None,
                num_curve_images=min(self.config.train.curve_images, len(self.splits.test)),
                num_test=len(self.splits.test),
                num_validation=len(self.splits.validation),
            ),
        }
        if history.points("pseudo/coverage"):
            sections["pseudo-labels"] = pseudo_section(history)
        return render_page("report/live.html", self.folder.name, subtitle(self.config, self.splits), sections)
