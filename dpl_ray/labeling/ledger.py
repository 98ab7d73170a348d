"""The books of a labelling: what is planned, what is done, and that both agree.

<output>/
  part-000000-00000.parquet   labels of one block: input, block of the input
  _ledger/job.json            what the labels depend on
  _ledger/plan.arrow          files and blocks (dpl_ray/labeling/plan.py)
  _ledger/manifests/          000000.json: an input whose parts are all there, with its counts
  _ledger/certificate.json    thresholds of confidence, where an error is certified (dpl_ray/labeling/certificate.py)
  _report/                    summary.json, summary.png, bad.csv, certificate.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from dpl_ray.config.section import shown
from dpl_ray.data.formats.rows import PoolFiles
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.labeling.parts import FOREIGN, Counts, read_counts
from dpl_ray.labeling.plan import Plan, empty_plan, extend_plan
from dpl_ray.runs.folder import default_tree, differences
from dpl_ray.store.file_systems import one_line
from dpl_ray.store.records import csv_text, parse_tree, read_tree, write_json
from dpl_ray.store.storage import Storage

FORMAT = 1  # of the output
SUMMARY_NAME = "summary.json"  # written when all is done: data.labels looks for it
MAX_LISTED = 100_000  # rows of bad.csv
_NUM_THREADS = 16  # that read and write small files: they wait for the storage


class LedgerError(RuntimeError):
    """What was written is not what was planned."""


@dataclass(frozen=True)
class Part:
    """What the manifest of an input says of one of its parts."""

    name: str
    size: int  # bytes
    num_rows: int
    num_unreadable: int


@dataclass(frozen=True)
class Manifest:
    """What is written of an input that is done."""

    counts: Counts
    parts: list[Part]

    @classmethod
    def read(cls, file: Storage) -> Manifest:
        """
        Raises:
            ValueError, LookupError, TypeError: it is damaged.
        """
        tree = read_tree(file)
        return cls(Counts(**tree["counts"]), [Part(**part) for part in tree["parts"]])


class Ledger:
    """The ledger in an output folder, new or begun before. Nothing is written before `begin`."""

    def __init__(self, output: str, identity: dict[str, Any], num_classes: int) -> None:
        """
        Args:
            identity: what the labels depend on; an output of another one is refused.

        Raises:
            ValueError: the output cannot be written, holds something else or a damaged job.json, or was begun with
                other settings.
        """
        self._output = output
        try:
            self.storage = Storage(output)
            self.storage.check_writable()
            self._sizes = _list_sizes(self.storage)
            job = self._job.read() if self._job.exists() else None
        except (OSError, ValueError, pa.ArrowException) as error:
            right = "a bucket that answers, with credentials and region," if "://" in output else "a folder"
            raise ValueError(
                f"output={output}: cannot be written ({one_line(error)}); give {right} that you may write to"
            ) from None
        self.name, self.num_classes = self.storage.name, num_classes
        identity = {"format": FORMAT} | json.loads(json.dumps(identity))
        self.identity: dict[str, Any] = identity
        self.resumed = job is not None
        if job is not None:
            self._check_identity(job)
        elif (self.storage / "run.json").exists():
            raise ValueError(f"output={output}: is the folder of a run; give an empty folder")
        elif found := sorted(name for name in self._sizes if name.endswith((".parquet", ".pq"))):
            raise ValueError(
                f"output={output}: holds {found[0]} already, which no labelling has begun; give an empty folder"
            )
        self._open: dict[int, dict[int, tuple[Counts, int]]] = {}  # input -> block -> counts and bytes of its part
        self.counts = Counts.none(num_classes)  # of all rows that are done
        self.missing: list[int] = []  # blocks without a part

    @property
    def books(self) -> Storage:
        """The folder that is no part of the dataset."""
        return self.storage / "_ledger"

    @property
    def _job(self) -> Storage:
        return self.books / "job.json"

    @property
    def certificate(self) -> Storage:
        """What is certified of the labels; written before the first of them."""
        return self.books / "certificate.json"

    @property
    def report(self) -> Storage:
        return self.storage / "_report"

    def lost(self, book: Storage, why: str) -> ValueError:
        """That the labelling cannot go on without one of its books."""
        return ValueError(
            f"output={self._output}: cannot go on without {book} ({why}); take another output, or remove this one"
        )

    def _check_identity(self, job: bytes) -> None:
        try:
            begun = dict(parse_tree(job)["identity"])
        except (ValueError, LookupError, TypeError) as error:
            raise self.lost(self._job, f"damaged: {one_line(error)}") from None
        name = begun.get("policy", {}).get("name", "")
        tree = default_tree(name)  # of what an older version does not name
        defaults = tree | {"decode": asdict(DecodeSettings()), "features": {"model": tree["model"]}}
        found = sorted(differences(begun, self.identity, (), defaults), key=lambda difference: difference[0])
        if found:
            field, before, now = found[0]
            raise ValueError(
                f"output={self._output}: was begun with {field}={shown(before)}, now it is {shown(now)}; take another "
                "output, or the same values to go on"
            )

    def begin(self, listed: PoolFiles, max_rows: int) -> None:
        """Plan what is new in the pool, and find what is done.

        Raises:
            ValueError: a file of the pool has changed, or the plan is damaged or missing.
            OSError: the output cannot be written.
        """
        if not self.resumed and self._job.exists():  # another command has begun it while this one listed the pool
            self._check_identity(self._job.read())
            self.resumed = True
        place = self.books / "plan.arrow"
        old = empty_plan(listed)
        if place.exists():
            data = place.read()
            try:
                old = Plan.from_bytes(data, listed)
            except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
                raise self.lost(place, f"damaged: {one_line(error)}") from None
        elif any(name.startswith("part-") for name in self._sizes):
            raise self.lost(place, "missing")  # a plan made anew may give these parts other rows
        self.plan = extend_plan(old, listed, max_rows)
        if not self.resumed:
            write_json(self._job, {"identity": self.identity})
        if self.plan is not old or not place.exists():
            place.write(self.plan.to_bytes())
        self.num_new = len(self.plan) - len(old) if self.resumed else 0
        self._list_parts()
        self._find_done()
        if self.missing:  # the summary says that all is done
            (self.report / SUMMARY_NAME).remove()

    def _list_parts(self) -> None:
        """Look at what there is, and remove what a killed process was writing; a bucket has none of that."""
        self._sizes = _list_sizes(self.storage)
        for name in self._sizes:
            if name.startswith(".part-"):
                (self.storage / name).remove()

    def _find_done(self) -> None:
        with ThreadPoolExecutor(_NUM_THREADS) as executor:
            for number, manifest in enumerate(executor.map(self._whole_manifest, range(self.plan.num_inputs))):
                if manifest is not None:
                    self.counts += manifest.counts
                    continue
                blocks = self.plan.blocks_of(number)
                self._open[number] = {}
                for block, found in zip(blocks, executor.map(self._written, blocks), strict=True):
                    if found:
                        self._add(block, *found)
                    else:
                        self.missing.append(block)
                self._close(number)

    def _manifest_file(self, number: int) -> Storage:
        return self.books / "manifests" / f"{number:06d}.json"

    def _whole_manifest(self, number: int) -> Manifest | None:
        """The manifest of an input, unless it or a part of it is missing or not whole."""
        try:
            manifest = Manifest.read(self._manifest_file(number))
        except (FileNotFoundError, ValueError, LookupError, TypeError):  # as one that a machine that went down left
            return None
        return manifest if all(self._sizes.get(part.name) == part.size for part in manifest.parts) else None

    def _written(self, block: int) -> tuple[Counts, int] | None:
        name = self.plan.part_name(block)
        if name not in self._sizes:
            return None
        counts = read_counts(self.storage / name, self.plan.num_rows(block))
        return (counts, self._sizes[name]) if counts else None

    def add(self, block: int, counts: Counts, size: int) -> None:
        """The part of a block is written; with the last one of an input comes its manifest."""
        self._add(block, counts, size)
        self._close(self.plan.input_of(block))

    def _add(self, block: int, counts: Counts, size: int) -> None:
        self._open[self.plan.input_of(block)][block] = counts, size
        self.counts += counts

    def _close(self, number: int) -> None:
        parts, blocks = self._open[number], self.plan.blocks_of(number)
        if len(parts) < len(blocks):
            return
        files = self.plan.files_of(number)
        total = sum((counts for counts, _ in parts.values()), Counts.none(self.num_classes))
        manifest = {
            "input": self.plan.input_name(number),
            "num_files": len(files),
            "size": int(self.plan.pool.sizes[files.start : files.stop].sum()),
            "num_rows": sum(self.plan.num_rows(block) for block in blocks),
            "counts": asdict(total),
            "parts": [
                asdict(Part(self.plan.part_name(block), size, counts.num_rows, counts.num_unreadable))
                for block, (counts, size) in sorted(parts.items())
            ],
        }
        write_json(self._manifest_file(number), manifest)
        del self._open[number]

    def check(self) -> Counts:
        """Add up the manifests: selected + rejected + unreadable = rows, of every input and of the pool.

        Raises:
            LedgerError: they are not, naming the input.
        """
        self._list_parts()
        total = Counts.none(self.num_classes)
        num_parts = 0
        with ThreadPoolExecutor(_NUM_THREADS) as executor:
            for number, manifest in enumerate(executor.map(self._whole_manifest, range(self.plan.num_inputs))):
                name = self.plan.input_name(number)
                if manifest is None:
                    raise LedgerError(f"{name}: its labels are not all there")
                planned = [self.plan.num_rows(block) for block in self.plan.blocks_of(number)]
                counts = manifest.counts
                if [part.num_rows for part in manifest.parts] != planned or counts.num_rows != sum(planned):
                    raise LedgerError(
                        f"{name}: {counts.num_selected:,} selected + {counts.num_rejected:,} rejected + "
                        f"{counts.num_unreadable:,} unreadable are not the {sum(planned):,} rows that were planned"
                    )
                num_parts += len(planned)
                total += counts
        written = sum(name.startswith("part-") for name in self._sizes)
        if total.num_rows != len(self.plan) or num_parts != written:
            raise LedgerError(
                f"{self.storage}: {written:,} parts and {total.num_rows:,} rows, "
                f"{num_parts:,} and {len(self.plan):,} were planned"
            )
        return total

    def write_bad(self) -> Storage | None:
        """Write the list of unreadable rows, as far as they are known, and return where it is; None without any."""
        if not self.counts.num_unreadable:
            return None
        text = csv_text([("id", "reason"), *islice(self.bad_rows(), MAX_LISTED)])
        place = self.report / "bad.csv"
        place.write(text.encode(errors="surrogateescape"))
        return place

    def first_bad(self, number: int) -> list[tuple[str, str]]:
        """Some (sample id, reason) of images that cannot be read."""
        return list(islice((row for row in self.bad_rows() if row[1] != FOREIGN), number))

    def bad_rows(self) -> Iterator[tuple[str, str]]:
        """(sample id, reason) of the unreadable rows of the parts that are there, in the order of the plan."""
        self._sizes = _list_sizes(self.storage)
        for number in range(self.plan.num_inputs):
            if (parts := self._open.get(number)) is not None:
                names = [self.plan.part_name(block) for block in sorted(parts) if parts[block][0].num_unreadable]
            else:
                manifest = self._whole_manifest(number)
                names = [part.name for part in manifest.parts if part.num_unreadable] if manifest else []
            for name in names:
                place = (self.storage / name).path
                table = pq.read_table(place, filesystem=self.storage.filesystem, columns=["sample_id", "error"])
                bad = table.filter(pc.is_valid(table["error"]))
                yield from zip(bad["sample_id"].to_pylist(), bad["error"].to_pylist(), strict=True)


def read_manifests(output: Storage) -> list[Manifest]:
    """Those of a finished labelling, in the order of its inputs.

    Raises:
        ValueError, LookupError, TypeError: one is damaged.
    """
    folder = output / "_ledger" / "manifests"
    names = sorted(name for name in folder.list() if name[0] != ".")
    with ThreadPoolExecutor(_NUM_THREADS) as executor:
        return list(executor.map(Manifest.read, [folder / name for name in names]))


def _list_sizes(folder: Storage) -> dict[str, int]:
    """File -> bytes, of the files in a folder."""
    selector = fs.FileSelector(folder.path, allow_not_found=True)
    infos = folder.filesystem.get_file_info(selector)
    return {info.base_name: info.size for info in infos if info.type == fs.FileType.File}
