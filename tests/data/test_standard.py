"""standard.py: each standard data set from small files in its real format, and from none at all."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import subprocess
import sys
import time
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import yaml
from sklearn.datasets import load_digits

from dpl_ray.config.parse import parse_config
from dpl_ray.config.schema import DataConfig, DataName
from dpl_ray.data.splits import standard
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.data.splits.standard import FASHION_MNIST_CLASSES, read_idx, read_standard

CONF = Path(__file__).parents[2] / "conf" / "data"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may find, or fetch, the real data sets of the machine."""
    monkeypatch.setattr(standard, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(standard, "FASHION_MNIST_PACKAGE", tmp_path / "package")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_digits() -> None:
    splits = load_splits(DataConfig(channels=1, num_labels_per_class=4), seed=0)
    assert splits.labeled.images.shape == (40, 1, 8, 8)
    assert np.bincount(splits.labeled.targets).tolist() == [4] * 10
    assert len(splits.labeled) + len(splits.unlabeled) + len(splits.test) == 1797
    assert splits.unlabeled.images.max() == 255
    assert (splits.unlabeled.targets >= 0).all(), "known, for the precision of pseudo-labels"
    other = load_splits(DataConfig(channels=1, num_labels_per_class=4), seed=1)
    assert other.test.ids.tolist() == splits.test.ids.tolist()
    assert other.labeled.ids.tolist() != splits.labeled.ids.tolist()
    assert other.fingerprint() != splits.fingerprint()
    with pytest.raises(ValueError, match=r"data.num_labels_per_class=200: class 8 has only 139 .* at most 139"):
        load_splits(DataConfig(num_labels_per_class=200), seed=0)
    with pytest.raises(ValueError, match=r"data.root=/x: digits comes with scikit-learn"):
        load_splits(DataConfig(root="/x"), seed=0)
    digits, source = load_digits(), read_standard(DataConfig(channels=1), reads_unlabeled=False)
    assert np.array_equal(source.train.images[:, 0], np.rint(digits.images * (255 / 16)))
    assert np.array_equal(source.train.targets, digits.target)


def write_idx(path: Path, array: np.ndarray) -> None:
    content = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion_mnist(folder: Path, suffix: str = ".gz") -> np.ndarray:
    images = noise(40, 28, 28)
    for name, count in (("train", 40), ("t10k", 20)):
        write_idx(folder / f"{name}-images-idx3-ubyte{suffix}", images[:count])
        write_idx(folder / f"{name}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 10)
    return images


@pytest.mark.parametrize("place", ["root", "root/FashionMNIST/raw", "package", "cache/FashionMNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_is_found(tmp_path: Path, place: str, suffix: str) -> None:
    images = write_fashion_mnist(tmp_path / place, suffix)
    root = str(tmp_path / "root") if place.startswith("root") else None
    data = DataConfig(
        name="fashion_mnist", root=root, download=False, channels=1, num_labels_per_class=2,
        image_size=14, interpolation="area",
    )  # fmt: skip
    splits = load_splits(data, seed=0)
    assert splits.class_names == FASHION_MNIST_CLASSES
    assert (len(splits.labeled), len(splits.unlabeled), len(splits.test)) == (20, 20, 20)
    mean = images.reshape(40, 14, 2, 14, 2).mean(axis=(2, 4))
    for part in (splits.labeled, splits.unlabeled, splits.test):
        index = [int(name.split("/")[1]) for name in part.ids]
        np.testing.assert_array_equal(part.images[:, 0], np.floor(mean[index] + 0.5))
        assert part.targets.tolist() == [i % 10 for i in index]


@pytest.mark.parametrize(
    ("content", "num_dims", "message"),
    [
        (b"", 1, "not an IDX file"),
        (b"<html>", 1, "not an IDX file"),
        (struct.pack(">4B1I", 0, 0, 8, 1, 5) + b"1234", 1, "truncated, or the header is wrong: 4 of 5 bytes"),
        (struct.pack(">4B1I", 0, 0, 8, 1, 3) + b"1234", 1, "4 of 3 bytes"),
        (struct.pack(">4B1I", 0, 0, 13, 1, 1) + b"1234", 1, "not an IDX file of unsigned bytes in 1 dim"),
        (struct.pack(">4B1I", 0, 0, 8, 1, 3) + b"123", 3, "not an IDX file of unsigned bytes in 3 dim"),
        (struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3), 3, r"declares 79,\d+.* bytes"),
        (struct.pack(">4B1I", 0, 0, 8, 1, 2**28 + 1) + bytes(9), 1, "declares 268,435,457 bytes, more than any"),
    ],
)
def test_damaged_idx(tmp_path: Path, content: bytes, num_dims: int, message: str) -> None:
    for path in (tmp_path / "some-idx", tmp_path / "some-idx.gz"):
        path.write_bytes(gzip.compress(content) if path.suffix else content)
        with pytest.raises(ValueError, match=f"{path}: .*{message}.*fetch it again"):
            read_idx(path, num_dims)


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "some-idx.gz"
    whole = gzip.compress(struct.pack(">4B1I", 0, 0, 8, 1, 500) + noise(500).tobytes())
    for content, message in ((whole[:200], "truncated gzip file"), (b"junk", "cannot be read")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path}: {message}"):
            read_idx(path, 1)


def test_fashion_mnist_with_files_that_disagree(tmp_path: Path) -> None:
    data = DataConfig(name="fashion_mnist", root=str(tmp_path), channels=1, num_labels_per_class=2)
    write_fashion_mnist(tmp_path, "")
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte: 3 labels, but 20 images"):
        load_splits(data, seed=0)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.full(20, 10, np.uint8))
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte: label 10 is outside the classes 0 to 9"):
        load_splits(data, seed=0)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def write_cifar(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Small batches in CIFAR's format, whose MD5 sums torchvision is told to expect."""
    from torchvision import datasets

    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    labels_key, names_key = ("labels", "label_names") if name == "cifar10" else ("fine_labels", "fine_label_names")
    base = folder / kind.base_folder
    base.mkdir(parents=True)
    images = noise(30, 3, 32, 32)
    classes = [f"class {i}" for i in range(10)]

    def write(filename: str, content: dict[str, Any]) -> str:
        encoded = pickle.dumps(content)
        (base / filename).write_bytes(encoded)
        return md5(encoded)

    batch = {"data": images.reshape(30, -1), labels_key: [i % 10 for i in range(30)]}
    monkeypatch.setattr(kind, "train_list", [["data_batch_1" if name == "cifar10" else "train", ""]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", ""]])
    for entry in (*kind.train_list, *kind.test_list):
        entry[1] = write(entry[0], batch)
    meta = {"filename": "meta", "key": names_key, "md5": write("meta", {names_key: classes})}
    monkeypatch.setattr(kind, "meta", meta)
    return images


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path: Path, name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_cifar(tmp_path, name, monkeypatch)
    data = DataConfig(name=name, root=str(tmp_path), download=False, num_labels_per_class=1)
    splits = load_splits(data, seed=0)
    assert splits.class_names == tuple(f"class {i}" for i in range(10))
    assert (len(splits.labeled), len(splits.unlabeled), len(splits.test)) == (10, 20, 30)
    np.testing.assert_array_equal(splits.test.images, images)
    renamed = load_splits(data.model_copy(update={"class_names": tuple("abcdefghij")}), seed=0)
    assert renamed.class_names == tuple("abcdefghij")
    with pytest.raises(ValueError, match=f"data.class_names=a,b: 2 names, but {name} has 10 classes"):
        load_splits(data.model_copy(update={"class_names": ("a", "b")}), seed=0)


def test_a_changed_pickle_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, "cifar10", monkeypatch)

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "harm",)

    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Harmful()))
    data = DataConfig(name="cifar10", root=str(tmp_path), download=False, num_labels_per_class=1)
    with pytest.raises(ValueError, match=r"data.download=false: the files are damaged .*cifar10 needs .*data_batch_1"):
        load_splits(data, seed=0)
    assert not (tmp_path / "harm").exists()


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import SVHN

    images = noise(30, 3, 32, 32)
    digits = np.arange(30) % 10
    split_list = {}
    for name in ("train", "test"):
        path = tmp_path / f"{name}_32x32.mat"
        stored = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]
        scipy.io.savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": stored})
        split_list[name] = ["url", path.name, md5(path.read_bytes())]
    monkeypatch.setattr(SVHN, "split_list", split_list)
    data = DataConfig(name="svhn", root=str(tmp_path), download=False, num_labels_per_class=2)
    splits = load_splits(data, seed=0)
    np.testing.assert_array_equal(splits.test.images, images)
    assert splits.test.targets.tolist() == digits.tolist()
    assert (len(splits.labeled), len(splits.unlabeled)) == (20, 10)


def test_stl10_has_a_pool_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    base = tmp_path / "stl10_binary"
    base.mkdir()
    images = noise(20, 3, 96, 96)
    labels = (np.arange(20) % 10 + 1).astype(np.uint8)
    columns_first = images.transpose(0, 1, 3, 2).tobytes()
    for name in ("train_X.bin", "test_X.bin", "unlabeled_X.bin"):
        (base / name).write_bytes(columns_first)
    for name in ("train_y.bin", "test_y.bin"):
        (base / name).write_bytes(labels.tobytes())
    (base / "class_names.txt").write_text("\n".join("abcdefghij"))
    for field in ("train_list", "test_list"):
        sums = [[name, md5((base / name).read_bytes())] for name, _ in getattr(STL10, field)]
        monkeypatch.setattr(STL10, field, sums)
    data = DataConfig(name="stl10", root=str(tmp_path), download=False, image_size=48, interpolation="area")
    splits = load_splits(data, seed=0)
    assert (len(splits.labeled), len(splits.unlabeled), len(splits.test)) == (20, 20, 20)
    assert splits.class_names == tuple("abcdefghij")
    assert set(splits.unlabeled.targets) == {-1}
    mean = images.reshape(20, 3, 48, 2, 48, 2).mean(axis=(3, 5))
    np.testing.assert_array_equal(splits.unlabeled.images, np.floor(mean + 0.5))
    assert len(load_splits(data, seed=0, uses_unlabeled=False).unlabeled) == 0
    assert len(load_splits(data, seed=0, uses_unlabeled=False, reads_unlabeled=True).unlabeled) > 0


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100", "svhn", "stl10"])
def test_a_set_that_is_not_there_says_which_files_belong_where(tmp_path: Path, name: Any) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=rf"^data.download=false: {name} is not on .*{tmp_path / 'cache'}[^\n]*$"):
        load_splits(DataConfig(name=name, download=False, num_labels_per_class=1), seed=0)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "svhn"])
def test_a_failed_download_is_one_line(tmp_path: Path, name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.error

    from torchvision.datasets import utils

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no route\nto host")

    monkeypatch.setattr(utils, "_urlretrieve", refuse)
    with pytest.raises(ValueError, match=rf"^data.download=true: the download failed \([^\n]*\); {name} needs [^\n]*$"):
        load_splits(DataConfig(name=name, num_labels_per_class=1), seed=0)


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    with pytest.raises(ValueError, match=r"data.root=.*/dataset: there is no such folder; did you mean datasets\?"):
        load_splits(DataConfig(name="cifar10", root=str(tmp_path / "dataset")), seed=0)


@pytest.mark.parametrize("name", typing.get_args(DataName))
def test_every_data_set_has_a_valid_group_file(name: str) -> None:
    text = (CONF / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    assert "# @package _global_" in text.splitlines()[:2]
    tree = yaml.safe_load(text)
    assert tree["data"]["name"] == name
    if name in ("image_folder", "parquet", "webdataset", "features"):
        tree["data"]["train"] = "somewhere"
    parse_config(tree)


def test_no_torch_is_loaded_before_a_mistake_is_answered() -> None:
    code = (
        "import sys\n"
        "from dpl_ray.config.schema import DataConfig\n"
        "from dpl_ray.data.splits.sources import load_splits\n"
        "try: load_splits(DataConfig(name='image_folder', train='/nope'), seed=0)\n"
        "except ValueError as error: print(error)\n"
        "print([name for name in ('torch', 'torchvision', 'sklearn', 'ray') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["data.train=/nope: there is no such file or folder", "[]"], done.stderr
