"""Sending MLflow what a run could not, later."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from dpl_ray.config.overrides import load_section
from dpl_ray.config.section import Section
from dpl_ray.store.lock import sole_use
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.journal import Journal
from dpl_ray.tracking.sender import Sender, shown_uri
from dpl_ray.tracking.tracker import check_uri, first_line

PREFIXES = ("", "_ledger/")  # of the files of a run, of a comparison ...; of a labelling's output


class SyncConfig(Section):
    """All fields of `python -m pipelines.sync_tracking`."""

    run: str = Field(
        "",
        description="folder of a run, comparison, search, self-training or labelling, or a folder of these; required",
    )
    uri: str | None = Field(None, description="new address of the same server; null: the address it had")


class NotSentError(RuntimeError):
    """The server has not taken all of it; what is left is kept."""


@dataclass(frozen=True)
class SyncResult:
    """The result of `sync_tracking`."""

    num_entries: dict[str, int]  # folder -> entries, of those that had any
    num_refused: dict[str, int]  # folder -> those of them that MLflow does not take: tracking-refused.jsonl
    run_ids: dict[str, str | None]  # folder -> run id


def load_syncing(overrides: Sequence[str] = ()) -> SyncConfig:
    """The configuration that `python -m pipelines.sync_tracking OVERRIDES` runs with.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    return load_section(SyncConfig, overrides, {"run": "runs/NAME"})


def sync_tracking(run: str, uri: str | None = None) -> SyncResult:
    """Send MLflow what a run could not send. Nothing is recorded twice.

    A run that is at work is left out: it sends its own records.

    Args:
        run: its folder, or a folder of such folders.
        uri: new address of the same server; None: the address it had.

    Raises:
        ValueError: there is no such folder, or nothing in it was recorded; `uri` is no address.
        NotSentError: the server has not taken everything, or a run is at work; the same call goes on.
    """
    folder = Storage(run)
    if not folder.exists():
        raise ValueError(f"run={run}: there is no such folder; give that of a run, as runs/NAME")
    if uri:
        check_uri("uri", uri)
    places = (folder, *map(folder.__truediv__, folder.list()))
    journals = [Journal(place, prefix) for place in places for prefix in PREFIXES]
    if not any(journal.is_there for journal in journals):
        raise ValueError(f"run={run}: nothing there was recorded in MLflow; give the folder of a run, as runs/NAME")
    found = [journal for journal in journals if journal.has_unsent]
    counts: dict[str, int] = {}
    failures: list[str] = []
    for journal in found:
        try:
            with sole_use(f"run={journal.folder}", journal.place):
                counts[str(journal.folder)] = _send(journal, uri)
        except (NotSentError, ValueError) as error:
            failures.append(str(error))
    if failures:
        more = f" (and {len(failures) - 1} more folders)" if len(failures) > 1 else ""
        raise NotSentError(failures[0] + more)
    return SyncResult(
        num_entries=counts,
        num_refused={str(journal.folder): journal.num_refused for journal in found},
        run_ids={str(journal.folder): journal.run_id for journal in found},
    )


def _with_password(uri: str | None) -> str | None:
    """An address as it was written down, which is without its password."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    return given if given and shown_uri(given) == uri else uri


def _send(journal: Journal, uri: str | None) -> int:
    """Number of entries that were sent."""
    sender, count = None, 0
    while entries := journal.take():
        where = uri or _with_password(
            next((entry["uri"] for entry in entries if entry["kind"] == "start"), journal.uri)
        )
        assert where is not None, "a journal begins with the start of its run, or with the run"
        num_entries = len(entries)
        if uri and journal.run_id:
            journal.uri = shown_uri(uri)  # the same server at another address
        try:
            sender = sender or Sender(where, journal)
            sender.send(entries)
        except Exception as error:  # whatever a client, a server or a driver raises
            raise NotSentError(
                f"MLflow at {shown_uri(where)}: {first_line(error)}; {len(entries)} entries of {journal.folder} are "
                "left, and the same command sends them"
            ) from error
        finally:
            journal.put_back(entries)
            count += num_entries - len(entries)
    return count
