"""Pictures, and features of them, which are made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpl_ray.config.compose import load_config
from dpl_ray.jobs.fit import fit
from tests.embedding.jobs import overrides, write_features, write_pictures, write_weights


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


@pytest.fixture(scope="session")
def trained(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    more = [f"run.storage_path={folder}", "run.name=first", "model.hidden=8", "optim.learning_rate=0.01"]
    return str(Path(fit(load_config(overrides(embedded, *more))).checkpoint))
