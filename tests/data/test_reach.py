"""reach.py: paths and addresses that stand in somebody else's data lead nowhere that the user has not named."""

from __future__ import annotations

import http.server
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from dpl_ray import export_labels, review, suggest
from dpl_ray.config.schema import DataConfig
from dpl_ray.data.files import reach
from dpl_ray.data.files.location import Location, open_location
from dpl_ray.data.files.reach import FOREIGN_HOST, OUTSIDE, OutOfReachError, Reach, check_addresses, follow, place_of
from dpl_ray.data.files.spelling import Spelling
from tests.builders import serving
from tests.data.test_labels_to_train_on import Pool
from tests.data.test_sources import CLASSES, all_labels, csv_lines, fails, load, png, write_csv, write_folder
from tests.exchange.outputs import write_rows

ADDRESS = "s3://bucket/x.png?endpoint_override="


@pytest.fixture
def stranger() -> Iterator[tuple[str, list[str]]]:
    """A host of somebody else, and what it was asked."""
    asked = []

    class Listening(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(str(self.headers))
            self.send_response(404)
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

    with serving(Listening) as port:
        yield f"127.0.0.1:{port}", asked


def test_an_address_in_a_csv_or_parquet_file_sends_no_request(
    tmp_path: Path, stranger: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, asked = stranger
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "of the user")
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    address = f"{ADDRESS}{host}&scheme=http"
    write_folder(tmp_path / "train")
    table = write_csv(tmp_path, [*csv_lines(lambda c: c), f"{address},0"])
    advice = rf"row 31 names s3://.*: {FOREIGN_HOST}; data\.allowed_hosts=\[bucket,{host}\] reads it, with your cred"
    fails(advice, train=table)
    fails(advice, train=table, allowed_hosts=("bucket",), allow_outside=True)
    cells = [{"path": path.partition(",")[0]} for path in csv_lines(str)[1:]] + [{"path": address}]
    pq.write_table(pa.table({"image": cells, "label": [*range(3)] * 10 + [0]}), tmp_path / "a.parquet")
    splits = load("parquet", train=tmp_path / "a.parquet", max_bad_fraction=0.1)
    assert [bad.reason for bad in splits.bad] == [FOREIGN_HOST]
    assert asked == []
    # The proof that it would have been asked.
    splits = load(train=table, max_bad_fraction=0.1, allowed_hosts=("bucket", host))
    assert [bad.id for bad in splits.bad] == ["s3://bucket/x.png"]
    assert asked


def test_an_allowed_host_may_be_asked_in_no_other_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened = []
    monkeypatch.setattr(reach, "open_uri", lambda uri: opened.append(uri) or (fs.LocalFileSystem(), "bucket/x.png"))
    monkeypatch.setenv("SECRET", "of the user")
    location = replace(open_location("data.train", str(tmp_path)), reach=Reach(allowed_hosts=("bucket",)))
    spelled = Spelling(location.filesystem)
    address = "s3://bucket/$SECRET.png"  # no variables in what a stranger writes
    found = follow(location, location.path, address, spelled)
    assert found.name(found.path) == "s3://bucket/x.png"
    assert opened == [address]
    for wrong in (
        "s3://bucket/x.png?tls_ca_file_path=/etc/x",
        "s3://a:b@bucket/x",
        "s3://bucket.evil/x",
        "gs://evil/x",
    ):
        with pytest.raises(OutOfReachError):
            follow(location, location.path, wrong, spelled)


def test_addresses_of_the_bucket_that_the_data_lie_in_are_read_as_the_data_are() -> None:
    place, bucket = "bucket/data/labels.csv", fs.LocalFileSystem()
    location = Location("data.train", f"s3://{place}?endpoint_override=mine", bucket, place, "s3://")

    def found(path: str, **allowed: Any) -> str:
        there = follow(replace(location, reach=Reach(**allowed)), place, path, Spelling(bucket))
        assert (there.filesystem, there.scheme) == (bucket, "s3://")
        return there.path

    for path in ("x.png", "s3://bucket/data/x.png", "s3://bucket/data/x.png?endpoint_override=mine"):
        assert found(path) == "bucket/data/x.png"
    for path in ("../x.png", "s3://bucket/x.png", "s3://bucket/data/../x.png"):
        with pytest.raises(OutOfReachError, match=OUTSIDE):
            found(path)
        assert found(path, allow_outside=True) == "bucket/x.png"
    for path in ("s3://bucket/data/x.png?endpoint_override=evil", "s3://bucket2/data/x.png", "file:///x.png"):
        with pytest.raises(OutOfReachError, match=FOREIGN_HOST):
            found(path, allow_outside=True)


def test_paths_of_a_csv_stay_in_its_folder_and_in_the_places_that_are_named(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos")
    lists = tmp_path / "lists"
    lists.mkdir()
    absolute = [line.replace("train/", f"{photos}/") for line in csv_lines(lambda c: c)]
    for lines in (
        absolute,
        [line.replace("train/", "../photos/") for line in csv_lines(lambda c: c)],
        [line.replace("train/", f"file://{photos}/") for line in csv_lines(lambda c: c)],
    ):
        table = write_csv(lists, lines)
        fails(rf"^data\.train={table}: row 1 names .*0\.png: {OUTSIDE}; data\.allow_outside=true reads it", train=table)
        expected = {50 * c + n: c for c in range(3) for n in range(10)}
        assert all_labels(load(train=table, allow_outside=True)) == expected
        assert all_labels(load(train=table, unlabeled=photos)) == expected
        assert all_labels(load(train=table, unlabeled=str(photos / "*" / "*.png"))) == expected
        assert all_labels(load(train=write_csv(tmp_path, absolute))) == expected
    (lists / "train").symlink_to(photos)  # the user's own, and inside
    (tmp_path / "other").symlink_to(lists)
    assert all_labels(load(train=write_csv(lists, csv_lines(lambda c: c)))) == expected
    through = [line.replace("train/", f"{lists}/train/") for line in csv_lines(lambda c: c)]
    write_csv(lists, through)
    assert all_labels(load(train=tmp_path / "other" / "labels.csv")) == expected


def test_paths_of_a_parquet_file_lead_out_where_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_folder(tmp_path / "photos")
    (tmp_path / "secret.png").write_bytes(png(222))
    cells = [{"path": path.partition(",")[0].replace("train", "../photos")} for path in csv_lines(str)[1:]]
    cells.append({"path": "../secret.png"})
    table = pa.table({"image": cells, "label": [place // 10 for place in range(30)] + [0]})
    pq.write_table(table, tmp_path / "data" / "a.parquet")
    found = load("parquet", train=tmp_path / "data", unlabeled=tmp_path / "photos", max_bad_fraction=0.1)
    assert [bad.reason for bad in found.bad] == [OUTSIDE]
    assert 222 in all_labels(load("parquet", train=tmp_path / "data", allow_outside=True))
    pool = load(
        train=tmp_path / "photos",
        unlabeled=tmp_path / "data",
        uses_unlabeled=True,
        allow_outside=True,
        max_bad_fraction=1,
    )
    assert 222 in all_labels(pool)


def test_a_pool_at_an_address_that_labels_name_is_none_that_the_user_has_named(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    labels = pool.write_all({0, 1, 2}, pool="s3://bucket/pool")
    message = rf"^data\.labels={labels}: its pool is s3://bucket/pool: {FOREIGN_HOST}; .* or set data\.unlabeled to it$"
    with pytest.raises(ValueError, match=message):
        load(labels=labels)


def test_pictures_of_features_are_not_fetched_from_addresses(tmp_path: Path) -> None:
    location = open_location("data.train", str(tmp_path))
    check_addresses([str(tmp_path / "x.png")], location, DataConfig())
    for allowed in ((), ("bucket",), ("evil",)):
        with pytest.raises(OutOfReachError, match=FOREIGN_HOST):
            check_addresses([f"{ADDRESS}evil"], location, DataConfig(allowed_hosts=allowed))
    check_addresses([f"{ADDRESS}evil"], location, DataConfig(allowed_hosts=("bucket", "evil")))


@pytest.mark.parametrize("command", [review, suggest, export_labels])
def test_labels_of_a_stranger_are_shown_suggested_and_exported_without_a_request_to_his_host(
    tmp_path: Path, stranger: tuple[str, list[str]], command: Any
) -> None:
    host, asked = stranger
    address, rows = f"{ADDRESS}{host}&scheme=http", [(f"{ADDRESS}{host}&scheme=http", 1, 0.75, True)] * 20
    named, of_ids = (write_rows(tmp_path / name, rows, CLASSES, pool) for name, pool in (("a", address), ("b", "/x")))
    for labels in (named, of_ids):
        (labels / "_report" / "summary.json").write_text(json.dumps({"checkpoint": address}))
    what = "checkpoint" if command is suggest else "pool"
    message = rf"^labels={named}: its {what} is s3://.*: {FOREIGN_HOST}; give it as {what}= to read it$"
    more = {"format": "coco"} if command is export_labels else {}
    with pytest.raises(ValueError, match=message):
        command(labels=str(named), output=str(tmp_path / "out"), **more)
    with pytest.raises(ValueError, match=FOREIGN_HOST if command is not export_labels else "in a bucket and no file"):
        command(labels=str(of_ids), output=str(tmp_path / "out"), **more)
    assert asked == []


def test_an_image_that_labels_name_is_read_on_this_machine_or_in_the_bucket_of_the_pool() -> None:
    bucket, here = fs.SubTreeFileSystem("/", fs.LocalFileSystem()), fs.LocalFileSystem()
    pool = Location("pool", "s3://bucket/pool?endpoint_override=mine", bucket, "bucket/pool", "s3://")
    for file in ("s3://bucket/a/x.png", "s3://bucket/a/x.png?endpoint_override=mine"):
        assert (place_of(pool, file).filesystem, place_of(pool, file).path) == (bucket, "bucket/a/x.png")
    assert (place_of(pool, "/a/x.png").filesystem, place_of(pool, "/a/x.png").path) == (here, "/a/x.png")
    for file in ("s3://bucket/x.png?endpoint_override=evil", "s3://other/x.png", "gs://bucket/x.png", "http://evil/x"):
        with pytest.raises(OutOfReachError, match=FOREIGN_HOST):
            place_of(pool, file)
