"""What a stranger gives executes nothing when it is loaded: a malicious pickle in every place, under an audit hook.

And what the user keeps secret is in no file, page, line or record of a run.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from dpl_ray import fit, import_labels, load_checkpoint, load_config
from dpl_ray.config.given import as_overrides
from dpl_ray.config.schema import DataConfig
from dpl_ray.data.features.folder import BACKBONE_FOLDER, SPEC_FILE, read_spec
from dpl_ray.data.splits.pseudo_labels import JOB_FILE, SUMMARY_FILE, read_pseudo_labels
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.embedding.config import EmbedConfig
from dpl_ray.models.weights import read_weights
from dpl_ray.store.records import from_yaml
from dpl_ray.store.storage import Storage
from dpl_ray.training import checkpoint as loading
from dpl_ray.training.checkpoint import load_state
from dpl_ray.training.checkpoint_folder import MANIFEST
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import build_state
from tests.builders import png, replaced, save_labeler, tiny_config, write_images
from tests.damages import make_run, read_run
from tests.data.test_tar import pack
from tests.fuzzing import readers
from tests.labeling.outputs import write_labels

MARK = "dpl_ray_evil"  # in all that would be executed
#: Events by which what was loaded would show that it is obeyed; compiling and importing only of what has the mark.
EVENTS = ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn")
MARKED = ("exec", "compile", "import")
_seen: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and (event in EVENTS or (event in MARKED and MARK in str(arguments))):
        _seen.append(f"{event} {arguments}")


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """What is executed meanwhile."""
    global _seen
    if not getattr(sys, MARK, False):  # a hook cannot be taken away again
        sys.addaudithook(_audit)
        setattr(sys, MARK, True)
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"import os; os.environ['{MARK}'] = 'was here'",)


PICKLE = pickle.dumps(Evil(), protocol=2)
YAML = f"!!python/object/apply:builtins.exec [\"import os; os.environ['{MARK}'] = 'was here'\"]\n".encode()


def check(load: Callable[[], Any]) -> None:
    with watched() as seen, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(ValueError, RuntimeError, OSError):  # which, other tests ask
            load()
    assert seen == []
    assert MARK not in os.environ


def test_the_hook_sees_a_pickle_that_is_loaded() -> None:
    with watched() as seen:
        pickle.loads(PICKLE)
    assert os.environ.pop(MARK) == "was here"
    assert {event.split()[0] for event in seen} >= {"pickle.find_class", "compile"}


@pytest.mark.parametrize("evil", [PICKLE, YAML], ids=["pickle", "YAML"])
def test_nothing_of_a_checkpoint_or_a_run_is_executed(evil: bytes, tmp_path: Path) -> None:
    config = tiny_config()
    for name in ("teacher.safetensors", "policy.safetensors", "student.safetensors", "config.yaml", "model.json"):
        checkpoint = Path(save_labeler(tmp_path / name, config, ("a", "b"), 3, 8))
        replaced(checkpoint, name, evil)
        check(lambda checkpoint=checkpoint: load_checkpoint(checkpoint))
    checkpoint = Path(save_labeler(tmp_path / "trainer", config, ("a", "b"), 3, 8))
    replaced(checkpoint, "trainer.pt", evil)
    state = build_state(config, 3, 2, Workers(), pool_size=10)
    check(lambda: load_state(Storage(str(checkpoint)), state, Workers()))
    checkpoint.joinpath(MANIFEST).write_bytes(evil)
    check(lambda: load_checkpoint(checkpoint))
    run, splits = make_run(tmp_path / "run")
    whole = {path: path.read_bytes() for path in (tmp_path / "run" / "first").rglob("*") if path.is_file()}
    for file in whole:
        file.write_bytes(evil)
        check(lambda: read_run(run, splits))
        for path, content in whole.items():  # what is damaged may be removed
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)


@pytest.mark.parametrize("evil", [PICKLE, YAML], ids=["pickle", "YAML"])
def test_nothing_of_images_labels_weights_and_configurations_is_executed(evil: bytes, tmp_path: Path) -> None:
    for name in ("weights.pth", "weights.safetensors", "config.yaml"):
        (tmp_path / name).write_bytes(evil)
    for name in ("weights.pth", "weights.safetensors"):
        check(lambda path=str(tmp_path / name): read_weights(f"model.weights={path}", path))
    check(lambda: load_config([f"config={tmp_path / 'config.yaml'}"]))
    check(lambda: load_config(["data.class_names=" + evil.decode("latin-1")]))
    check(lambda: EmbedConfig.load([f"seed={evil.decode('latin-1').strip()}", "pool=a", "output=b"]))

    folder = tmp_path / "images"
    for name in ("a/1.png", "a/2.jpg", "a/3.tif", "b/1.png", "b/2.pkl", "class_names.txt", "labels.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(1) if name.endswith("1.png") else evil)
    for train in (folder, folder / "labels.csv", folder / "b" / "2.pkl"):
        data = DataConfig(name="image_folder", train=str(train), max_bad_fraction=1.0)
        check(lambda data=data: load_splits(data, seed=0, uses_unlabeled=False))
    write_images(folder / "a.parquet", [], images=None)
    metadata = {b"huggingface": evil, b"ARROW:extension:metadata": evil, b"pandas": evil}
    table = pa.table({"image": [png(1), evil], "label": pa.array([evil, b"x"])}).replace_schema_metadata(metadata)
    pq.write_table(table, folder / "a.parquet")
    data = DataConfig(name="parquet", train=str(folder / "a.parquet"), max_bad_fraction=1.0)
    check(lambda: load_splits(data, seed=0, uses_unlabeled=False))

    labels = write_labels(tmp_path / "labels", [("a", 0, 0.5, True)], class_names=("a", "b"), pool=folder)
    for name in (JOB_FILE, SUMMARY_FILE, *(path.name for path in labels.glob("*.parquet"))):
        whole = (labels / name).read_bytes()
        (labels / name).write_bytes(evil)
        check(lambda: read_pseudo_labels(DataConfig(name="image_folder", labels=str(labels))))
        (labels / name).write_bytes(whole)
    (tmp_path / BACKBONE_FOLDER).mkdir()
    (tmp_path / BACKBONE_FOLDER / SPEC_FILE).write_bytes(evil)
    check(lambda: read_spec("data.train", str(tmp_path)))


@pytest.mark.parametrize("evil", [PICKLE, YAML], ids=["pickle", "YAML"])
def test_nothing_of_tars_annotations_features_and_answers_is_executed(evil: bytes, tmp_path: Path) -> None:
    """In every place that `tests/fuzzing.py` reads, and in a tar under each name that some loader would obey."""
    kinds = ("pkl", "pickle", "pth", "pyd", "npy", "npz", "json", "yaml", "cls", "txt", "png", "py")
    tars = pack((f"{level}.{kind}", evil) for level in range(3) for kind in kinds)
    for name, (_, read) in readers(tmp_path).items():
        contents = [evil, json.dumps({"label": evil.decode("latin-1")}).encode()]
        for content in [*contents, tars] if name == "tar" else contents:
            check(lambda read=read, content=content: read(content))


def test_arrays_of_objects_are_no_data(tmp_path: Path) -> None:
    """NumPy unpickles them where it is let to; our readers read no such file."""
    for name, save in (("a.npy", np.save), ("b.npz", np.savez)):
        save(tmp_path / name, np.array([Evil()], object), allow_pickle=True)  # type: ignore[operator]
        for field, kind in (("train", "image_folder"), ("unlabeled", "webdataset"), ("train", "parquet")):
            data = DataConfig(name=kind, train=str(tmp_path / name)).changed(**{field: str(tmp_path / name)})
            check(lambda data=data: load_splits(data, seed=0, uses_unlabeled=True))
        check(lambda name=name: read_weights(name, str(tmp_path / name)))
        check(lambda name=name: import_labels(annotations=str(tmp_path / name), output=str(tmp_path / "out.csv")))


def test_types_that_a_schema_asks_to_be_made_are_not_made(tmp_path: Path) -> None:
    """Arrow's own type for Python objects was unpickled by itself in pyarrow before 14.0.1."""
    field = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": PICKLE}
    schema = pa.schema([pa.field("image", pa.binary(), metadata=field), ("label", pa.int64())])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([[png(1), png(2)] * 2, [0, 1] * 2], schema=schema), path)
    for read in (
        lambda: load_splits(DataConfig(name="parquet", train=str(path)), seed=0, uses_unlabeled=False),
        lambda: read_pseudo_labels(DataConfig(name="image_folder", labels=str(tmp_path))),
    ):
        check(read)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "timm", "architecture": "hf-hub:evil/network"},
        {"name": "timm", "architecture": "local-dir:/etc"},
        {"name": "torchvision", "architecture": "fasterrcnn_resnet50_fpn"},
        {"name": "torchvision", "architecture": "vit_h_14"},
        {"width": 16},
        {"depth": 60_004},
    ],
    ids=lambda changes: str(next(reversed(changes.values()))),
)
def test_a_network_that_is_none_of_the_checkpoints_is_neither_fetched_nor_made(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Path(save_labeler(tmp_path, tiny_config(), ("a", "b"), 3, 8))
    tree = from_yaml((checkpoint / "config.yaml").read_bytes())
    tree["model"] |= changes
    replaced(checkpoint, "config.yaml", json.dumps(tree).encode())
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked, **_: pytest.fail(f"{asked} is asked for"))
    made = list[str]()
    build = loading.build_model
    monkeypatch.setattr(
        loading, "build_model", lambda *given: made.append(torch.get_default_device().type) or build(*given)
    )
    with pytest.raises(ValueError, match=r"no such|does not hold the tensors of its configuration|model\.depth"):
        load_checkpoint(checkpoint)
    assert "cpu" not in made


def test_pipes_and_devices_are_no_files_of_a_stranger(tmp_path: Path) -> None:
    """Whoever opens a pipe waits for its end, and a device has none."""

    def special(path: Path) -> Path:
        path.unlink(missing_ok=True)
        if path.suffix == ".png":
            path.symlink_to("/dev/zero")
        else:
            os.mkfifo(path)
        return path

    special(tmp_path / "0.jpg"), special(tmp_path / "1.png"), special(tmp_path / "class_names.txt")
    write_images(tmp_path / "a.parquet", range(4))
    table = tmp_path / "labels.csv"
    rows = [
        *(f"a.parquet:{row},{row % 2}" for row in range(4)),
        "0.jpg,0",
        "1.png,1",
        "pipe.parquet:1,1",
        "pipe.tar:a,1",
    ]
    table.write_text("\n".join(["path,label", *rows]))
    special(tmp_path / "pipe.parquet"), special(tmp_path / "pipe.tar")
    splits = load_splits(
        DataConfig(name="image_folder", train=str(table), max_bad_fraction=1.0), seed=0, uses_unlabeled=False
    )
    assert len(splits.bad) == 4
    for name in ("config.yaml", "teacher.safetensors", MANIFEST):
        checkpoint = Path(save_labeler(tmp_path / name, tiny_config(), ("a", "b"), 3, 8))
        special(checkpoint / name)
        with pytest.raises((ValueError, OSError), match=f"{name}.*(damaged|missing)|is a pipe"):
            load_checkpoint(checkpoint)


SECRETS = {
    name: f"canary-of-{name}"
    for name in (
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "HF_TOKEN",
        "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "SOME_PASSWORD",
    )
}  # fmt: skip


@pytest.mark.rendered
@pytest.mark.usefixtures("mlflow_store")
def test_no_secret_of_the_environment_is_written_shown_or_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    shown = io.StringIO()
    fixed = ["scale.num_workers=0", "train.num_steps=1", "train.baseline=false", "model.width=1", "train.batch_size=4"]
    config = load_config([*fixed, "model.depth=10", f"run.storage_path={tmp_path}", "run.name=tiny"])
    fit(config, console=Console(file=shown, width=120))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ValueError, match="no Ray cluster answers") as error:
        fit(config.changed(scale={"num_workers": 1}, run={"name": "other"}))
    told = capfd.readouterr()
    texts = {"console": shown.getvalue(), "stdout": told.out, "stderr": told.err, "error": str(error.value)}
    contents = {name: text.encode() for name, text in texts.items()}
    contents |= {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(name.endswith("mlflow.db") for name in contents)
    assert any(name.endswith("report.html") for name in contents)
    assert [name for name, content in contents.items() if b"canary-of-" in content] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.train", "s3://KEY:canary@bucket/a"),
        ("run.storage_path", "s3://KEY:canary@bucket"),
        ("data.unlabeled", ["a", "gs://bucket/x?credentials_token=canary"]),
        ("data.test", "s3://bucket/a?region=x&secret_key=canary"),
        ("model.weights", "https://me:canary@host/w.pth"),
    ],
)
def test_an_address_with_a_password_is_refused_before_it_is_written_anywhere(field: str, value: Any) -> None:
    section, name = field.split(".")
    with pytest.raises(ValueError, match=rf"^{field}=.*\.\.\.: holds a password or key, .*AWS_SECRET") as error:
        load_config(as_overrides({section: {name: value}}))
    assert "canary" not in str(error.value)


def test_a_password_may_be_named_by_a_variable() -> None:
    value = "s3://$KEY:$SECRET@bucket/a"
    assert load_config(["data=image_folder", f'data.train="{value}"']).data.train == value
