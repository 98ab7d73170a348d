"""Features that do not fit into memory: the same splits, and steps that are functions of seed and step."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, load_file

from dpl_ray.checking.settings import settle_model
from dpl_ray.config.compose import load_config
from dpl_ray.config.schema import Config
from dpl_ray.data.features.rows import StreamedFeatures
from dpl_ray.data.pool.windows import PoolFeed, WindowReader, Windows, read_here, read_window
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.jobs.explain import explain
from dpl_ray.jobs.fit import fit
from dpl_ray.store.storage import Storage
from dpl_ray.training import loop
from dpl_ray.training.distributed import Workers
from tests.data.test_windows import breaking
from tests.embedding.jobs import overrides, pool_of, run, splits_of

STREAM = ["data.pool.mode=stream", "data.pool.shuffle_rows=24"]


def streamed(embedded: Path, *more: str) -> StreamedFeatures:
    pool = splits_of(embedded, *STREAM, *more).unlabeled
    assert isinstance(pool, StreamedFeatures)
    return pool


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["data.num_labels_per_class=2", "data.validation_fraction=0.5"],  # what loses its label is in the pool
        ["data.num_labels_per_class=2", "data.test=null", "data.unlabeled=null"],
    ],
)
def test_streaming_splits_as_memory_does(embedded: Path, more: list[str]) -> None:
    memory, stream = splits_of(embedded, *more), splits_of(embedded, *STREAM, *more)
    for part in ("labeled", "validation", "test"):
        one, other = getattr(memory, part), getattr(stream, part)
        for name in ("ids", "images", "targets"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), (part, name)
    assert pool_of(memory) == pool_of(stream)
    assert stream.fingerprint() == splits_of(embedded, *STREAM, *more).fingerprint()
    targets = stream.unlabeled.take(0, len(stream.unlabeled), seed=0).targets  # type: ignore[union-attr]
    assert sorted(targets) == sorted(memory.unlabeled.targets)  # type: ignore[union-attr]


def test_an_image_of_two_folders_is_taken_once(weights: str, images: Path, embedded: Path, tmp_path: Path) -> None:
    """As in memory; of a folder where it could not be read, it is taken from the other."""
    shutil.copytree(images / "rest", tmp_path / "rest")
    names = sorted((tmp_path / "rest").glob("*.png"))
    names[0].write_bytes(b"no image")
    run(weights, tmp_path / "rest", tmp_path / "first", "views=2", "max_bad_fraction=0.5")
    shutil.copy(names[1], names[0])
    run(weights, tmp_path / "rest" / "rest0*.png", tmp_path / "second", "views=2")
    both = f"data.unlabeled=[{tmp_path / 'first'},{tmp_path / 'second'}]"
    memory, stream = splits_of(embedded, both), splits_of(embedded, *STREAM, both)
    assert len(stream.unlabeled) == len(memory.unlabeled) == 40
    assert pool_of(memory) == pool_of(stream)


@pytest.mark.parametrize("fits", [True, False])
def test_auto_streams_what_is_large(embedded: Path, monkeypatch: pytest.MonkeyPatch, fits: bool) -> None:
    size = (12 + 10 + 40) * 5 * splits_of(embedded).labeled.images.shape[3] * 2
    share = load_config(overrides(embedded)).data.pool.memory_share
    monkeypatch.setattr("dpl_ray.data.pool.choice.memory_size", lambda: int((size + (10 if fits else -10)) / share))
    assert isinstance(splits_of(embedded).unlabeled, StreamedFeatures) != fits


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_share_the_batches_of_one(embedded: Path, world_size: int) -> None:
    pool, windows = streamed(embedded), Windows(batch_size=4, mu=2, steps=3, seed=1)

    def feed(rank: int, of: int) -> PoolFeed:
        return PoolFeed(pool, windows, first_step=4, num_steps=8, rank=rank, world_size=of)

    feeds = [feed(0, 1), *(feed(rank, world_size) for rank in range(world_size))]
    for step in range(4, 8):
        one, *shares = (each(step) for each in feeds)
        for place in range(3):
            assert np.array_equal(one[place], np.concatenate([share[place] for share in shares]))
    for each in feeds:
        each.close()


def test_features_that_are_gone_cost_their_own_rows(embedded: Path, tmp_path: Path) -> None:
    shutil.copytree(embedded, tmp_path / "copy")
    pool = streamed(tmp_path / "copy")
    whole = read_window(pool, Windows(1, len(pool), 1, 0), 0, 0, 1)
    first = sorted((tmp_path / "copy" / "rest").glob("*.parquet"))[0]
    first.unlink()
    window = read_window(pool, Windows(1, len(pool), 1, 0), 0, 0, 1)
    lost = window["reasons"] != ""
    assert set(window["bad"][lost]) == {f"{first}:{row}" for row in range(8)}
    assert np.array_equal(window["images"][~lost], whole["images"][~lost])
    assert np.array_equal(window["ids"][~lost], whole["ids"][~lost])
    assert set(window["ids"].tolist()) == set(whole["ids"][~lost].tolist()), "others take their places"


def config_of(embedded: Path, *more: str) -> Config:
    own = ["train.checkpoint_every=5", "train.baseline=false", "train.num_steps=12", *more]
    return settle_model(load_config(overrides(embedded, *own)))


def trained(config: Config, folder: Path, read: WindowReader = read_here) -> dict[str, bytes]:
    """The weights that a training in this process ends with."""
    splits = load_splits(config.data, seed=config.train.seed)
    place = Path(loop.train(config, splits, Workers(), Storage(str(folder)), lambda _: None, read).checkpoint)
    return {name: (place / f"{name}.safetensors").read_bytes() for name in ("student", "teacher", "policy")}


def test_a_run_that_is_broken_off_ends_as_one_that_is_not(embedded: Path, tmp_path: Path) -> None:
    config = config_of(embedded, *STREAM)
    whole = trained(config, tmp_path / "whole")
    with pytest.raises(OSError, match="the disk is gone"):
        trained(config, tmp_path / "broken", breaking(3))  # at step 9 of 12
    assert trained(config, tmp_path / "broken") == whole, "from step 5, in window 1"
    memory = trained(config_of(embedded), tmp_path / "memory")
    scaling = [load(weights["student"]) for weights in (whole, memory)]
    for name in ("backbone.mean", "backbone.std"):
        np.testing.assert_allclose(scaling[0][name], scaling[1][name], rtol=1e-6)
    pool = streamed(embedded)
    name = pool.names(np.array([7]))[0]
    for sample in (7, Path(name).name):
        assert explain(tmp_path / "whole", sample, output=tmp_path / "page.html").sample == name


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_that_ray_data_reads_for_end_as_one(embedded: Path, tmp_path: Path) -> None:
    config = config_of(embedded, *STREAM, f"run.storage_path={tmp_path}", "run.name=two", "scale.num_workers=2")
    alone = trained(config, tmp_path / "alone")
    result = fit(config)
    for name in ("student", "teacher"):
        mine, expected = load_file(Path(result.checkpoint) / f"{name}.safetensors"), load(alone[name])
        assert np.array_equal(mine["backbone.mean"], expected["backbone.mean"])
        for key in ("classifier.weight", "classifier.bias"):
            np.testing.assert_allclose(mine[key], expected[key], atol=1e-5)
