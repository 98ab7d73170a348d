"""Pictures of the data: some images of each class, and what the views make of images.

Legend: N images, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dpl_ray.config.schema import DataConfig, ViewsConfig
from dpl_ray.data.batches.augment import num_strong_uniforms, strong, weak
from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.features.pictures import read_pictures
from dpl_ray.page.pictures import encode_png, encode_sheet

MAX_CLASSES = 30  # that have a sheet
NUM_COLUMNS = 4
IMAGES_A_CLASS = 16
NUM_ROWS = 6  # images whose views are shown
NUM_WEAK, NUM_STRONG = 2, 3
_FLIP = 2  # column of the uniforms


def class_sheets(labeled: ImageSet, num_classes: int, data: DataConfig) -> list[tuple[int, int, bytes]]:
    """Class, its labelled images, and a PNG of some of them, evenly spread; of the first MAX_CLASSES classes.

    Of features, no class whose images cannot be read any more.
    """
    found = []
    for index in range(min(num_classes, MAX_CLASSES)):
        rows = np.flatnonzero(labeled.targets == index)
        images = read_pictures(labeled, _spread(rows, IMAGES_A_CLASS), data) if len(rows) else None
        if images is not None:
            found.append((index, len(rows), encode_sheet(images, num_columns=NUM_COLUMNS, max_pixels=64)))
    return found


def view_rows(labeled: ImageSet, views: ViewsConfig) -> list[tuple[int, list[bytes]]]:
    """Class, and PNGs of one image, some weak views and some strong ones; of images of different classes.

    Where images are mirrored at random, the last weak view is.
    """
    _, firsts = np.unique(labeled.targets, return_index=True)
    rows = _spread(firsts, NUM_ROWS)
    num_views = NUM_WEAK + NUM_STRONG
    images = torch.from_numpy(np.repeat(labeled.images[rows], num_views, axis=0))
    uniforms = np.random.default_rng(0).random((len(images), num_strong_uniforms(views)), dtype=np.float32)
    place = np.arange(len(images)) % num_views
    uniforms[place < NUM_WEAK, _FLIP] = np.where(place[place < NUM_WEAK] == NUM_WEAK - 1, 0.25, 0.75)
    columns = torch.from_numpy(uniforms)
    is_weak = torch.from_numpy(place < NUM_WEAK)[:, None, None, None]
    made = torch.where(is_weak, weak(images, columns, views), strong(images, columns, views)).numpy()
    pngs = [encode_png(view) for view in made]
    return [
        (int(labeled.targets[row]), [encode_png(labeled.images[row]), *pngs[num_views * n : num_views * (n + 1)]])
        for n, row in enumerate(rows.tolist())
    ]


def _spread(rows: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """At most so many of the rows, at equal distances."""
    return rows if len(rows) <= number else rows[np.linspace(0, len(rows) - 1, number).round().astype(int)]
