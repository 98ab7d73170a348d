"""Hugging Face's hub as a file system: `hf://datasets/OWNER/NAME/data`, through `huggingface_hub`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pyarrow import fs

NOT_INSTALLED = "hf:// takes the package huggingface_hub: pip install huggingface_hub"


def open_hub() -> fs.FileSystem:
    """`ImportError` that says what to install."""
    try:
        from huggingface_hub import HfFileSystem
    except ImportError:
        raise ImportError(NOT_INSTALLED) from None
    return fs.PyFileSystem(fs.FSSpecHandler(_WithOSErrors(HfFileSystem())))


class _WithOSErrors:
    """A file system of fsspec or one of its files: what its client of HTTP lets out becomes an `OSError`."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while it is unpickled
            raise AttributeError(name)
        found = getattr(self.inner, name)
        return partial(_call, found) if callable(found) else found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _WithOSErrors) and self.inner == other.inner

    __hash__ = None  # type: ignore[assignment]


def _call(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        found = function(*args, **options)
    except (OSError, NotImplementedError):
        raise
    except Exception as error:  # of httpx, which have no common base with others
        raise OSError(f"{type(error).__name__}: {error}") from error
    return _WithOSErrors(found) if hasattr(found, "read") else found
