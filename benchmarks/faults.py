"""Kills at random instants, full disks and damaged files: every run must end as one that nothing has disturbed.

    python -m benchmarks.faults --save                    # make faults
    python -m benchmarks.faults --rounds 8 --seed 1       # make soak

A round kills 25 processes and nodes; docs/reliability.md says which. The status is 1 where a result is not the same.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.tables import FOLDER
from tests import faults
from tests.cluster.nodes import Cluster, enter
from tests.damages import check_damages
from tests.faults import DRIVER, Disturbed, Event, Job, disturb
from tests.labeling.gate import num_parts
from tests.labeling.jobs import make_checkpoint, write_images, write_parquet

NUM_STEPS, NUM_IMAGES = 400, 120
COLUMNS = ("job", "what", "when", "outcome", "same")
TRAINING = (
    f"train.num_steps={NUM_STEPS} train.log_every=4 train.checkpoint_every=20 train.batch_size=4 train.mu=2 "
    "model.depth=10 model.width=1 train.curve_images=0 train.baseline=false tracking.enabled=false run.name=first "
    "scale.threads_per_worker=1"  # or as many as cores are free just then, and the last bits are others
).split()
WORKER, NEWS, CONTROLLER = "a training worker", "the actor that brings the news", "the controller of Ray Train"
READER, DECODER, LABELLER = "a task that reads the pool", "a task that decodes", "an actor that labels"
RAYLET, GCS, AGENT = "Ray's raylet", "Ray's gcs_server", "the agent of Ray's dashboard"
HERE, ON_RAY = "scale.num_workers=0", "scale.num_workers=2"


def training(name: str, *more: str) -> Job:
    def arguments(folder: Path) -> list[str]:
        return [*TRAINING, f"run.storage_path={folder / 'runs'}", *more]

    return Job(name, "pipelines.train", arguments, faults.num_rows, faults.weights)


def labelling(name: str, place: Path, *more: str) -> Job:
    def arguments(folder: Path) -> list[str]:
        fields = [f"checkpoint={place / 'checkpoint'}", f"pool={place / 'pool'}", f"output={folder / 'labels'}"]
        return [*fields, "rows_per_part=4", "batch_size=3", "tracking.enabled=false", *more]

    return Job(name, "pipelines.label", arguments, lambda folder: num_parts(folder / "labels"), faults.labels)


def streamed(place: Path) -> list[str]:
    """The data of a training, a streamed pool, that `write_streamed` has written."""
    return [
        *("data=parquet", f"data.train={place}/labelled.parquet", f"data.unlabeled={place}/stream.parquet"),
        *("data.pool.mode=stream", "data.pool.shuffle_rows=64", "data.image_size=8"),
    ]


def write_streamed(place: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.labeling.jobs import png

    write_parquet(place / "stream.parquet", range(500))
    numbers = list(range(1000, 1060))
    table = pa.table({"image": [png(number) for number in numbers], "label": [number % 3 for number in numbers]})
    pq.write_table(table, place / "labelled.parquet")


def plan(place: Path) -> list[tuple[Job, list[list[str]]]]:
    """Each job, and the victims of each of its runs: 23 in all, several within one run."""
    cpus = (os.cpu_count() or 1) - 0.5
    return [
        (training("training, pool in memory", HERE), [[DRIVER] * 3, [DRIVER]]),
        (training("training, pool streamed", *streamed(place), HERE), [[DRIVER] * 4]),
        (labelling("labelling", place, HERE), [[DRIVER] * 3]),
        (training("training on Ray, pool in memory", ON_RAY), [[WORKER, NEWS, WORKER], [DRIVER, WORKER]]),
        (training("training on Ray, pool streamed", *streamed(place), ON_RAY), [[READER, WORKER, READER]]),
        (
            labelling("labelling on Ray", place, "scale.num_workers=1", f"scale.cpus_per_worker={cpus}"),
            [[LABELLER, DECODER, LABELLER, DRIVER]],
        ),
    ]


def prepare(place: Path) -> None:
    """Pools, labelled images and a checkpoint."""
    write_images(place / "pool", range(NUM_IMAGES // 2))
    write_parquet(place / "pool" / "a.parquet", range(NUM_IMAGES // 2, NUM_IMAGES))
    write_streamed(place)
    made = make_checkpoint(place / "made")
    Path(made).rename(place / "checkpoint")


def whole(job: Job, place: Path) -> int:
    """The result of the job where nothing disturbs it, and how far it comes."""
    folder = place / job.slug
    folder.mkdir()
    (place / f"{job.slug}.digest").write_text(Disturbed(job, folder).finish())
    return job.progress(folder)


def full_disks(job: Job, place: Path) -> list[Event]:
    """A disk that is full, and storage that fails for a while."""
    events: list[Event] = []
    for what, prepared in (
        ("the disk is full while a checkpoint is written", faults.FULL_FOR_GOOD),
        ("the disk is full for a while", faults.FULL_FOR_A_WHILE),
        ("the storage answers with errors for a while", faults.ERRORS_FOR_A_WHILE),
    ):
        events.append(event := Event(job.name, what, "at the second checkpoint"))
        (folder := place / f"full-{len(events)}").mkdir()
        run = Disturbed(job, folder, prepared)
        event.same = run.finish() == (place / f"{job.slug}.digest").read_text()
        went_on = f"status {run.statuses[0]}; the same command went on"
        event.outcome = "went on by itself" if len(run.statuses) == 1 else went_on
    return events


def stores(job: Job, place: Path) -> list[Event]:
    """MLflow's SQLite file locked, or full, until the run has come further: it has the whole run in the end."""
    events: list[Event] = []
    for what in ("MLflow's database is locked for a while", "MLflow's database is full for a while"):
        events.append(event := Event(job.name, what))
        (folder := place / f"store-{len(events)}").mkdir()
        file = folder / "mlflow.db"
        more = ["tracking.enabled=true", f"tracking.uri=sqlite:///{file}"]
        is_full = partial(faults.fill_database, str(folder), 20, 60) if len(events) == 2 else None
        run = Disturbed(job, folder, is_full, more)
        process = run.start()
        process.wait_for(partial(reached, job, folder, 20))
        event.when = f"at {job.progress(folder)}"
        with contextlib.closing(sqlite3.connect(file, timeout=60)) as other:
            if is_full is None:
                other.execute("BEGIN EXCLUSIVE")
            process.wait_for(partial(reached, job, folder, 60))
        is_same = run.finish() == (place / f"{job.slug}.digest").read_text()
        event.same = is_same and faults.recorded(file) == ("FINISHED", NUM_STEPS // 4)
        went_on = f"status {run.statuses[0]}; the same command went on"
        event.outcome = "went on by itself" if len(run.statuses) == 1 else went_on
    return events


def services(job: Job, place: Path) -> list[Event]:
    """A worker that stands still, and the processes of Ray without which it ends."""
    events: list[Event] = []
    for what, number in (
        (WORKER, signal.SIGSTOP),
        (CONTROLLER, signal.SIGKILL),
        (RAYLET, signal.SIGKILL),
        (GCS, signal.SIGKILL),
        (AGENT, signal.SIGKILL),
    ):
        events.append(event := Event(job.name, what))
        (folder := place / f"service-{len(events)}").mkdir()
        run = Disturbed(job, folder, more=["scale.seconds_without_progress=30"])
        run.strike(event, 20, number)
        event.same = run.finish() == (place / f"{job.slug}.digest").read_text()
        event.what += " (SIGSTOP)" if number == signal.SIGSTOP else ""
    return events


def nodes(jobs: Sequence[Job], place: Path, seed: int) -> list[Event]:
    """Of a cluster of two nodes the one without the command is lost, as a spot instance, and another one comes."""
    events: list[Event] = []
    (logs := place / f"nodes-{seed}").mkdir()
    cluster = Cluster(logs)
    try:
        cluster.add()
        two = [f"scale.address={cluster.address}", "scale.num_workers=2", "scale.cpus_per_worker=1.5"]  # one a node
        for job in jobs:
            events.append(event := Event(f"{job.name}, two nodes", "a node"))
            (folder := logs / job.slug).mkdir()
            run = Disturbed(job, folder, partial(enter, cluster.env), two)
            process = run.start()
            process.wait_for(partial(reached, job, folder, random.Random(seed).randint(2, 20)))
            event.when = f"at {job.progress(folder)}"
            cluster.nodes.pop().kill()
            cluster.add()
            run.settle(event)
            event.same = run.finish() == (place / f"{job.slug}.digest").read_text()
    finally:
        cluster.end()
    return events


def reached(job: Job, folder: Path, target: int) -> bool:
    return job.progress(folder) >= target


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="of 25 kills each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--damages", type=int, default=1000, help="bits flipped and ends cut off")
    parser.add_argument(
        "--only", default="", help="jobs whose names have this in them; or nodes, disks, stores, services"
    )
    parser.add_argument("--save", action="store_true", help="into docs/results/faults.csv")
    given = parser.parse_args(arguments)
    events: list[Event] = []

    def tell(found: list[Event]) -> None:
        events.extend(found)
        for event in found:
            print(
                *(getattr(event, column) for column in COLUMNS),
                f"{time.monotonic() - began:.0f} s",
                sep=" | ",
                flush=True,
            )

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place)
        for job, runs in plan(place):
            if given.only in job.name:
                total = whole(job, place)
                for number in range(given.rounds * len(runs)):
                    seed = 1000 * given.seed + number
                    tell(disturb(job, place / f"{job.slug}-{number}", runs[number % len(runs)], total, seed))
        if given.only in "nodes":
            jobs = [plan(place)[3][0], plan(place)[2][0]]
            for job in jobs:
                if not (place / job.slug).exists():
                    whole(job, place)
            for number in range(given.rounds):
                tell(nodes(jobs, place, 1000 * given.seed + number))
        num_kills = sum(event.outcome != "it had ended" for event in events)
        here, on_ray = plan(place)[0][0], plan(place)[3][0]
        for name, job, fail in (("disks", here, full_disks), ("stores", here, stores), ("services", on_ray, services)):
            if given.only in ("", name):
                if not (place / job.slug).exists():
                    whole(job, place)
                tell(fail(job, place))
        if given.damages:
            (place / "damages").mkdir()
            counts = check_damages(place / "damages", given.damages, given.seed)
            what = f"{given.damages:,} bits flipped, or ends cut off, in every file of a run"
            outcome = f"{counts['named']} named and refused, {counts['told']} told and made up for, "
            outcome += f"{counts['harmless']} changed nothing that is read"
            tell([Event("a run that goes on", what, "one at a time", outcome, True)])
    print(f"{num_kills} kills, {(time.monotonic() - began) / 60:.0f} minutes")
    if given.save:
        with (FOLDER / "faults.csv").open("w", encoding="utf-8", newline="") as file:
            rows = [[getattr(event, column) for column in COLUMNS] for event in events]
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    return int(not all(event.same for event in events))


if __name__ == "__main__":
    sys.exit(main())
