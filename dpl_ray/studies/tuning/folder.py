"""The folder of a search: whether it may go on, and what is made of the trials that have ended.

<run.storage_path>/<run.name>/
  search.json   configuration, digest of the data, the command
  trial-0007/   dpl_ray/studies/tuning/trials.py
  best.yaml     the configuration of the best trial, for `python -m pipelines.train config=best.yaml`
  trials.csv    a row per trial          search.md   the best of them          search.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpl_ray.config.schema import Config, to_yaml
from dpl_ray.runs.folder import SEARCH_FILE, check_kind, check_same, writable_folder
from dpl_ray.store.storage import Storage
from dpl_ray.studies.tuning.config import SearchConfig, how_searched
from dpl_ray.studies.tuning.page import make_page
from dpl_ray.studies.tuning.space import Space, with_values
from dpl_ray.studies.tuning.table import describe, to_csv, to_markdown
from dpl_ray.studies.tuning.trials import TrialResult, read_trials
from dpl_ray.tracking.journal import Journal


@dataclass(frozen=True)
class Outputs:
    """What a search has written."""

    best: Storage
    csv: Storage
    markdown: Storage
    page: Storage


class SearchFolder:
    """Opens the folder of a search; nothing is written until `begin`."""

    def __init__(self, storage_path: str, name: str, tree: dict[str, Any]) -> None:
        """
        Args:
            tree: what may not change, as config.search_tree says it.

        Raises:
            ValueError: it cannot be written, or something else of this name exists, or a search with another
                configuration.
        """
        self.name, self.storage = name, writable_folder(storage_path, name)
        check_kind(self.storage, SEARCH_FILE)
        self.info: dict[str, Any] = {
            "command": None,
            "config": tree,
            "data": None,
        }
        self.resumed = (self.storage / SEARCH_FILE).exists()
        if self.resumed:
            self.info |= json.loads((self.storage / SEARCH_FILE).read())
            check_same(name, "search", self.info["config"], tree, free=())

    def check_data(self, fingerprint: str) -> None:
        """Refuse to go on with other data than the trials have learned from."""
        if self.ended() and self.info["data"] != fingerprint:
            raise ValueError(
                f"run.name={self.name}: the trials of this search were trained on other data (the images or labels "
                "have changed since); take another run.name"
            )
        self.info["data"] = fingerprint

    def begin(self, command: str | None) -> None:
        """
        Args:
            command: that the table is to name as its origin; None leaves the one that is known.
        """
        self.info["command"] = command or self.info["command"]
        self.save_info()

    def ended(self) -> list[TrialResult]:
        """Results of all trials that have ended, by number."""
        found = [TrialResult.load(self.storage, trial.name) for trial in read_trials(self.storage)]
        return [result for result in found if result]

    def write(
        self,
        config: Config,
        options: SearchConfig,
        space: Space,
        ranked: Sequence[TrialResult],
        failed: Mapping[str, str],
    ) -> Outputs:
        """
        Args:
            config: of the search.
            ranked: results, the best first; that one has an accuracy.
            failed: name of a trial that has not ended -> why.
        """
        place = self.storage
        best = with_values(config, ranked[0].values)
        # A training run of its own, with a name of its own: not in the folder of the search.
        best = best.model_copy(
            update={
                "run": best.run.model_copy(update={"name": None}),
                "train": best.train.model_copy(update={"baseline": True}),
            }
        )
        header = (
            f"# {ranked[0].trial.name} of {self.name}: accuracy {ranked[0].accuracy:.4f} on held-out labelled images\n"
            f"# python -m pipelines.train config={place / 'best.yaml'}\n"
        )
        (place / "best.yaml").write((header + to_yaml(best)).encode())
        (place / "trials.csv").write(to_csv(ranked, space).encode())
        searched = how_searched(options)
        described = describe(ranked, config, searched, self.info["command"], Journal(place).run_id)
        (place / "search.md").write(to_markdown(ranked, space, self.name, described).encode())
        page = make_page(self.name, ranked, space, str(place / "best.yaml"), searched, described, failed)
        (place / "search.html").write(page.render().encode())
        names = ("best.yaml", "trials.csv", "search.md", "search.html")
        return Outputs(*(place / name for name in names))

    def save_info(self) -> None:
        (self.storage / SEARCH_FILE).write(json.dumps(self.info, indent=1).encode())
