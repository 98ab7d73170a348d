"""Sending MLflow what a run could not, later."""

from __future__ import annotations

import os
from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar

from pydantic import Field

from dpl_ray.config.overrides import JobConfig
from dpl_ray.store.lock import sole_use
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.journal import Journal
from dpl_ray.tracking.sender import Sender
from dpl_ray.tracking.server import check_uri, first_line, shown_uri, with_password

CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")  # that MLflow sends
PREFIXES = ("", "_ledger/")  # of the files of a run, of a comparison ...; of a labelling's output


class SyncConfig(JobConfig):
    """All fields of `dpl-ray sync-tracking`."""

    required: ClassVar = {"run": "runs/NAME"}

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
    found = [journal for place in places for prefix in PREFIXES if (journal := Journal(place, prefix)).is_there]
    if not found:
        raise ValueError(f"run={run}: nothing there was recorded in MLflow; give the folder of a run, as runs/NAME")
    counts: dict[str, int] = {}
    failures: list[str] = []
    for journal in filter(attrgetter("has_unsent"), found):
        try:
            with sole_use(f"run={journal.folder}", journal.place):
                journal.load()  # which its command may have changed until now
                counts[str(journal.folder)] = _send(journal, uri)
        except NotSentError as error:
            failures.append(str(error))
        except ValueError as error:
            if journal.unsent:  # else the command that is at work has sent all that there was
                failures.append(str(error))
    if failures:
        more = f" (and {len(failures) - 1} more folders)" if len(failures) > 1 else ""
        raise NotSentError(failures[0] + more)
    return SyncResult(
        num_entries=counts,
        num_refused={str(journal.folder): journal.num_refused for journal in found},
        run_ids={str(journal.folder): journal.run_id for journal in found},
    )


def _check_host(where: str, journal: Journal) -> None:
    """A folder may be somebody else's: the server that it names gets no credentials."""
    sent = [name for name in CREDENTIALS if os.environ.get(name)]
    known = shown_uri(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if sent and where.startswith(("http://", "https://")) and shown_uri(where) != known:
        raise NotSentError(
            f"{journal.folder}: its records are for {shown_uri(where)}, which would get {sent[0]}; give it as uri= or "
            "in MLFLOW_TRACKING_URI to send them there"
        )


def _send(journal: Journal, uri: str | None) -> int:
    """Number of entries and rows of the history that were sent."""
    starts = (entry["uri"] for entry in journal.unsent if entry["kind"] == "start")
    where = uri or with_password(next(starts, journal.uri))
    assert where is not None, "a journal begins with the start of its run, or with the run"
    if uri is None:
        _check_host(where, journal)
    if uri and journal.run_id:
        journal.uri = shown_uri(uri)  # the same server at another address
    try:
        sender = Sender(where, journal)
        sender.send()
        journal.is_open = False
    except Exception as error:  # whatever a client, a server or a driver raises
        raise NotSentError(
            f"MLflow at {shown_uri(where)}: {first_line(error)}; {len(journal.unsent)} entries of {journal.folder} and "
            "what is left of its metrics are sent by the same command"
        ) from error
    finally:
        journal.save()
    return sender.num_sent
