"""What a search writes of the trials that have ended.

<run.storage_path>/<run.name>/
  search.json   configuration, digest of the data, the command
  trial-0007/   dpl_ray/studies/tuning/trials.py
  best.yaml     the configuration of the best trial, for `python -m pipelines.train config=best.yaml`
  trials.csv    a row per trial          search.md   the best of them          search.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dpl_ray.config.schema import Config, to_yaml
from dpl_ray.store.storage import Storage
from dpl_ray.studies.tuning.config import SearchConfig, how_searched
from dpl_ray.studies.tuning.page import make_page
from dpl_ray.studies.tuning.space import Space, with_values
from dpl_ray.studies.tuning.table import describe, to_csv, to_markdown
from dpl_ray.studies.tuning.trials import TrialResult
from dpl_ray.tracking.journal import Journal

FILES = "best.yaml", "trials.csv", "search.md", "search.html"


def write_search(
    place: Storage,
    config: Config,
    options: SearchConfig,
    space: Space,
    ranked: Sequence[TrialResult],
    failed: Mapping[str, str],
    command: str | None,
) -> None:
    """
    Args:
        place: folder of the search.
        config: of the search.
        ranked: results, the best first; that one has an accuracy.
        failed: name of a trial that has not ended -> why.
    """
    best, searched = with_values(config, ranked[0].values), how_searched(options)
    # A training run of its own, with a name of its own: not in the folder of the search.
    best = best.model_copy(
        update={
            "run": best.run.model_copy(update={"name": None}),
            "train": best.train.model_copy(update={"baseline": True}),
        }
    )
    header = (
        f"# {ranked[0].trial.name} of {place.name}: accuracy {ranked[0].accuracy:.4f} on held-out labelled images\n"
        f"# python -m pipelines.train config={place / 'best.yaml'}\n"
    )
    described = describe(ranked, config, searched, command, Journal(place).run_id)
    page = make_page(place.name, ranked, space, str(place / "best.yaml"), searched, described, failed)
    texts = header + to_yaml(best), to_csv(ranked, space), to_markdown(ranked, space, place.name, described)
    for name, text in zip(FILES, texts, strict=False):
        (place / name).write(text.encode())
    page.write(place / FILES[-1])
