"""The standard data sets: digits from scikit-learn, Fashion-MNIST from its IDX files, the rest from torchvision.

They are looked for in data.root, else in the usual places; then downloaded, if data.download.
"""

from __future__ import annotations

import gzip
import math
import socket
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpl_ray.config.schema import DataConfig
from dpl_ray.config.section import suggest
from dpl_ray.data.dataset import ImageSet, Source
from dpl_ray.data.images.convert import DecodeSettings, convert_arrays
from dpl_ray.store.paths import expand_path

CACHE = Path("~/.cache/dpl_ray")
FASHION_MNIST_PACKAGE = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MAX_IDX_BYTES = 2**28
_DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer
_FIRST_FILES = {
    "cifar10": "cifar-10-batches-py/data_batch_1",
    "cifar100": "cifar-100-python/train",
    "svhn": "train_32x32.mat",
    "stl10": "stl10_binary/train_X.bin",
}


def read_standard(data: DataConfig, *, reads_unlabeled: bool) -> Source:
    """Read the data set `data.name`, at the size and channels that `data` asks for."""
    _check_root(data)
    if data.name == "digits":
        source = _digits(data)
    elif data.name == "fashion_mnist":
        source = _fashion_mnist(data)
    elif data.name == "svhn":
        source = _svhn(data)
    elif data.name == "stl10":
        source = _stl10(data, reads_unlabeled=reads_unlabeled)
    else:
        source = _cifar(data)
    if data.class_names is None:
        return source
    if len(data.class_names) != len(source.class_names):
        raise ValueError(
            f"data.class_names={','.join(data.class_names)}: {len(data.class_names)} names, "
            f"but {data.name} has {len(source.class_names)} classes"
        )
    return Source(source.name, data.class_names, source.train, source.unlabeled, source.test)


def read_idx(path: Path, num_dims: int) -> NDArray[np.uint8]:
    """An array of unsigned bytes in the IDX format of MNIST, gzipped or plain."""
    start = 4 + 4 * num_dims
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(start)
            if len(header) < start or header[:4] != bytes((0, 0, 8, num_dims)):
                raise ValueError(f"{path}: not an IDX file of unsigned bytes in {num_dims} dimensions; fetch it again")
            shape = tuple(np.frombuffer(header, ">u4", offset=4).tolist())
            expected = math.prod(shape)
            if expected > MAX_IDX_BYTES:
                raise ValueError(f"{path}: declares {expected:,} bytes, more than any such set has; fetch it again")
            content = file.read(expected + 1)
    except EOFError:
        raise ValueError(f"{path}: truncated gzip file; fetch it again") from None
    except (OSError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); fetch it again") from None
    if len(content) != expected:
        raise ValueError(
            f"{path}: truncated, or the header is wrong: {len(content)} of {expected} bytes; fetch it again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _check_root(data: DataConfig) -> None:
    if data.root is None:
        return
    root = _root(data)
    if data.name == "digits":
        raise ValueError(
            f"data.root={data.root}: digits comes with scikit-learn and reads no folder; leave data.root out"
        )
    if not root.is_dir():
        near = suggest(root.name, [path.name for path in root.parent.iterdir()]) if root.parent.is_dir() else ""
        raise ValueError(
            f"data.root={data.root}: there is no such folder{near or '; create it, or leave data.root out'}"
        )


def _root(data: DataConfig) -> Path:
    """Where files are looked for, or downloaded to."""
    return CACHE.expanduser() if data.root is None else Path(expand_path(data.root, f"data.root={data.root}"))


def _image_set(data: DataConfig, prefix: str, images: NDArray[np.uint8], targets: Any) -> ImageSet:
    """Images (N, C, H, W) in the configured form, named prefix/0, prefix/1, ..."""
    return ImageSet(
        convert_arrays(images, DecodeSettings.from_config(data)),
        np.asarray(targets, np.int64),
        np.array([f"{prefix}/{index}" for index in range(len(images))]),
    )


def _digits(data: DataConfig) -> Source:
    # Not by sklearn.datasets, whose import takes as long as torch's.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(file), delimiter=",")
    images = np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Source("data=digits", tuple("0123456789"), _image_set(data, "digits", images, table[:, -1]))


def _fashion_mnist(data: DataConfig) -> Source:
    folder = _find_fashion_mnist(data)
    parts = []
    for prefix, images_name, labels_name in (("train", *_IDX_FILES[:2]), ("test", *_IDX_FILES[2:])):
        images_path, labels_path = _idx_path(folder, images_name), _idx_path(folder, labels_name)
        images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
        if len(images) != len(labels):
            raise ValueError(f"{labels_path}: {len(labels)} labels, but {len(images)} images in {images_path.name}")
        if len(labels) and labels.max() >= len(FASHION_MNIST_CLASSES):
            raise ValueError(f"{labels_path}: label {labels.max()} is outside the classes 0 to 9")
        parts.append(_image_set(data, prefix, images[:, None], labels))
    return Source("data=fashion_mnist", FASHION_MNIST_CLASSES, parts[0], test=parts[1])


def _idx_path(folder: Path, name: str) -> Path:
    """The plain file where there is one, else the gzipped one."""
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"


def _find_fashion_mnist(data: DataConfig) -> Path:
    """The first usual folder with all four files; else they are downloaded."""
    root = _root(data)
    downloaded = root / "FashionMNIST" / "raw"
    for folder in (root if data.root else FASHION_MNIST_PACKAGE, downloaded):
        if all(_idx_path(folder, name).is_file() for name in _IDX_FILES):
            return folder
    expected = f"{', '.join(_IDX_FILES)} (plain or .gz) in {root} or {downloaded}"
    if data.root is None:
        expected += ", or install Debian's dataset-fashion-mnist"
    with _downloading(data, expected):
        from torchvision.datasets import FashionMNIST

        FashionMNIST(str(root), download=True)
    return downloaded


def _cifar(data: DataConfig) -> Source:
    # The files are pickles, and loading a pickle executes what it says. torchvision compares the MD5 sum of every
    # one with the published file's before it loads any, so only the original authors' pickles are loaded.
    # Nothing here may go around that check.
    splits = [
        _torchvision(data, "CIFAR10" if data.name == "cifar10" else "CIFAR100", train=train) for train in (True, False)
    ]
    train, test = (
        _image_set(data, prefix, part.data.transpose(0, 3, 1, 2), part.targets)
        for prefix, part in zip(("train", "test"), splits, strict=True)
    )
    return Source(f"data={data.name}", tuple(splits[0].classes), train, test=test)


def _svhn(data: DataConfig) -> Source:
    splits = {name: _torchvision(data, "SVHN", split=name) for name in ("train", "test")}
    train, test = (_image_set(data, name, part.data, part.labels) for name, part in splits.items())
    return Source("data=svhn", tuple("0123456789"), train, test=test)


def _stl10(data: DataConfig, *, reads_unlabeled: bool) -> Source:
    parts: dict[str, ImageSet] = {}
    class_names: tuple[str, ...] = ()
    # One split after the other: the unlabelled one is 2.8 GB before it is resized.
    for name in ("train", "test", "unlabeled") if reads_unlabeled else ("train", "test"):
        part = _torchvision(data, "STL10", split=name)
        parts[name] = _image_set(data, name, part.data, part.labels)
        class_names = tuple(part.classes)
    return Source("data=stl10", class_names, parts["train"], parts.get("unlabeled"), parts["test"])


def _torchvision(data: DataConfig, kind: str, **split: Any) -> Any:
    """One split of a torchvision data set, from data.root or the cache, downloaded where it is not there."""
    root = _root(data)
    first_file = root / _FIRST_FILES[data.name]
    with _downloading(data, f"{first_file} and the files that belong to it", is_there=first_file.is_file()):
        import torchvision.datasets

        return getattr(torchvision.datasets, kind)(str(root), download=data.download, **split)


@contextmanager
def _downloading(data: DataConfig, expected: str, *, is_there: bool = False) -> Iterator[None]:
    """Turn a forbidden or failed download, or a damaged file, into one line that says which files belong where."""
    if not data.download and not is_there:
        raise ValueError(
            f"data.download=false: {data.name} is not on this machine; allow the download, set data.root to its "
            f"folder, or put there {expected}"
        )
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)  # torchvision sets none, and would wait for ever
    try:
        yield
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        what = "the download failed" if data.download else "the files are damaged"
        raise ValueError(
            f"data.download={str(data.download).lower()}: {what} ({' '.join(str(error).split())}); "
            f"{data.name} needs {expected}"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
