"""Whatever a file or a command line says, the answer is a clear error of ours: no library's traceback, and no hang.

500 cases here; `make soak` tries 10,000 that no run before has seen.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpl_ray import load_checkpoint, load_config
from dpl_ray.config.parse import to_yaml
from dpl_ray.config.schema import DataConfig
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode import decode, decode_or_reason, has_image_header
from dpl_ray.data.labeled.records import list_records
from dpl_ray.data.splits.pseudo_labels import JOB_FILE, read_pseudo_labels
from dpl_ray.store.records import from_lines, parse_tree, to_lines
from tests.builders import png, save_labeler, tiny_config, write_images
from tests.data.test_bombs import small
from tests.labeling.outputs import write_labels
from tests.test_loading import replaced

CASES = int(os.environ.get("FUZZ_CASES", "500"))
LONGEST = 900  # characters of a message, with paths in it
#: What breaks readers of text.
TOKENS = (
    "\0", "\n", "\r", "\t", '"', "'", "=", ",", ":", "[", "{", "]", "}", "&a", "*a", "!!", "${", "$X", "~", "://",
    "nan", "1e999", "-1", "\u202e", "\ud800",
)  # fmt: skip
Edits = list[tuple[int, int, str | int]]  # place, bytes that are gone there, and what is there instead


@functools.cache
def readers(folder: Path) -> dict[str, tuple[bytes, Callable[[bytes], Any]]]:
    """Name -> bytes that are right, and what reads them or others in their place."""

    def in_file(path: Path, read: Callable[[], Any]) -> Callable[[bytes], Any]:
        def put(content: bytes) -> Any:
            path.write_bytes(content)
            return read()

        return put

    def records(name: Any, path: Path) -> Callable[[], Any]:
        data = DataConfig(name=name, train=str(path), image_size=4)

        def read() -> None:
            for _, payload, _ in list_records(data, "data.train", str(path)).rows():
                decode_or_reason(payload, DecodeSettings(4))

        return read

    def decode_any(content: Any) -> None:
        has_image_header(content)
        decode(content, DecodeSettings(4))

    config = folder / "config.yaml"
    table = folder / "labels.csv"
    (folder / "a.png").write_bytes(png(1))
    parquet = folder / "a.parquet"
    write_images(parquet, range(4), row_group_size=2)
    checkpoint = Path(save_labeler(folder / "run", tiny_config(), ("a", "b"), 3, 8))
    labels = write_labels(folder / "labels", [("a", 0, 0.5, True)], class_names=("a", "b"), pool=folder)
    part = next(labels.glob("*.parquet"))

    def label_file(path: Path) -> tuple[bytes, Callable[[bytes], Any]]:
        whole = path.read_bytes()

        def read() -> None:
            try:
                read_pseudo_labels(DataConfig(name="image_folder", labels=str(labels)))
            finally:
                path.write_bytes(whole)

        return whole, in_file(path, read)

    def member(name: str) -> tuple[bytes, Callable[[bytes], Any]]:
        whole = (checkpoint / name).read_bytes()

        def read(content: bytes) -> None:
            replaced(checkpoint, name, content)
            try:
                load_checkpoint(checkpoint)
            finally:
                replaced(checkpoint, name, whole)

        return whole, read

    lines = to_lines([{"a": 1}, {"b": "é"}])
    found = {
        "configuration": (to_yaml(tiny_config()).encode(), in_file(config, lambda: load_config([f"config={config}"]))),
        "override": (
            b"data.class_names=[a,b]",
            lambda content: load_config([content.decode(errors="surrogateescape")]),
        ),
        "CSV": (b"path,label\na.png,ant\nb.png,\n", in_file(table, records("image_folder", table))),
        "parquet": (parquet.read_bytes(), in_file(parquet, records("parquet", parquet))),
        "lines": (lines, lambda data: list(from_lines(data.split(b"\n")))),
        "object": (b'{"a": [1, {"b": null}], "checksum": "0"}', parse_tree),
        "job of labels": label_file(labels / JOB_FILE),
        "part of labels": label_file(part),
    }
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO"):
        found[kind] = small(kind), decode_any
    for name in ("config.yaml", "model.json", "teacher.safetensors", "manifest.json"):
        found[f"{name} of a checkpoint"] = (
            member(name)
            if name != "manifest.json"
            else (
                (checkpoint / name).read_bytes(),
                in_file(checkpoint / name, lambda: load_checkpoint(checkpoint)),
            )
        )
    return found


NAMES = (
    "configuration", "override", "CSV", "parquet", "lines", "object", "job of labels", "part of labels",
    "PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO",
    "config.yaml of a checkpoint", "model.json of a checkpoint", "teacher.safetensors of a checkpoint",
    "manifest.json of a checkpoint",
)  # fmt: skip


def edited(whole: bytes, edits: Edits) -> bytes:
    for place, gone, new in edits:
        at = place % (len(whole) + 1)
        piece = bytes([new]) if isinstance(new, int) else new.encode(errors="surrogatepass")
        whole = whole[:at] + piece + whole[at + gone :]
    return whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=-(-CASES // len(NAMES)), suppress_health_check=list(HealthCheck), deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 2**16), st.integers(0, 12), st.sampled_from(TOKENS) | st.integers(0, 255)),
        min_size=1,
        max_size=6,
    ),
    noise=st.none() | st.none() | st.none() | st.binary(max_size=60),
)
def test_what_is_damaged_is_read_or_named(name: str, folder: Path, edits: Edits, noise: bytes | None) -> None:
    whole, read = readers(folder)[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(edited(whole, edits) if noise is None else noise)
        except ValueError as error:
            text = str(error)
            assert "\n" not in text
            assert len(text) <= LONGEST
