"""The books of a labelling: what is planned, what is done, and that both agree.

<output>/
  part-000000-00000.parquet   labels of one block: input, block of the input
  _ledger/job.json            what the labels depend on
  _ledger/plan.arrow          files and blocks (dpl_ray/labeling/plan.py)
  _ledger/manifests/          000000.json: an input whose parts are all there, with its counts
  _ledger/certificate.json    thresholds of confidence, where an error is certified (dpl_ray/labeling/certificate.py)
  _report/                    summary.json, summary.png, bad.csv, certificate.html

What is held of a part are a few numbers in arrays, whatever is done of it: no name, no counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter

from dpl_ray.config.section import in_short, shown
from dpl_ray.data.formats.rows import PoolFiles
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.labeling.parts import COUNTS, FOREIGN, Counts, read_counts
from dpl_ray.labeling.plan import Plan, empty_plan, extend_plan
from dpl_ray.runs.folder import default_tree, differences
from dpl_ray.store.ahead import map_ahead
from dpl_ray.store.file_systems import one_line
from dpl_ray.store.records import csv_text, parse_tree, read_tree, write_json
from dpl_ray.store.storage import Storage

FORMAT = 1  # of the output
SUMMARY_NAME = "summary.json"  # written when all is done: data.labels looks for it
MAX_LISTED = 100_000  # rows of bad.csv
_NUM_THREADS = 16  # that read and write small files: they wait for the storage
_AT_A_TIME = 256  # files that are read ahead


class LedgerError(RuntimeError):
    """What was written is not what was planned."""


@dataclass(frozen=True)
class Part:
    """What the manifest of an input says of one of its parts."""

    name: str
    size: int  # bytes
    num_rows: int
    num_unreadable: int


_PARTS = TypeAdapter(list[Part])


@dataclass(frozen=True)
class Manifest:
    """What is written of an input that is done."""

    counts: Counts
    parts: list[Part]

    @classmethod
    def read(cls, file: Storage) -> Manifest:
        """
        Raises:
            ValueError, LookupError: it is damaged.
        """
        tree = read_tree(file)
        parts = _PARTS.validate_python(tree["parts"])
        if outside := next((part.name for part in parts if "/" in part.name), None):
            raise ValueError(f"a part called {outside}")
        return cls(COUNTS.validate_python(tree["counts"]), parts)


class Ledger:
    """The ledger in an output folder, new or begun before. Nothing is written before `begin`.

    Legend: K blocks, and as many parts.
    """

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
            job = self._job.read() if self._job.exists() else None
            others = () if job is not None else (name for name, _ in self.storage.files())
            found = min((name for name in others if name.endswith((".parquet", ".pq"))), default="")
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
        elif found:
            raise ValueError(
                f"output={output}: holds {found} already, which no labelling has begun; give an empty folder"
            )
        self.counts = Counts.none(num_classes)  # of all rows that are done
        self._added: dict[int, Counts] = {}  # input that is not done -> counts of its parts that came in here

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

    @in_short()
    def _check_identity(self, job: bytes) -> None:
        try:
            begun = dict(parse_tree(job)["identity"])
            name = str(begun.get("policy", {}).get("name", ""))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self.lost(self._job, f"damaged: {one_line(error)}") from None
        tree = default_tree(name)  # of what an older version does not name
        defaults = tree | {"temperature": 1.0, "decode": asdict(DecodeSettings()), "features": {"model": tree["model"]}}
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
            del data
        elif any(name.startswith("part-") for name, _ in self.storage.files()):
            raise self.lost(place, "missing")  # a plan made anew may give these parts other rows
        self.plan = extend_plan(old, listed, max_rows)
        if not self.resumed:
            write_json(self._job, {"identity": self.identity})
        if self.plan is not old or not place.exists():
            place.write(self.plan.to_bytes())
        self.num_new = len(self.plan) - len(old) if self.resumed else 0
        self._find_done()
        self.missing = np.flatnonzero(self._sizes == 0).astype(np.int32)  # blocks without a part
        if len(self.missing):  # the summary says that all is done
            (self.report / SUMMARY_NAME).remove()

    def _list_parts(self) -> tuple[NDArray[np.int64], int]:
        """(K,) bytes of each part, 0 where there is none; and how many parts there are that nobody has planned.

        What a killed process was writing is removed; a bucket has none of that.
        """
        sizes, unplanned, begun = np.zeros(self.plan.num_blocks, np.int64), 0, []
        for name, size in self.storage.files():
            if name.startswith(".part-"):
                begun.append(name)
            elif (block := self.plan.block_named(name)) is not None:
                sizes[block] = size
            else:
                unplanned += name.startswith("part-")
        for name in begun:
            (self.storage / name).remove()
        return sizes, unplanned

    def _find_done(self) -> None:
        self._sizes, _ = self._list_parts()  # then 0 where a part is not whole
        self._unreadable = np.zeros(self.plan.num_blocks, np.int32)  # rows of each part
        self._found = np.zeros(self.plan.num_blocks, bool)  # whether it is here from before, and its input not done
        for number, manifest in enumerate(self._whole_manifests(self._sizes)):
            blocks = self.plan.blocks_of(number)
            if manifest is not None:
                self._unreadable[_slice(blocks)] = [part.num_unreadable for part in manifest.parts]
                self.counts += manifest.counts
                continue
            total = Counts.none(self.num_classes)
            there = [block for block in blocks if self._sizes[block]]
            for block, counts in zip(there, map_ahead(self._written, there, _NUM_THREADS, _AT_A_TIME), strict=True):
                if counts is None:
                    self._sizes[block] = 0
                else:
                    self._unreadable[block], self._found[block] = counts.num_unreadable, True
                    total += counts
            self.counts += total
            if self._sizes[_slice(blocks)].all():
                self._close(number, total)

    def _manifest_file(self, number: int) -> Storage:
        return self.books / "manifests" / f"{number:06d}.json"

    def _whole_manifests(self, sizes: NDArray[np.int64]) -> Iterator[Manifest | None]:
        """Those of all inputs; None for one that is damaged or missing, or that has other parts than are there.

        Args:
            sizes: (K,) bytes of the parts that are there.
        """

        def whole(number: int) -> Manifest | None:
            try:
                manifest = Manifest.read(self._manifest_file(number))
            except (FileNotFoundError, ValueError, LookupError, TypeError):  # as one that a machine that went down left
                return None
            there = [(self.plan.part_name(block), int(sizes[block])) for block in self.plan.blocks_of(number)]
            return manifest if [(part.name, part.size) for part in manifest.parts] == there else None

        return map_ahead(whole, range(self.plan.num_inputs), _NUM_THREADS, _AT_A_TIME)

    def _written(self, block: int) -> Counts | None:
        """What the part of a block carries; None where it is gone or not whole."""
        return read_counts(self.storage / self.plan.part_name(block), self.plan.num_rows(block))

    def add(self, block: int, counts: Counts, size: int) -> None:
        """The part of a block is written; with the last one of an input comes its manifest.

        Raises:
            LedgerError: a part of the same input that was here is gone.
        """
        number = self.plan.input_of(block)
        blocks = self.plan.blocks_of(number)
        self._sizes[block], self._unreadable[block] = size, counts.num_unreadable
        self.counts += counts
        total = self._added.pop(number, Counts.none(self.num_classes)) + counts
        if not self._sizes[_slice(blocks)].all():
            self._added[number] = total
            return
        for before in (block for block in blocks if self._found[block]):  # many may wait: their counts are not held
            found = self._written(before)
            if found is None:
                raise LedgerError(f"{self.storage / self.plan.part_name(before)}: is gone or damaged since the start")
            total += found
        self._close(number, total)

    def _close(self, number: int, total: Counts) -> None:
        files, blocks = self.plan.files_of(number), self.plan.blocks_of(number)
        manifest = {
            "input": self.plan.input_name(number),
            "num_files": len(files),
            "size": int(self.plan.pool.sizes[files.start : files.stop].sum()),
            "num_rows": sum(self.plan.num_rows(block) for block in blocks),
            "counts": asdict(total),
            "parts": [asdict(self._part(block)) for block in blocks],
        }
        write_json(self._manifest_file(number), manifest)

    def _part(self, block: int) -> Part:
        size, unreadable = int(self._sizes[block]), int(self._unreadable[block])
        return Part(self.plan.part_name(block), size, self.plan.num_rows(block), unreadable)

    def check(self) -> Counts:
        """Add up the manifests: selected + rejected + unreadable = rows, of every input and of the pool.

        Raises:
            LedgerError: they are not, naming the input.
        """
        sizes, unplanned = self._list_parts()
        total = Counts.none(self.num_classes)
        num_parts = 0
        for number, manifest in enumerate(self._whole_manifests(sizes)):
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
        written = int(np.count_nonzero(sizes)) + unplanned
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
        for block in np.flatnonzero((self._unreadable > 0) & (self._sizes > 0)).tolist():
            place = (self.storage / self.plan.part_name(block)).path
            table = pq.read_table(place, filesystem=self.storage.filesystem, columns=["sample_id", "error"])
            bad = table.filter(pc.is_valid(table["error"]))
            yield from zip(bad["sample_id"].to_pylist(), bad["error"].to_pylist(), strict=True)


def read_manifests(output: Storage) -> Iterator[Manifest]:
    """Those of a finished labelling, in the order of its inputs; a few are held at a time.

    Raises:
        ValueError, LookupError, TypeError: one is damaged.
    """
    folder = output / "_ledger" / "manifests"
    names = sorted(name for name in folder.list() if name[0] != ".")
    return map_ahead(lambda name: Manifest.read(folder / name), names, _NUM_THREADS, _AT_A_TIME)


def _slice(blocks: range) -> slice:
    return slice(blocks.start, blocks.stop)
