"""What the user's files are before they are decoded: format, mode and size of each, from its header."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

from PIL import ExifTags

from dpl_ray.checking.findings import Finding
from dpl_ray.config.schema import DataConfig
from dpl_ray.data.images.decode import Payload, open_image, quiet_pillow
from dpl_ray.data.labeled.records import list_records
from dpl_ray.data.pool.choice import list_unlabeled

MAX_FILES = 2000  # of each field that are looked at
LONG = 2.0  # the longer side, in shorter ones, of an image that loses half of itself or more by cropping
LARGE_SHARE = 0.1  # of files that are worth a note
_NUM_THREADS = 16  # they wait for files
_MODES = {
    "1": "black and white", "L": "grey", "LA": "grey with transparency", "P": "palette", "RGB": "RGB",
    "RGBA": "RGB with transparency", "CMYK": "CMYK", "I;16": "16-bit grey",
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a file says of its image."""

    format: str
    mode: str
    width: int  # pixels, as they are stored
    height: int
    is_turned: bool  # by the camera, which noted it in EXIF


def read_headers(data: DataConfig) -> dict[str, list[Header]]:
    """Field -> headers of at most MAX_FILES images from all of its files, without unreadable ones."""
    found = {}
    for field, given in (("data.train", data.train), ("data.test", data.test)):
        if given is not None:
            records = list_records(data, field, given)
            step = -(-len(records.ids) // MAX_FILES)
            found[field] = _headers(islice(records.read(), 0, None, step))
    if data.unlabeled is not None:
        files = list_unlabeled(data)
        spread = replace(files, spans=files.spans[:: -(-len(files.spans) // MAX_FILES) or 1])
        found["data.unlabeled"] = _headers(payload for _, payload, _ in islice(spread.read_all(), MAX_FILES))
    return found


def _headers(payloads: Iterable[Payload]) -> list[Header]:
    with quiet_pillow(), ThreadPoolExecutor(_NUM_THREADS) as executor:
        return [header for header in executor.map(read_header, payloads) if header]


def read_header(payload: Payload) -> Header | None:
    """None of what is no image, or cannot be read."""
    try:
        encoded = payload() if callable(payload) else payload
        assert isinstance(encoded, bytes), "of a file"
        with open_image(encoded) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
            return Header(image.format or "", image.mode, image.width, image.height, turned)
    except Exception:  # Pillow lets anything out that a broken file provokes; decoding says what is wrong with it
        return None


def kinds(headers: list[Header]) -> Counter[str]:
    """Format and mode in words -> files."""
    return Counter(f"{header.format}, {_MODES.get(header.mode, header.mode)}" for header in headers)


def sizes(headers: list[Header]) -> dict[str, str]:
    """Smallest, median and largest image, by its area, as width x height."""
    ordered = sorted(headers, key=lambda header: (header.width * header.height, header.width))
    places = {"smallest": 0, "median": len(ordered) // 2, "largest": -1}
    return {name: f"{ordered[at].width} x {ordered[at].height}" for name, at in places.items()}


def file_findings(headers: list[Header], data: DataConfig) -> Iterator[Finding]:
    """Where size, shape and channels of the configuration do not suit the files."""
    if not headers:
        return
    size = data.image_size
    if size is not None:
        small = sum(min(header.width, header.height) < size for header in headers)
        if small > LARGE_SHARE * len(headers):
            yield Finding(
                "note",
                f"{small:,} of {len(headers):,} files are smaller than data.image_size={size} and are enlarged",
                "a smaller data.image_size trains faster and loses nothing",
            )
        long = sum(max(header.width, header.height) >= LONG * min(header.width, header.height) for header in headers)
        if data.fit == "crop" and long > LARGE_SHARE * len(headers):
            yield Finding(
                "note",
                f"{long:,} of {len(headers):,} files are at least twice as long as wide or the reverse: data.fit=crop "
                "cuts away half of them and more",
                "data.fit=pad keeps all of them",
            )
    if data.channels == 3 and all(header.mode in ("1", "L", "LA", "I;16") for header in headers):
        yield Finding("note", "all files are grey", "data.channels=1 trains as well, with fewer numbers")
