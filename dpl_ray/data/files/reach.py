"""Where the paths and addresses that stand in data may lead: a table or a parquet file may be somebody else's.

A path could name any file of this machine. An address could name any host, which a client of buckets would send
requests to that are signed with the user's credentials.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, unquote

import pyarrow as pa
from pyarrow import fs

from dpl_ray.config.schema import DataConfig
from dpl_ray.data.files.location import Location, open_location, would_list
from dpl_ray.data.files.spelling import Spelling
from dpl_ray.store.file_systems import one_line, open_uri, split_options

OUTSIDE = "path leads out of the folder of the data"
FOREIGN_HOST = "address of a host that is not allowed"
_OPTIONS = {"endpoint_override", "region", "scheme"}  # of an address; others name files and credentials


class OutOfReachError(ValueError):
    """The reason, the same for all such paths, and what would do."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason = reason


@dataclass(frozen=True)
class Reach:
    """What the user allows."""

    allow_outside: bool = False
    allowed_hosts: tuple[str, ...] = ()
    places: tuple[Location, ...] = ()  # local ones that the user has named too

    @classmethod
    def of(cls, data: DataConfig) -> Reach:
        unlabeled = (data.unlabeled,) if isinstance(data.unlabeled, str) else data.unlabeled or ()
        named = [(f"data.{name}", given) for name, given in (("train", data.train), ("test", data.test))]
        named += [("data.unlabeled", given) for given in unlabeled]
        local = [(field, given) for field, given in named if given and "://" not in given]
        buckets = (_hosts(given) for _, given in named if given and "://" in given and not split_options(given)[1])
        hosts = (*data.allowed_hosts, *(host for each in buckets for host in each))
        return cls(data.allow_outside, hosts, tuple(open_location(*each) for each in local))


def follow(location: Location, file: str, path: str, spelled: Spelling) -> Location:
    """The place of an image that a file of a location names, within the location's reach.

    Args:
        path: relative to the folder of the file, absolute, or an address.
        spelled: of the location's file system.

    Raises:
        OutOfReachError: it leads out of the folder of the data and of the places, or the host does not answer.
    """
    reach = location.reach or Reach()
    if path.startswith("file://") and not location.scheme:
        path = unquote(path.removeprefix("file://"))
    full = posixpath.join(posixpath.dirname(file), path)
    if "://" in path:
        _check_address(location, path, reach)
        if not _is_same_bucket(location, path):
            try:
                filesystem, full = open_uri(path)
            except (ValueError, pa.ArrowException, OSError, ImportError) as error:
                raise OutOfReachError("address whose file system does not answer", one_line(error)) from None
            scheme = f"{path.partition('://')[0]}://"
            return replace(location, given=path, filesystem=filesystem, path=full, scheme=scheme)
        full = split_options(path)[0].removeprefix(location.scheme)
    full = spelled(posixpath.normpath(full))
    if not reach.allow_outside and not _is_inside(location, file, full, reach):
        raise OutOfReachError(OUTSIDE, f"{_section(location)}allow_outside=true reads it all the same")
    return replace(location, path=full)


def check_addresses(names: Iterable[str], location: Location, data: DataConfig) -> None:
    """Refuse names of the data of a location that are addresses of another bucket or host.

    Raises:
        OutOfReachError: naming the bucket, and the host of its endpoint_override, that are not allowed.
    """
    for name in names:
        if "://" in name:
            _check_address(location, name, Reach(allowed_hosts=data.allowed_hosts))


def place_of(pool: Location, file: str) -> Location:
    """Where a file of a pool lies that somebody's labels name: on this machine, or in a bucket of the pool.

    Raises:
        OutOfReachError: it is the address of another bucket or host.
    """
    if "://" not in file:
        return replace(pool, filesystem=fs.LocalFileSystem(), path=file, scheme="")
    if not any(_is_same_bucket(place, file) for place in pool.listed or (pool,)):
        raise OutOfReachError(FOREIGN_HOST, "give the pool itself")
    return replace(pool, path=split_options(file)[0].removeprefix(pool.scheme))


def _check_address(location: Location, address: str, reach: Reach) -> None:
    if _is_same_bucket(location, address):
        return
    hosts = _hosts(address)
    if not set(hosts) <= set(reach.allowed_hosts):
        advice = f"{_section(location)}allowed_hosts=[{','.join(hosts)}] reads it, with your credentials"
        raise OutOfReachError(FOREIGN_HOST, advice)
    if not _options(address).keys() <= _OPTIONS:
        raise OutOfReachError("address with other options", f"it may have {', '.join(sorted(_OPTIONS))}")


def _hosts(address: str) -> list[str]:
    """The bucket or host of an address, and the host that stands in for that of the bucket."""
    place = split_options(address)[0].partition("://")[2]
    return [place.partition("/")[0], *filter(None, [_options(address).get("endpoint_override")])]


def _options(address: str) -> dict[str, str]:
    return dict(parse_qsl(split_options(address)[1].removeprefix("?"), keep_blank_values=True))


def _section(location: Location) -> str:
    """Where the two fields are: in data for a training, else among those of the command."""
    return "data." if location.field.startswith("data.") else ""


def _is_same_bucket(location: Location, address: str) -> bool:
    """Whether an address is of the bucket of a location, and of its host."""
    bare, options = split_options(address)
    bucket = location.name(location.path).split("/", 3)[:3]
    return bare.split("/", 3)[:3] == bucket and options in ("", split_options(location.given)[1])


def _is_inside(location: Location, file: str, path: str, reach: Reach) -> bool:
    """Whether the path lies below the folder of the data, or is an image of the places."""
    root = location.root_of(file)
    if _is_below(path, root):
        return True
    if location.scheme:
        return False
    # A folder above may be a link. Those below are followed: the user has put them there, or let them be put.
    real, folder = os.path.realpath(root), os.path.realpath(posixpath.dirname(path))
    return any(_is_below(each, real) for each in (path, f"{folder}/x")) or any(
        would_list(place, path) for place in reach.places
    )


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")
