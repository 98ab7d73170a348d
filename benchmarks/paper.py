"""A pool of 10⁹ photographs on paper, as images and as stored features.

Arithmetic from the rates of one core in docs/results/bench/pool_rates.json and feature_rates.json, and from the memory
of listing.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.figures import Figures, Measurement, shown
from dpl_ray.page.markdown import markdown_row

# Rows of pool_rates.json that the plan reads.
PHOTOGRAPH = "a 640x427 JPEG"
DECODE = "decode it to 224x224"
INDEX = "index of a parquet file with one span"
MEASURED = "measured"
# Row and column of listing.json.
LISTING, WHOLE = "a disk, 1 folder, to label", "whole process"
# Rows of feature_rates.json that it reads.
ROW_BYTES, ROW_RATE = "bytes of a row, views={}", "read rows, views={}"
TRAINED = "dpl, B = 448, in memory"

NUM_IMAGES = 10**9
FILE_BYTES = 10**9  # of a parquet file
GROUP_ROWS = 1000  # of a row group
SPAN_BYTES = 24  # of the index: three whole numbers of 8 bytes
PIXEL_BYTES = 3 * 224**2  # of a decoded image
NUM_GPUS, GPU_RATE = 64, 1000  # images/s of one
SHUFFLE_ROWS, AHEAD = 65_536, 8  # data.pool.shuffle_rows and windows_ahead, on one worker for each GPU
COUNTED = 2  # times that Ray Data counts a share (dpl_ray/cluster/windows.py)
FOOTER_SECONDS, FOOTER_THREADS = 0.05, 32  # of one request to a bucket, and requests at once
PART_BYTES = 64 * 2**20  # of labelling
VIEWS, NUM_FEATURES, ROWS_PER_PART, NUM_CORES = (0, 1), 384, 8192, 64  # of stored features
MU = 7  # unlabelled images for each labelled one
IMAGE_FILES = 10**7


def plan() -> str:
    """The table of docs/scale.md."""
    return _table(
        ("what", "how much"), plan_rows(Measurement.load("pool_rates").figures, Measurement.load("listing").figures)
    )


def features_plan() -> str:
    """The table of docs/scale.md on features."""
    heading = ("what", "images", *(f"{NUM_FEATURES} features, `views={views}`" for views in VIEWS))
    return _table(
        heading, features_rows(Measurement.load("pool_rates").figures, Measurement.load("feature_rates").figures)
    )


def _table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(markdown_row(row) for row in [heading, ("---",) * len(heading), *rows])


def features_rows(images: Figures, features: Figures) -> list[tuple[str, ...]]:
    """What is planned of the images, and of their features with so many views."""
    image_bytes, decode = 1000 * images[PHOTOGRAPH][MEASURED].value, images[DECODE][MEASURED].value
    sizes = [features[ROW_BYTES.format(views)][MEASURED].value for views in VIEWS]
    rates = [features[ROW_RATE.format(views)][MEASURED].value for views in VIEWS]
    reading = [NUM_IMAGES / rate for rate in (decode, *rates)]
    gpus, trained = NUM_GPUS * GPU_RATE, features[TRAINED][MEASURED].value
    writing = [NUM_IMAGES * (1 + 2 * views) / gpus for views in VIEWS]
    parts = [f"{shown(NUM_IMAGES / ROWS_PER_PART)} of {_bytes(ROWS_PER_PART * size)}" for size in sizes]
    training = _duration(NUM_IMAGES * (1 + 1 / MU) / trained)
    return [
        ("bytes in the bucket", *(_bytes(NUM_IMAGES * size) for size in (image_bytes, *sizes))),
        (f"parts of {ROWS_PER_PART:,} rows", "", *parts),
        (f"written once, by {NUM_GPUS} GPUs that take {GPU_RATE:,} images/s", "", *map(_duration, writing)),
        ("reading a pass on one core", *map(_duration, reading)),
        (f"reading a pass on {NUM_CORES} cores", *(_duration(seconds / NUM_CORES) for seconds in reading)),
        ("the steps of a pass on one core, `dpl`, B = 448", "", *[training] * len(VIEWS)),
    ]


def _duration(seconds: float) -> str:
    units = {"days": 86_400, "hours": 3600, "minutes": 60}
    name = next((name for name, size in units.items() if seconds >= size), "s")
    return f"{shown(seconds / units.get(name, 1))} {name}"


def plan_rows(rates: Figures, listing: Figures) -> list[tuple[str, str]]:
    """What is planned, and how much of it there is."""
    image_bytes = 1000 * rates[PHOTOGRAPH][MEASURED].value  # measured in kB
    decode = rates[DECODE][MEASURED].value
    files, groups = NUM_IMAGES * image_bytes / FILE_BYTES, NUM_IMAGES / GROUP_ROWS
    index = files * (rates[INDEX][MEASURED].value - SPAN_BYTES) + groups * SPAN_BYTES
    rate = NUM_GPUS * GPU_RATE
    hours, cores = NUM_IMAGES / rate / 3600, rate / decode
    share = SHUFFLE_ROWS // NUM_GPUS
    share_bytes = share * PIXEL_BYTES
    images_per_part = PART_BYTES // PIXEL_BYTES
    parts = NUM_IMAGES / images_per_part
    return [
        ("bytes in the bucket", _bytes(NUM_IMAGES * image_bytes)),
        (f"parquet files of {_bytes(FILE_BYTES)}", f"{shown(files)} of {shown(NUM_IMAGES / files)} rows"),
        (f"row groups of {GROUP_ROWS:,} rows", f"{groups:,.0f} of {_bytes(GROUP_ROWS * image_bytes)}"),
        ("index, once in the object store for all workers", _bytes(index)),
        (
            f"listing: all footers, {FOOTER_THREADS} requests at once of {1000 * FOOTER_SECONDS:.0f} ms",
            f"{shown(files * FOOTER_SECONDS / FOOTER_THREADS)} s",
        ),
        ("decoding on one core", f"{shown(NUM_IMAGES / decode / 86_400)} days"),
        (f"a pass with {NUM_GPUS} GPUs of {GPU_RATE:,} images/s", f"{shown(hours)} hours"),
        ("cores that decode meanwhile", f"{shown(cores)}: {shown(cores / NUM_GPUS)} for each GPU"),
        ("read from the bucket", f"{_bytes(rate * image_bytes)}/s"),
        (
            "decoded images to the workers",
            f"{_bytes(rate * PIXEL_BYTES)}/s: {_bytes(GPU_RATE * PIXEL_BYTES)}/s for each GPU",
        ),
        (
            f"a worker's share of a window of {SHUFFLE_ROWS:,} rows",
            f"{share:,} rows, {_bytes(share_bytes)} decoded, {shown(share / decode)} s of one core",
        ),
        (
            f"object store for each worker, `windows_ahead={AHEAD}`",
            _bytes(COUNTED * (AHEAD + 1) * share_bytes),
        ),
        ("memory of a worker: the share in use and the next one", _bytes(2 * share_bytes)),
        ("reading tasks in a pass", f"{shown(NUM_IMAGES / share)}"),
        ("times that each row group is opened in a pass", shown(_times_opened(share))),
        (f"the same with a window of {8 * SHUFFLE_ROWS:,} rows", shown(_times_opened(8 * share))),
        (
            f"parts of a labelling, {_bytes(PART_BYTES)} decoded each",
            f"{shown(parts)} of {images_per_part} images",
        ),
        (
            f"instead {IMAGE_FILES:,} single image files: peak memory of listing",
            _bytes(1e9 * listing[LISTING][WHOLE].value),
        ),
    ]


def _times_opened(share: int) -> float:
    """By shares of so many consecutive rows: a share that does not end with a group opens one that the next opens."""
    return (share + GROUP_ROWS - 1) / share


def _bytes(number: float) -> str:
    power = max(0, min(4, int(math.log10(number) / 3)))
    return f"{shown(number / 1000**power)} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
