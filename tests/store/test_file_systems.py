"""The file systems of URIs: a bucket whose service does not answer is told at once, any answer opens it."""

from __future__ import annotations

import http.server
import socket
from collections.abc import Iterator

import pytest

from dpl_ray.store import file_systems
from dpl_ray.store.file_systems import open_uri, split_options
from tests.builders import serving

BUCKETS = pytest.mark.parametrize("scheme", ["s3", "gs"])


def address(scheme: str, port: int) -> str:
    return f"{scheme}://bucket/a/b?scheme=http&endpoint_override=127.0.0.1:{port}"


@pytest.fixture
def refusing() -> Iterator[int]:
    """The port of a service that allows nobody anything."""

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

    with serving(Refusing) as port:
        yield port


@BUCKETS
def test_a_service_that_refuses_is_one_that_answers(
    scheme: str, refusing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    opened, path = open_uri(address(scheme, refusing))
    assert (opened.type_name, path) == ({"s3": "s3", "gs": "gcs"}[scheme], "bucket/a/b")


@BUCKETS
def test_nobody_listens(scheme: str) -> None:
    with pytest.raises(OSError, match="connect"):
        open_uri(address(scheme, 1))


def test_a_service_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_systems, "SECONDS_TO_ANSWER", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(OSError, match="Timeout"):
        open_uri(address("s3", silent.getsockname()[1]))


@pytest.mark.parametrize(
    ("given", "path", "options"),
    [
        ("bucket/a", "bucket/a", ""),
        ("bucket/a?region=x&scheme=http", "bucket/a", "?region=x&scheme=http"),
        ("bucket/?.png", "bucket/?.png", ""),
        ("bucket/?.png?region=x", "bucket/?.png", "?region=x"),
    ],
)
def test_a_question_mark_of_a_glob_opens_no_options(given: str, path: str, options: str) -> None:
    assert split_options(given) == (path, options)


def test_credentials_in_an_address_are_no_part_of_the_path(refusing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    assert open_uri(address("s3", refusing).replace("://", "://key:secret@"))[1] == "bucket/a/b"
