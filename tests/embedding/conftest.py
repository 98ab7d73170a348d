"""Pictures, and features of them, which are made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.embedding.jobs import write_features, write_pictures, write_weights


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_weights(tmp_path_factory.mktemp("weights") / "w.safetensors")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_pictures(root)
    return root


@pytest.fixture(scope="session")
def embedded(weights: str, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("features")
    write_features(weights, images, output)
    return output
