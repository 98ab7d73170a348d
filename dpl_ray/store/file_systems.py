"""The file system of a URI, for the user's images and for the folders of runs.

The clients of the buckets try for long, and their waiting cannot be broken off: not even the process can end before.
So a bucket's service is first asked by a client without patience.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa
from pyarrow import fs

from dpl_ray.store.hub import open_hub

SECONDS_TO_ANSWER = 2.0
ONE_ATTEMPT = timedelta(milliseconds=100)  # over when the first has failed; at 0 Google's client makes none
BUCKETS = ("s3", "gs", "gcs")


def open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI, and the path in it.

    Raises:
        ValueError: pyarrow knows no file system for it.
        OSError: the service of the bucket does not answer; told within seconds.
        ImportError: a package is missing; says which.
    """
    scheme, rest = uri.split("://", 1)
    if scheme == "hf":
        return open_hub(), rest
    if scheme not in BUCKETS:
        return fs.FileSystem.from_uri(uri)
    path, options = split_options(rest)
    bucket, slash, below = path.partition("/")
    return _bucket(scheme, bucket, options.removeprefix("?")), bucket.rpartition("@")[2] + slash + below


def split_options(address: str) -> tuple[str, str]:
    """Path and options (`?name=...`) of an address; a question mark that no `name=` follows belongs to a glob."""
    found = re.search(r"\?(?=\w+=)", address)
    return (address[: found.start()], address[found.start() :]) if found else (address, "")


def open_file(filesystem: fs.FileSystem, path: str) -> pa.NativeFile:
    """A file to read from; `OSError` as of `check_file`."""
    check_file(filesystem, path)
    return filesystem.open_input_file(path)


def check_file(filesystem: fs.FileSystem, path: str) -> None:
    """`OSError` for a pipe or a device, which a stranger's folder may have: its end would be waited for.

    Those of /dev are files: the user has named them, as in config=/dev/stdin.
    """
    if isinstance(filesystem, fs.LocalFileSystem) and not path.startswith("/dev/"):
        with suppress(FileNotFoundError, NotADirectoryError, ValueError):
            mode = Path(path).stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise OSError(errno.EINVAL, "is a pipe or a device, and no file", path)


@cache
def _bucket(scheme: str, bucket: str, options: str) -> fs.FileSystem:
    """One file system a bucket: finding an S3 bucket's region takes a request."""
    if scheme != "s3" and "retry_limit_seconds" not in options:
        # Google's client would try for 15 minutes without credentials or a network.
        options = "&".join(filter(None, (options, "retry_limit_seconds=10")))
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if scheme == "s3" and region and "region=" not in options:
        options = "&".join(filter(None, (options, f"region={region}")))
    _check_reach(scheme, bucket.rpartition("@")[2], dict(parse_qsl(options)))
    return fs.FileSystem.from_uri(f"{scheme}://{bucket}" + (f"?{options}" if options else ""))[0]


def _check_reach(scheme: str, bucket: str, options: dict[str, str]) -> None:
    """Ask once, as nobody. Any answer will do, a refusal too: the credentials are tried by the first real request.

    Raises:
        OSError: there is no answer.
    """
    given: dict[str, Any] = {key: options[key] for key in ("scheme", "endpoint_override") if key in options}
    if scheme == "s3":
        patience = {"connect_timeout": SECONDS_TO_ANSWER, "request_timeout": SECONDS_TO_ANSWER}
        once = fs.AwsStandardS3RetryStrategy(max_attempts=1)
        nobody = fs.S3FileSystem(anonymous=True, region=options.get("region"), retry_strategy=once, **patience, **given)
        silence = "NETWORK_CONNECTION"
    else:
        nobody = fs.GcsFileSystem(anonymous=True, retry_time_limit=ONE_ATTEMPT, **given)
        silence = "UNAVAILABLE"
    try:
        nobody.get_file_info(bucket)
    except OSError as error:
        if silence in str(error):
            raise


def one_line(error: BaseException | str) -> str:
    """An error of a library, short and on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."
