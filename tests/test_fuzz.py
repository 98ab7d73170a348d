"""Whatever a file or a command line says, the answer is a clear error of ours: no library's traceback, and no hang.

500 cases here; `make soak` tries 10,000 that no run before has seen.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzzing import IMAGES, answer, readers

CASES = int(os.environ.get("FUZZ_CASES", "500"))
#: What breaks readers of text.
TOKENS = (
    "\0", "\n", "\r", "\t", '"', "'", "=", ",", ":", "[", "{", "]", "}", "&a", "*a", "!!", "${", "$X", "~", "://",
    "nan", "1e999", "-1", "\u202e", "\ud800", "9" * 5000, "[" * 5000, '{"":' * 5000, r"\ud800", r"\u0000",
)  # fmt: skip
NAMES = (
    "configuration", "override", "lines", "object", *IMAGES,
    "CSV", "class_names.txt", "parquet", "parquet of Hugging Face", "tar", "index of a tar", "IDX .idx", "IDX .gz",
    "job of labels", "part of labels", "_ledger/manifests/000000.json of a review",
    "part-000000-00000.parquet of a review", "_ledger/job.json of a review", "answers", "job.json of a labelling",
    "plan.arrow of a labelling", "plan without a checksum", "spec.json of features", "part-0.parquet of features",
    "Label Studio", "Label Studio's JSON-MIN", "COCO", "FiftyOne", "FiftyOne's data.json",
    "config.yaml of a checkpoint", "model.json of a checkpoint", "teacher.safetensors of a checkpoint",
    "policy.safetensors of a checkpoint", "trainer.pt of a checkpoint", "manifest.json of a checkpoint",
    "w.pth", "w.safetensors", "history.jsonl", "splits.parquet", "bad_images.csv", "tracking.json",
)  # fmt: skip
#: Values in place of others in JSON.
ODD = (
    None, True, 0, -1, 2**64, 10**400, 1.5, math.inf, math.nan, "", "../../x", "\ud800", "a\0b", "a" * 5000,
    "s3://evil/x?endpoint_override=host", [], {}, [None], [[]], ["x"], {"a": 1}, [1, 2, 3],
)  # fmt: skip
Edits = list[tuple[int, int, str | int]]  # place, bytes that are gone there, and what is there instead
Changes = list[tuple[int, Any]]  # number of a value, and what is in its place
EDITS = st.lists(
    st.tuples(st.integers(0, 2**16), st.integers(0, 12), st.sampled_from(TOKENS) | st.integers(0, 255)),
    min_size=1,
    max_size=6,
)
CHANGES = st.lists(st.tuples(st.integers(0, 2**16), st.sampled_from(ODD)), min_size=1, max_size=3)


def edited(whole: bytes, edits: Edits) -> bytes:
    for place, gone, new in edits:
        at = place % (len(whole) + 1)
        piece = bytes([new]) if isinstance(new, int) else new.encode(errors="surrogatepass")
        whole = whole[:at] + piece + whole[at + gone :]
    return whole


def values(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Each object or list below a tree with each of its keys."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from values(tree[key])


def changed(whole: bytes, changes: Changes) -> bytes:
    """JSON with other values."""
    tree = [json.loads(whole)]
    for place, odd in changes:
        found = [*values(tree)]
        parent, key = found[place % len(found)]
        parent[key] = copy.deepcopy(odd)
    return json.dumps(tree[0]).encode()


def is_json(whole: bytes) -> bool:
    try:
        return isinstance(json.loads(whole), dict | list)
    except ValueError:
        return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def test_there_is_a_reader_of_each_name_which_reads_what_is_right(folder: Path) -> None:
    found = readers(folder)
    assert {name for name in found if not name.startswith("Lance")} == set(NAMES), "Lance is an extra"
    for name in NAMES:
        whole, read = found[name]
        assert answer(read, whole) is None, name


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=-(-CASES // len(NAMES)), suppress_health_check=list(HealthCheck), deadline=None)
@given(
    edits=EDITS,
    changes=st.none() | CHANGES,
    noise=st.none() | st.none() | st.none() | st.binary(max_size=60),
)
def test_what_is_damaged_is_read_or_named(
    name: str, folder: Path, edits: Edits, changes: Changes | None, noise: bytes | None
) -> None:
    whole, read = readers(folder)[name]
    if changes and is_json(whole):
        answer(read, changed(whole, changes))
    else:
        answer(read, edited(whole, edits) if noise is None else noise)
