"""The answers of a person to what a draw shows: reading them, and refusing those that belong to something else."""

from __future__ import annotations

import math

from dpl_ray.config.section import suggest
from dpl_ray.data.files.location import open_location
from dpl_ray.data.labeled.records import check_of_a_person, csv_column, csv_rows
from dpl_ray.data.labels import as_label, clean_name, some
from dpl_ray.reviewing.draw import Draw

UNKNOWN = -1  # nobody can tell


def read_answers(field: str, given: str, draw: Draw) -> list[int]:
    """Class index, or UNKNOWN, of the images of a draw in their order, as far as they are answered.

    Args:
        given: CSV with the columns path and label, and as the page writes it review, proposed and probability.

    Raises:
        ValueError: the answers are a model's; one is not to this draw or page, of a class that there is not, or there
            are two; or an image is left out, so that the answered ones are no random part of the draw.
    """
    location = open_location(field, given)
    if not location.filesystem.get_file_info(location.path).is_file:
        raise location.error("there is no such file; give the answers.csv that the page has saved")
    check_of_a_person(location)
    rows = csv_rows(location)
    if not rows:
        raise location.error("has no answer; open the page, answer, and save again")
    reviews, proposals, chances = (csv_column(location, name) for name in ("review", "proposed", "probability"))
    items = {item.sample_id: item for item in draw.items}
    found: dict[str, int] = {}
    for place, (path, label) in enumerate(rows):
        row = f"row {place + 1}"
        if reviews and reviews[place] != draw.review:
            same_labels = reviews[place].partition("-")[0] == draw.review.partition("-")[0]
            what = "another draw from these labels" if same_labels else "a page of other labels"
            raise location.error(f"{row} is an answer to {what} ({reviews[place] or 'no name'}, not {draw.review})")
        if path not in items:
            raise location.error(f"{row} names {path or 'no path'}, which is none of the {len(items):,} drawn images")
        item = items[path]
        if proposals and clean_name(proposals[place]) != draw.class_names[item.label]:
            raise location.error(
                f"{row} says that {proposals[place]} was proposed for {path}, but {draw.class_names[item.label]} was: "
                "the page or the file has been edited; write the page anew, and answer there"
            )
        if draw.is_random and chances and not _is_number(chances[place], draw.probability):
            raise location.error(
                f"{row} says that {path} was drawn with probability {chances[place]}, but {draw.probability} is "
                "right: the page or the file has been edited; write the page anew, and answer there"
            )
        name = as_label(label, draw.class_names)
        if name is not None and name not in draw.class_names:
            near = suggest(str(name), draw.class_names)
            raise location.error(f"{row}: {label} is not one of the classes {some(draw.class_names)}{near}")
        answer = UNKNOWN if name is None else draw.class_names.index(str(name))
        if found.setdefault(path, answer) != answer:
            raise location.error(f"{row} has another label for {path} than a row before; keep the right one")
    given_ids = [item.sample_id for item in draw.items[: len(found)]]
    if missing := [sample_id for sample_id in given_ids if sample_id not in found]:
        raise location.error(
            f"{len(missing):,} images are left out, as {missing[0]}, and later ones are answered: what is left out is "
            "no matter of chance; answer these too"
        )
    return [found[sample_id] for sample_id in given_ids]


def _is_number(text: str, number: float) -> bool:
    try:
        return math.isclose(float(text), number, rel_tol=1e-6)  # a spreadsheet writes fewer digits
    except ValueError:
        return False
