"""All that is read of files and command lines: bytes that are right, and what reads them or others in their place.

`tests/test_fuzz.py` damages them by hypothesis, `tests/fuzz_atheris.py` by what has run in our code.
"""

from __future__ import annotations

import functools
import gzip
import json
import struct
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch

from dpl_ray import import_labels, load_checkpoint, load_config
from dpl_ray.config.parse import to_yaml
from dpl_ray.config.schema import DataConfig
from dpl_ray.data.features.folder import BACKBONE_FOLDER, SPEC_FILE, Spec, list_features, read_spec
from dpl_ray.data.files.location import indexes_in, open_location
from dpl_ray.data.formats import tar
from dpl_ray.data.formats.rows import list_pool
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode import decode, decode_or_reason, has_image_header
from dpl_ray.data.labeled.records import list_records
from dpl_ray.data.splits.bad_images import read_bad
from dpl_ray.data.splits.pseudo_labels import JOB_FILE, read_pseudo_labels
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.data.splits.standard import read_idx
from dpl_ray.labeling.ledger import Ledger
from dpl_ray.labeling.plan import Plan
from dpl_ray.models.weights import read_weights
from dpl_ray.reviewing.answers import read_answers
from dpl_ray.reviewing.draw import draw_labels
from dpl_ray.reviewing.labels import open_labels
from dpl_ray.runs.splits import read_splits, write_splits
from dpl_ray.store.history import read_history
from dpl_ray.store.records import csv_text, from_lines, read_tree, to_lines
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.journal import Journal
from dpl_ray.training.checkpoint import load_policy, load_state
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import build_state
from tests.builders import png, replaced, save_labeler, tiny_config, tiny_splits, write_images
from tests.data.test_bombs import small
from tests.data.test_tar import pack
from tests.labeling.outputs import write_labels
from tests.reviewing.outputs import write_output

LONGEST = 900  # characters of a message, with paths in it
IMAGES = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "PPM", "JPEG2000", "AVIF")
Read = Callable[[bytes], Any]
Reader = tuple[bytes, Read]


def answer(read: Read, content: bytes) -> str | None:
    """What is said of it; None where it is read. AssertionError where that is no message of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(content)
        except ValueError as error:
            said = error
        else:
            return None
    text = str(said)
    assert "\n" not in text
    assert len(text) <= LONGEST
    assert not isinstance(said, UnicodeError), text
    return text


class _Made:
    """Files below a folder, and readers of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[str, Reader] = {}

    def file(self, name: str, path: Path, whole: bytes, read: Callable[[], Any], *, is_kept: bool = False) -> None:
        """A reader of what is put in a file; `is_kept`: the file is right again for the other readers."""

        def put(content: bytes) -> Any:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            try:
                return read()
            finally:
                if is_kept:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(whole)

        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole)
        self.found[name] = whole, put

    def labelled(self, name: str, kind: Any, path: Path, whole: bytes) -> None:
        """Of images with labels."""
        data = DataConfig(name=kind, train=str(path), image_size=4, max_bad_fraction=1.0)

        def read() -> None:
            for _, payload, _ in list_records(data, "data.train", str(path)).rows():
                decode_or_reason(payload, DecodeSettings(4))
            load_splits(data, seed=0, uses_unlabeled=False)

        self.file(name, path, whole, read)


@functools.cache
def readers(folder: Path) -> dict[str, Reader]:
    """Name -> reader."""
    folder.mkdir(exist_ok=True)
    made = _Made(folder)
    for add in (_add_configurations, _add_images, _add_labels, _add_annotations, _add_checkpoints, _add_runs):
        add(made)
    return made.found


def _add_configurations(made: _Made) -> None:
    config = made.folder / "config.yaml"
    made.file("configuration", config, to_yaml(tiny_config()).encode(), lambda: load_config([f"config={config}"]))
    made.found |= {
        "override": (
            b"data.class_names=[a,b]",
            lambda content: load_config([content.decode(errors="surrogateescape")]),
        ),
        "lines": (to_lines([{"a": 1}, {"b": "é"}]), lambda data: list(from_lines(data.split(b"\n")))),
    }
    tree = made.folder / "tree.json"
    made.file("object", tree, b'{"a": [1, {"b": null}]}', lambda: read_tree(Storage(str(tree))))


def _add_images(made: _Made) -> None:
    def decode_any(content: bytes) -> None:
        has_image_header(content)
        decode(content, DecodeSettings(4))

    made.found |= {kind: (small(kind), decode_any) for kind in IMAGES}
    folder = made.folder
    (folder / "a.png").write_bytes(png(1))
    (folder / "b.png").write_bytes(png(2))
    table = b"path,label\na.png,ant\nb.png,bee\nx.parquet:1,bee\nx.tar:0.png,ant\n"
    write_images(folder / "x.parquet", range(4), row_group_size=2)
    shard = pack(
        (f"{level}.{kind}", png(level) if kind == "png" else b'{"label": %d}' % (level % 2))
        for level in range(4)
        for kind in ("png", "json")
    )
    (folder / "x.tar").write_bytes(shard)
    made.labelled("CSV", "image_folder", folder / "labels.csv", table)
    made.labelled("parquet", "parquet", folder / "a.parquet", (folder / "x.parquet").read_bytes())
    hugging_face = pa.table({"image": [{"bytes": png(1), "path": None}, {"bytes": None, "path": "a.png"}] * 2})
    hugging_face = hugging_face.append_column("label", pa.array([0, 1, 0, 1]))
    named = {"info": {"features": {"label": {"names": ["ant", "bee"]}}}}
    sink = pa.BufferOutputStream()
    pq.write_table(hugging_face.replace_schema_metadata({"huggingface": json.dumps(named)}), sink)
    made.labelled("parquet of Hugging Face", "parquet", folder / "h.parquet", sink.getvalue().to_pybytes())
    made.labelled("tar", "webdataset", folder / "a.tar", shard)
    made.file("class_names.txt", folder / "class_names.txt", b"ant\nbee\n", lambda: None)
    (folder / "names").mkdir()
    (folder / "names" / "labels.csv").write_bytes(table.replace(b"a.png", b"../a.png").replace(b"b.png", b"../b.png"))
    given = DataConfig(
        name="image_folder", train=str(folder / "names" / "labels.csv"), allow_outside=True, max_bad_fraction=1.0
    )
    (folder / "class_names.txt").unlink()
    made.file(
        "class_names.txt",
        folder / "names" / "class_names.txt",
        b"ant\nbee\n",
        lambda: load_splits(given, seed=0, uses_unlabeled=False),
    )
    _add_index(made, shard)
    idx = struct.pack(">4B3I", 0, 0, 8, 3, 2, 3, 3) + bytes(18)
    for name, content in (("a.idx", idx), ("a.gz", gzip.compress(idx))):
        place = folder / name
        made.file(f"IDX {place.suffix}", place, content, lambda place=place: read_idx(place, 3))  # type: ignore[misc]
    if find_spec("lance"):
        _add_lance(made)


def _add_index(made: _Made, shard: bytes) -> None:
    """A damaged index is made anew: it changes nothing."""
    with indexes_in(str(made.folder / "run")):
        location = open_location("pool", str(made.folder / "x.tar"))

    def read() -> list[tuple[str, Any]]:
        tar._recent.clear()
        return [row[:2] for row in list_pool(location, image_column="image").read_all()]

    expected = read()
    (index,) = (made.folder / "run" / tar.INDEX_FOLDER).iterdir()

    def compare() -> None:
        assert read() == expected

    made.file("index of a tar", index, index.read_bytes(), compare)


def _add_lance(made: _Made) -> None:
    import lance

    place = made.folder / "a.lance"
    lance.write_dataset(pa.table({"image": [png(level) for level in range(4)], "label": [0, 1, 0, 1]}), str(place))
    data = DataConfig(name="parquet", train=str(place), max_bad_fraction=1.0)
    for file in sorted(path for path in place.rglob("*") if path.is_file()):
        made.file(
            f"Lance {file.suffix}",
            file,
            file.read_bytes(),
            lambda: load_splits(data, seed=0, uses_unlabeled=False),
            is_kept=True,
        )


def _add_labels(made: _Made) -> None:
    folder = made.folder
    labels = write_labels(
        folder / "labels", [(str(folder / "a.png"), 0, 0.5, True)], class_names=("a", "b"), pool=folder
    )

    def read() -> None:
        read_pseudo_labels(DataConfig(name="image_folder", labels=str(labels)))

    part = next(labels.glob("*.parquet"))
    made.file("job of labels", labels / JOB_FILE, (labels / JOB_FILE).read_bytes(), read, is_kept=True)
    made.file("part of labels", part, part.read_bytes(), read, is_kept=True)

    output = write_output(folder / "reviewed", [[6]])

    def draw() -> None:
        draw_labels(open_labels("labels", str(output)), 5, 0)

    for name in ("_ledger/manifests/000000.json", "part-000000-00000.parquet", JOB_FILE):
        file = output / name
        made.file(f"{name} of a review", file, file.read_bytes(), draw, is_kept=True)
    drawn = draw_labels(open_labels("labels", str(output)), 5, 0)
    answers = csv_text(
        [
            ("path", "label", "review", "proposed", "probability"),
            *(
                (item.sample_id, "bee", drawn.review, drawn.class_names[item.label], drawn.probability)
                for item in drawn.items
            ),
        ]
    )
    table = folder / "answers.csv"
    made.file("answers", table, answers.encode(), lambda: read_answers("answers", str(table), drawn))

    pool = folder / "pool"
    pool.mkdir()
    (pool / "a.png").write_bytes(png(1))
    listed = list_pool(open_location("pool", str(pool)), image_column="image")
    ledger = Ledger(str(folder / "ledger"), {"policy": {"name": "dpl"}}, 2)
    ledger.begin(listed, 10)

    def go_on() -> None:
        Ledger(str(folder / "ledger"), {"policy": {"name": "dpl"}}, 2).begin(listed, 10)

    for name in ("job.json", "plan.arrow"):
        file = folder / "ledger" / "_ledger" / name
        made.file(f"{name} of a labelling", file, file.read_bytes(), go_on, is_kept=True)
    plan = ledger.plan.to_bytes()[:-16]

    def read_plan(content: bytes) -> None:
        """As older versions have written it, without a checksum."""
        (folder / "ledger" / "_ledger" / "plan.arrow").write_bytes(content + b"ARROW1")
        try:
            go_on()
        finally:
            (folder / "ledger" / "_ledger" / "plan.arrow").write_bytes(ledger.plan.to_bytes())

    assert isinstance(ledger.plan, Plan)
    made.found["plan without a checksum"] = plan[: -len(b"ARROW1")], read_plan

    features = folder / "features"
    spec = Spec("0", 3, 0, {"name": "timm"}, 3, 8, "crop", "bilinear", ("a", "b"))
    columns = {
        "sample_id": [str(folder / "a.png"), str(folder / "b.png")],
        "error": pa.array([None, None], pa.string()),
        "label": ["a", "b"],
        "pixels": pa.array([1, 2], pa.uint64()),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(6, np.float16)), 3),
    }
    (features / BACKBONE_FOLDER).mkdir(parents=True)
    (features / BACKBONE_FOLDER / SPEC_FILE).write_bytes(spec.to_json())
    pq.write_table(pa.table(columns), features / "part-0.parquet")

    def embedded() -> None:
        files = list_features(open_location("pool", str(features)), read_spec("pool", str(features)))
        list(files.listings(len))
        for _, payload, _ in files.read_all():
            decode_or_reason(payload, DecodeSettings())

    for file in (features / BACKBONE_FOLDER / SPEC_FILE, features / "part-0.parquet"):
        made.file(f"{file.name} of features", file, file.read_bytes(), embedded, is_kept=True)


def _add_annotations(made: _Made) -> None:
    image, place = str(made.folder / "a.png"), made.folder / "annotations"
    place.mkdir()
    result = {"from_name": "label", "type": "choices", "value": {"choices": ["ant"]}}
    trees: dict[str, Any] = {
        "Label Studio": [{"data": {"image": image, "sample_id": image}, "annotations": [{"result": [result]}]}],
        "Label Studio's JSON-MIN": [{"image": image, "label": "ant"}],
        "COCO": {
            "images": [{"id": 1, "file_name": image}],
            "annotations": [{"image_id": 1, "category_id": 1}],
            "categories": [{"id": 1, "name": "ant"}],
        },
        "FiftyOne": {"classes": ["ant"], "labels": {"0": {"label": 0}}},
        "FiftyOne's data.json": {"0": image},
    }
    (place / "data.json").write_text(json.dumps(trees["FiftyOne's data.json"]))
    output = made.folder / "imported.csv"
    fiftyone = place / "labels.json"

    def imported(path: Path) -> None:
        output.unlink(missing_ok=True)
        import_labels(annotations=str(path), output=str(output))

    for number, (name, tree) in enumerate(trees.items()):
        path = place / f"{number}.json"
        content = json.dumps(tree).encode()
        if name == "FiftyOne":
            path = fiftyone
        if name == "FiftyOne's data.json":
            made.file(name, place / "data.json", content, lambda: imported(fiftyone), is_kept=True)
        else:
            made.file(name, path, content, lambda path=path: imported(path), is_kept=True)  # type: ignore[misc]


def _add_checkpoints(made: _Made) -> None:
    folder, config = made.folder, tiny_config()
    checkpoint = Path(save_labeler(folder / "run", config, ("a", "b"), 3, 8))
    state = build_state(config, 3, 2, Workers(), pool_size=10)

    def used() -> None:
        load_checkpoint(checkpoint)
        load_policy(Storage(str(checkpoint)))

    def member(name: str, read: Callable[[], Any]) -> None:
        whole = (checkpoint / name).read_bytes()

        def put(content: bytes) -> None:
            replaced(checkpoint, name, content)
            try:
                read()
            finally:
                replaced(checkpoint, name, whole)

        made.found[f"{name} of a checkpoint"] = whole, put

    for name in ("config.yaml", "model.json", "teacher.safetensors", "policy.safetensors"):
        member(name, used)
    member("trainer.pt", lambda: load_state(Storage(str(checkpoint)), state, Workers()))
    manifest = checkpoint / "manifest.json"
    made.file("manifest.json of a checkpoint", manifest, manifest.read_bytes(), used, is_kept=True)

    tensors = {"conv.weight": torch.zeros(2, 3)}
    torch.save(tensors, folder / "w.pth")
    for name, content in (
        ("w.pth", (folder / "w.pth").read_bytes()),
        ("w.safetensors", safetensors.torch.save(tensors)),
    ):
        place = str(folder / name)
        made.file(name, folder / name, content, lambda place=place: read_weights(place, place))  # type: ignore[misc]


def _add_runs(made: _Made) -> None:
    """Records of a run, which damages of all of its files are tried on elsewhere (tests/damages.py)."""
    place, folder = made.folder / "records", Storage(str(made.folder / "records"))
    write_splits(folder, tiny_splits())
    made.file(
        "history.jsonl",
        place / "history.jsonl",
        to_lines([{"phase": "dpl", "step": 1, "metrics": {"a": 1.0}, "time": 1}]),
        lambda: list(read_history(folder)),
    )
    made.file(
        "splits.parquet", place / "splits.parquet", (place / "splits.parquet").read_bytes(), lambda: read_splits(folder)
    )
    made.file("bad_images.csv", place / "bad_images.csv", b"id,reason\r\na.png,x\r\n", lambda: read_bad(folder))
    made.file(
        "tracking.json",
        place / "tracking.json",
        b'{"uri": "http://host", "run_id": "1", "unsent": [{"kind": "tag", "time": 1, "key": "a", "value": "b"}]}',
        lambda: Journal(folder),
    )
