"""Labels of a pool in the form of another tool, beside its images or with paths to them.

<output>/
  labels.csv                    csv: path, label, confidence, selected, foreign
  tasks.json, config.xml        label_studio: tasks with predictions, and the labelling interface
  annotations.json              coco
  labels.json, data.json        fiftyone
  <class>/<image>               image_folder: links, or copies
  images/<image>                the other formats with copies=true
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from dpl_ray.config.given import read_given
from dpl_ray.data.files.location import Location
from dpl_ray.data.files.reach import place_of
from dpl_ray.data.files.shards import split_id
from dpl_ray.data.formats.samples import read_samples
from dpl_ray.data.images.decode import (
    MISSING,
    NOT_AN_IMAGE,
    DecodeError,
    Payload,
    has_image_header,
    open_image,
    quiet_pillow,
)
from dpl_ray.exchange import formats
from dpl_ray.exchange.config import ExportLabelsConfig
from dpl_ray.exchange.formats import Exported
from dpl_ray.page.console import Progress, open_console, show
from dpl_ray.page.result import Result
from dpl_ray.reviewing.job import open_draw
from dpl_ray.reviewing.labels import Labels, open_labels
from dpl_ray.store.outputs import check_free, open_output
from dpl_ray.store.records import csv_text
from dpl_ray.store.storage import Storage

ROWS_AT_A_TIME = 256  # whose images are held
#: Folder of copies, where it is not that of the class.
COPIES = {"csv": "images", "label_studio": "images", "coco": "images", "fiftyone": "data"}


@dataclass(frozen=True, repr=False)
class ExportLabelsResult(Result):
    """The result of `export_labels`."""

    output: str
    file: str  # to be opened or imported there: the JSON, the CSV, or the folder of class folders
    format: str
    num_labels: int

    def _facts(self) -> dict[str, str | None]:
        return {"labels": f"{self.num_labels:,}", "format": self.format, "file": self.file}


def export_labels(
    config: ExportLabelsConfig | Sequence[str] = (), *, console: Console | bool | None = None, **keywords: Any
) -> ExportLabelsResult:
    """Write the labels of a pool in the form of another tool.

    Args:
        config: a configuration, or overrides as on the command line.
        console: where progress is shown, as in `fit`.
        keywords: fields, as `labels="labels", format="coco", output="exported"`.

    Raises:
        ValueError: a field, the labels or the output do not fit; no label is selected; the images are rows of parquet
            files, or lie in a bucket, and the format needs files; or a class has no name for a folder.
    """
    config, console = read_given(config, keywords, ExportLabelsConfig.load, ExportLabelsConfig), open_console(console)
    labels = open_labels("labels", config.labels)
    output = _open_output(config)
    pool = labels.open_pool(config.pool)
    drawn = None
    if config.draw is not None:
        draw = open_draw("draw", Storage(config.draw), labels)
        drawn = {item.sample_id: place for place, item in enumerate(draw.items)}
    rows: list[Exported] = []
    num_gone, num_labels = 0, int(labels.num_rows.sum())
    with Progress(console, "labels") as progress, quiet_pillow():
        for batch in _batches(labels, drawn, selected_only=config.selected_only):
            made = _place(batch, config, labels, pool, output)
            rows += made
            num_gone += len(batch) - len(made)
            progress.update(len(rows), num_labels)
    if not rows:
        raise labels.location.error("not one of its labels is selected; selected_only=false takes them all")
    if drawn is not None:
        rows.sort(key=lambda row: drawn[row.sample_id])
    file = _write(rows, config, labels, output)
    told = f"{len(rows):,} labels of {labels.storage}"
    num_rejected = int(labels.counts.sum()) - len(rows) - num_gone
    if num_rejected and drawn is None:
        told += f", {num_rejected:,} rejected ones left out (selected_only=false takes all)"
    if num_gone:
        told += f", {num_gone:,} left out: their images cannot be read any more"
    show(console, told)
    return ExportLabelsResult(str(output), str(file), config.format, len(rows))


def _batches(labels: Labels, drawn: Collection[str] | None, *, selected_only: bool) -> Iterator[list[Exported]]:
    """The labels, or those that are drawn, part by part, some at a time."""
    columns = ["sample_id", "pseudo_label", "confidence", "selected", "foreign"]
    for name in labels.part_names():
        table = labels.read(name, columns)
        if drawn is not None:
            table = table.filter(pc.is_in(table["sample_id"], value_set=pa.array(drawn, pa.string())))
        else:
            table = table.filter(table["selected"] if selected_only else table["pseudo_label"].is_valid())
        for batch in table.to_batches(ROWS_AT_A_TIME):
            yield [
                Exported(sample_id, sample_id, *row)
                for sample_id, *row in zip(*batch.to_pydict().values(), strict=True)
            ]


def _open_output(config: ExportLabelsConfig) -> Storage:
    output = open_output(config.output)
    check_free(output)
    if not output.is_local and config.format == "image_folder" and not config.copies:
        raise ValueError(f"output={config.output}: a bucket holds no links; give copies=true, or a local folder")
    return output


def _place(
    batch: Sequence[Exported], config: ExportLabelsConfig, labels: Labels, pool: Location, output: Storage
) -> list[Exported]:
    """The labels whose images can be read, with what the export says of the image; links and copies are made."""
    ids = [row.sample_id for row in batch]
    payloads: Iterable[Payload] = [None] * len(batch)
    if reads := config.copies or config.format == "coco":
        payloads = read_samples(ids, labels.image_column, partial(place_of, pool))
    made = []
    for row, payload in zip(batch, payloads, strict=True):
        if not config.copies:
            _check_has_file(row.sample_id, config.format)
        try:
            content = _content(payload) if reads else b""
            size = _size(content) if config.format == "coco" else None
            image = row.sample_id
            if config.copies or config.format == "image_folder":
                folder = _folder(labels, row.label) if config.format == "image_folder" else COPIES[config.format]
                image = f"{folder}/{_name(row.sample_id, content)}"
        except (OSError, DecodeError):
            continue
        if config.copies:
            (output / image).write(content)
        elif config.format == "image_folder":
            _link(row.sample_id, output / image)
        made.append(replace(row, image=image, size=size))
    return made


def _content(payload: Payload) -> bytes:
    content = payload() if callable(payload) else payload
    if not isinstance(content, bytes):
        raise DecodeError(MISSING)
    if not has_image_header(content):  # whose labels name another file of this machine
        raise DecodeError(NOT_AN_IMAGE)
    return content


def _check_has_file(sample_id: str, form: str) -> None:
    is_row = split_id(sample_id)[1] is not None
    if form != "csv" and (is_row or ("://" in sample_id and form != "label_studio")):
        what = "in a parquet file or a tar" if is_row else "in a bucket"
        raise ValueError(f"format={form}: {sample_id} is {what} and no file; copies=true writes the images as files")


def _name(sample_id: str, content: bytes) -> str:
    """Of a link or a copy: that of the image, with a hash, because images of several folders may be called alike."""
    file, row = split_id(sample_id)
    name, extension = posixpath.splitext(posixpath.basename(file))
    if row is not None:
        name, extension = (
            f"{name}-{row.replace('/', '-')}",
            f".{(open_image(content).format or 'png').lower()}",
        )
    digest = hashlib.blake2b(sample_id.encode(errors="surrogateescape"), digest_size=4).hexdigest()
    return f"{name}-{digest}{extension}"


def _folder(labels: Labels, label: int) -> str:
    """Of a class. A name with / is a folder in a folder, as data.classes_by=path reads it."""
    name = labels.class_names[label]
    if any(part.startswith(".") or not part for part in name.split("/")):
        raise labels.location.error(f"the class {name!r} is no name of a folder; format=csv takes any name")
    return name


def _link(sample_id: str, place: Storage) -> None:
    link = Path(place.path)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(sample_id)


def _is_below(image: str, root: str) -> bool:
    """Whether the server finds it: below its folder, or by its own address."""
    return "://" in image or Path(image).is_relative_to(root)


def _size(content: bytes) -> tuple[int, int]:
    with open_image(content) as image:
        return image.size


def _write(rows: Sequence[Exported], config: ExportLabelsConfig, labels: Labels, output: Storage) -> Storage:
    """The files that are to be opened there; returns the one that is to be named."""
    names = labels.class_names

    def write(name: str, content: Any) -> Storage:
        text = content if isinstance(content, str) else json.dumps(content)
        (output / name).write(text.encode(errors="surrogateescape"))
        return output / name

    if config.format == "image_folder":
        return output
    if config.format == "label_studio":
        write("config.xml", formats.label_studio_config(names))
        root = config.document_root
        if config.copies:
            root, at = (str(output), "") if output.is_local else ("", f"{output.scheme}{output.path}/")
            rows = [replace(row, image=f"{at}{row.image}") for row in rows]
        elif outside := next((row.image for row in rows if not _is_below(row.image, root)), None):
            raise ValueError(f"document_root={root}: {outside} does not lie below it; give a folder above all images")
        return write("tasks.json", formats.to_label_studio(rows, names, f"dpl-ray {labels.identity}", root))
    if config.format == "coco":
        return write("annotations.json", formats.to_coco(rows, names))
    if config.format == "fiftyone":
        found, paths = formats.to_fiftyone(rows, names)
        if not config.copies:
            write("data.json", paths)
        return write("labels.json", found)
    table = []
    for row in rows:
        foreign = "" if row.foreign is None else f"{row.foreign:.4f}"
        table.append((row.image, names[row.label], f"{row.confidence:.4f}", row.selected, foreign))
    return write("labels.csv", csv_text([("path", "label", "confidence", "selected", "foreign"), *table]))
