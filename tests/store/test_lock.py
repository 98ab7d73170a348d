"""Two commands on one folder: the second is told so, and touches nothing."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import filelock
import pytest

from dpl_ray.commands import cli, compare, label, self_train, train, tune
from dpl_ray.commands.command import Command
from dpl_ray.store import lock
from dpl_ray.store.lock import LOCK_FILE, sole_use
from dpl_ray.store.storage import Storage
from tests.labeling.jobs import make_checkpoint, write_images
from tests.labeling.outputs import write_digits

TINY = ("scale.num_workers=0", "tracking.enabled=false", "run.name=first", "model.width=1", "train.num_steps=2")


def own_data(folder: Path) -> list[str]:
    return ["data=parquet", "data.channels=1", "data.image_size=8"] + [
        f"data.{field}={write_digits(folder / f'{field}.parquet', start, start + 40)}"
        for start, field in zip((0, 40, 80), ("train", "unlabeled", "test"), strict=True)
    ]


def labeling(folder: Path) -> list[str]:
    write_images(folder / "pool", range(3))
    checkpoint = make_checkpoint(folder)
    return [f"checkpoint={checkpoint}", f"pool={folder}/pool", f"output={folder}/runs/first"]


@pytest.mark.parametrize(
    ("command", "more"),
    [
        (train.COMMAND, lambda folder: TINY),
        (compare.COMMAND, lambda folder: [*TINY, "policies=[dpl,fixmatch]"]),
        (tune.COMMAND, lambda folder: [*TINY, "num_trials=1"]),
        (self_train.COMMAND, lambda folder: [*TINY, *own_data(folder)]),
        (label.COMMAND, lambda folder: [*TINY[:2], *labeling(folder)]),
    ],
)
def test_every_command_is_alone_in_its_folder(
    command: Command,
    more: Callable[[Path], Sequence[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [f"run.storage_path={tmp_path}/runs", *more(tmp_path)]
    folder = tmp_path / "runs" / "first"
    locked = folder / "_ledger" if command is label.COMMAND else folder
    with sole_use("run.name=first", Storage(str(locked))):
        assert cli.run(command, arguments) == cli.WRONG_USE
        assert [path for path in folder.rglob("*") if path.is_file()] == [locked / LOCK_FILE]
    field = f"output={folder}" if command is label.COMMAND else "run.name=first"
    expected = f"error: {field}: another command is at work in this folder; wait for its end, or take another "
    assert capsys.readouterr().err.strip() == expected + field.partition("=")[0]


def _hold(folder: str, begun: Any) -> None:
    with sole_use("run.name=a", Storage(folder)):
        begun.set()
        multiprocessing.Event().wait()


def test_the_lock_of_a_process_that_is_killed_is_gone(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path / "a"), begun), daemon=True)
    process.start()
    assert begun.wait(120)
    folder = Storage(str(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"^run\.name=a: another command"), sole_use("run.name=a", folder):
        pass
    process.kill()
    process.join()
    for _ in range(2):
        with sole_use("run.name=a", folder), sole_use("run.name=b", Storage(str(tmp_path / "b"))):
            pass


@pytest.mark.parametrize("error", [OSError(95, "Operation not supported"), NotImplementedError("no locks")])
def test_a_file_system_without_locks_keeps_nobody_out(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    let_in = []
    for name in ("first", "second"):
        with sole_use("run.name=a", Storage(str(tmp_path))):
            let_in.append(name)
    assert let_in == ["first", "second"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    message = r"^output=link: the folder cannot be made \(.*link'\); take another output$"
    with pytest.raises(ValueError, match=message), sole_use("output=link", Storage(f"{tmp_path}/link")):
        pass


# Buckets


@pytest.fixture
def bucket(s3: tuple[Any, str]) -> Storage:
    return Storage(f"s3://labels/first{s3[1]}")


def test_in_a_bucket_a_command_at_work_is_found_out_and_left_alone(
    bucket: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = bucket / LOCK_FILE
    with sole_use("run.name=first", bucket):
        (held,) = leases.list()
        # In the time for which the other one waits, this one renews its lease.
        monkeypatch.setattr(lock.time, "sleep", lambda _: (leases / held).write(b""))
        message = (
            "^run.name=first: another command is at work in this folder; wait for its end, or take another run.name$"
        )
        with (
            pytest.warns(
                UserWarning, match="at work in this folder, or was killed there; which one is known within 60 s"
            ),
            pytest.raises(ValueError, match=message),
            sole_use("run.name=first", bucket),
        ):
            pass
        assert leases.list() == [held]
    assert leases.list() == []


def test_in_a_bucket_the_lease_of_a_command_that_was_killed_expires(
    bucket: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (killed := bucket / LOCK_FILE / "of-the-killed").write(b"")
    waited = []

    def pass_time(seconds: float) -> None:
        waited.append(seconds)
        monkeypatch.setattr(lock, "LEASE_SECONDS", 0)

    monkeypatch.setattr(lock.time, "sleep", pass_time)
    with pytest.warns(UserWarning, match="was killed there"), sole_use("run.name=first", bucket):
        assert not killed.exists()
    assert len(waited) == 1


def test_in_a_bucket_a_command_is_interrupted_when_another_one_has_taken_its_folder_over(
    bucket: Storage, ctrl_c: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SECONDS_TO_RENEW", 0.01)
    leases = Storage(str(bucket / LOCK_FILE))  # as another command has them

    def work() -> None:
        with sole_use("run.name=first", bucket):
            (held,) = leases.list()
            while True:
                (leases / held).remove()

    with pytest.warns(UserWarning, match="another command has taken"), pytest.raises(KeyboardInterrupt):
        work()


def test_a_command_whose_folder_another_one_has_taken_over_writes_nothing_more(bucket: Storage) -> None:
    """Also what was derived from the folder, and its copies in other processes."""
    with sole_use("run.name=first", bucket / "books", bucket):
        for name in ("step-1/manifest.json", "step-1/weights", "run.json"):
            (bucket / name).write(b"mine")
        leases = Storage(str(bucket / "books" / LOCK_FILE))  # as another command has them
        (leases / leases.list()[0]).remove()
        for folder in (bucket, pickle.loads(pickle.dumps(bucket)), bucket / "step-1"):
            for act in (
                lambda folder=folder: (folder / "run.json").write(b"late"),
                lambda folder=folder: (folder / "history.jsonl").append(b"late"),
                (folder / "run.json").remove,
                folder.delete,
            ):
                with pytest.raises(ValueError, match=r"^s3://labels/first.*: is left as it is, since another command"):
                    act()
        assert (bucket / "run.json").read() == (bucket / "step-1" / "weights").read() == b"mine"
        assert not (bucket / "history.jsonl").exists()
    (bucket / "run.json").write(b"the next one")


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_lease_that_expired_before_it_was_renewed_is_kept_where_nobody_has_come(
    bucket: Storage, monkeypatch: pytest.MonkeyPatch, is_taken: bool
) -> None:
    """Who came has found it expired, and may have removed it between two requests of this one."""
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0)
    (mine := bucket / LOCK_FILE / "mine").write(b"")
    if is_taken:
        (bucket / LOCK_FILE / "theirs").write(b"")
    assert lock._renew(mine) is not is_taken
    assert (bucket / LOCK_FILE).list() == (["theirs"] if is_taken else ["mine"])
