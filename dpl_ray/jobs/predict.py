"""What a trained model says of the images of a path, as a table on the console and a CSV.

What is kept of an image is its line of the CSV: millions are labelled by `dpl-ray label`, which writes parts.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict

from rich.console import Console
from rich.table import Table

from dpl_ray.config.section import shown
from dpl_ray.data.features.folder import has_features, list_features
from dpl_ray.data.files.kinds import as_text
from dpl_ray.data.files.location import open_location
from dpl_ray.data.formats.rows import PoolFiles
from dpl_ray.inference.images import list_images
from dpl_ray.inference.predictions import COLUMNS
from dpl_ray.jobs.predict_config import PredictConfig
from dpl_ray.page.console import Progress, console_table, show
from dpl_ray.store.outputs import open_output
from dpl_ray.store.records import csv_text
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint_folder import feature_spec, load_config_and_info, open_checkpoint

MAX_IMAGES = 12  # that are shown one by one
MAX_CLASSES = 20  # of the table of classes, the most frequent
MAX_BAD = 3  # unreadable images that are named
HEADER = csv_text([COLUMNS])


def predict_files(config: PredictConfig, console: Console) -> None:
    """Predict every image that the path has, or has features of, in the order of their names.

    Raises:
        ValueError: a field, the checkpoint, the path or the output do not fit; before any work.
    """
    output = _open_output(config.output)
    checkpoint = open_checkpoint(config.checkpoint)
    trained, _ = load_config_and_info(checkpoint)
    image_column = config.image_column or trained.data.image_column
    location = open_location("images", config.images)
    if has_features(location):
        files: PoolFiles = list_features(location, feature_spec(checkpoint, trained))
    else:
        files = list_images(config.images, image_column)
    left_out = f"; left out: {as_text(files.left_out)}" if files.left_out else ""
    show(console, f"{checkpoint}: {len(files):,} image{'s' * (len(files) != 1)}, from {shown(config.images)}{left_out}")
    from dpl_ray.inference.predictor import load_checkpoint  # late, with torch: a mistake is answered before

    lines, first, bad = [HEADER], list[tuple[str, ...]](), dict[str, str]()
    confidences: dict[str, float] = defaultdict(float)
    counts = Counter[str]()
    with Progress(console, "images", shows_speed=True) as progress:
        predictor = load_checkpoint(str(checkpoint), temperature=config.temperature)
        for part in predictor.stream(files, batch_size=config.batch_size):
            rows = list(part.rows())
            lines.append(csv_text(rows))
            first += [_cells(row) for row in rows[: MAX_IMAGES + 1 - len(first)]]
            bad |= part.bad
            for _, label, confidence, *_ in rows:
                if label is not None:
                    counts[label] += 1
                    confidences[label] += confidence
            progress.update(counts.total() + len(bad), len(files), f"{len(bad):,} unreadable" if bad else "")
    if output:
        output.write("".join(lines).encode())
    if len(first) <= MAX_IMAGES:
        # Without the folder of all, which the line above names: a long path would be broken.
        folder = posixpath.commonpath([posixpath.dirname(row[0]) for row in first])
        rows = [(posixpath.relpath(row[0], folder) if folder else row[0], *row[1:]) for row in first]
        console.print(console_table("Predictions", ["image", "label", "confidence", "runner-up", ""], rows))
    else:
        console.print(_class_table(counts, confidences, len(files)))
    if bad:
        named = "; ".join(f"{name} ({reason})" for name, reason in list(bad.items())[:MAX_BAD])
        more = "; ..." if len(bad) > MAX_BAD else ""
        show(console, f"{len(bad):,} of {len(files):,} images cannot be read: {named}{more}")
    if output:
        show(console, f"predictions {output}")


def _open_output(given: str | None) -> Storage | None:
    """The file, unless it is something else than predictions, or cannot be written."""
    if given is None:
        return None
    output = open_output(given, "file")
    if output.exists() and output.read_from(0)[: len(HEADER)] != HEADER.encode():
        raise ValueError(f"output={given}: is there already and holds no predictions; take another, or remove it")
    return output


def _cells(row: tuple[str | float | None, ...]) -> tuple[str, ...]:
    """A row of the table, of one of the CSV."""
    path, label, confidence, other, less, error = row
    if error is not None:
        return str(path), f"({error})", "", "", ""
    return str(path), str(label), f"{confidence:.4f}", str(other), f"{less:.4f}"


def _class_table(counts: Counter[str], confidences: dict[str, float], num_images: int) -> Table:
    """How many images are of each class."""
    rows = [
        (name, f"{count:,}", f"{100 * count / num_images:.1f} %", f"{confidences[name] / count:.3f}")
        for name, count in counts.most_common(MAX_CLASSES)
    ]
    if (others := len(counts) - MAX_CLASSES) > 0:
        count = counts.total() - sum(count for _, count in counts.most_common(MAX_CLASSES))
        rows.append((f"{others} other classes", f"{count:,}", f"{100 * count / num_images:.1f} %", ""))
    return console_table("Predictions", ["class", "images", "share", "mean confidence"], rows)
