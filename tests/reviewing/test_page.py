"""The page of a review, and the pictures on it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pyarrow import fs

from dpl_ray.data.files.location import Location, open_location
from dpl_ray.reviewing.images import LOSSLESS_PIXELS, MAX_PIXELS, read_pictures
from dpl_ray.reviewing.page import Item, write_review
from dpl_ray.store.storage import Storage


def encode(width: int, height: int, form: str = "png") -> bytes:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, form)
    return buffer.getvalue()


def test_pictures_of_files_and_of_rows_are_small_and_keep_their_shape(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(20, 10))
    (tmp_path / "b.jpg").write_bytes(encode(1000, 500, "jpeg"))
    (tmp_path / "bad.png").write_bytes(b"no image")
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"img": [encode(side, side) for side in range(8, 14)]}), rows, row_group_size=2)
    ids = [f"{rows}:4", *(str(tmp_path / name) for name in ("b.jpg", "bad.png", "a.png")), f"{rows}:1", f"{rows}:9"]
    found = read_pictures(open_location("pool", str(tmp_path)), [*ids, ids[0]], "img")
    opened = [Image.open(io.BytesIO(found[place])) for place in (0, 1, 3, 4)]
    assert [image.size for image in opened] == [(12, 12), (MAX_PIXELS, MAX_PIXELS // 2), (20, 10), (9, 9)]
    assert [image.format for image in opened] == ["PNG", "JPEG", "PNG", "PNG"], LOSSLESS_PIXELS
    elsewhere = Location("pool", "s3://bucket", fs.LocalFileSystem(), "bucket", "s3://")
    assert read_pictures(elsewhere, ids[3:5], "img") == [found[3], found[4]], "of features in a bucket"
    assert (found[2], found[5], found[6]) == ("not an image", "file is missing", found[0])


def test_a_page_has_names_as_text_and_runs_its_own_script_alone(tmp_path: Path) -> None:
    names = ["</script><script>alert(1)</script>", "<b>&amp;"]
    items = [Item("a'\"<i>.png", encode(8, 8), 0, 0.5, ((1, 0.25),)), Item("b.png", "not an image", note="<u>")]
    place = Storage(str(tmp_path)) / "review.html"
    write_review(place, items, names, title="<em>", review="1-2", command="<s>")
    text = place.read().decode()
    assert not re.search(r"alert\(1\)</script>|<(i|u|em|s)>", text)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])  # type: ignore[index]
    assert data["classes"] == names
    assert [item["id"] for item in data["items"]] == ["a'\"<i>.png", "b.png"]
    assert "default-src 'none'" in text
    assert not re.search(r'(src|href)="(?!data:)', text), "nothing from a network"
