"""Features of a pool, each once; classifiers that are trained on them; and images that go in again."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from numpy.typing import NDArray
from rich.console import Console

from dpl_ray import evaluate
from dpl_ray.checking.checked import run_checks
from dpl_ray.checking.settings import settle_model
from dpl_ray.checking.sheets import class_sheets
from dpl_ray.config.compose import load_config
from dpl_ray.config.schema import ViewsConfig
from dpl_ray.data.batches.augment import WEAK_UNIFORMS, num_strong_uniforms
from dpl_ray.data.batches.views import strong, weak
from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.features.folder import BACKBONE_SPEC, read_spec
from dpl_ray.data.features.pictures import read_pictures
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode import decode
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.embedding.config import EmbedConfig
from dpl_ray.embedding.job import embed
from dpl_ray.inference.predictor import load_checkpoint
from dpl_ray.jobs.explain import _of_features, explain
from dpl_ray.models import build_model
from dpl_ray.report.accuracy import pictures_section
from dpl_ray.store.records import read_tree, write_json
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint_folder import load_config_and_info
from dpl_ray.training.evaluation import predict_probs
from dpl_ray.training.predictions import Predictions
from tests.builders import replaced
from tests.embedding.jobs import CLASSES, NETWORK, SIZE, overrides, pool_of, run, splits_of
from tests.labeling.jobs import label, parts, picture


def test_features_are_those_of_the_network_for_the_decoded_image(embedded: Path, weights: str, images: Path) -> None:
    config = load_config(["model=timm", f"model.architecture={NETWORK}", f"model.weights={weights}"])
    model = build_model(config.model, 3, 2).eval()
    rows = ds.dataset(embedded / "rest").to_table().to_pylist()
    assert [row["sample_id"] for row in rows] == sorted(map(str, (images / "rest").glob("*.png")))
    decoded = np.stack(
        [decode(Path(row["sample_id"]).read_bytes(), DecodeSettings(SIZE, 3, "crop", "bicubic")) for row in rows]
    )
    with torch.no_grad():
        expected = model(torch.from_numpy(decoded))[0].half().float()
    found = torch.tensor([row["features"] for row in rows])
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


def test_views_are_stored_and_a_function_of_the_seed(
    weights: str, images: Path, embedded: Path, tmp_path: Path
) -> None:
    again, other = run(weights, images / "rest", tmp_path / "a", "views=2"), tmp_path / "b"
    run(weights, images / "rest", other, "views=2", "seed=1")
    tables = [ds.dataset(place).to_table() for place in (embedded / "rest", again.output, other)]
    assert tables[0].equals(tables[1])
    for name in ("weak", "strong"):
        views = np.array(tables[0][name].to_pylist()).reshape(len(tables[0]), 2, again.num_features)
        assert not np.allclose(views[:, 0], views[:, 1])
        assert tables[0][name] != tables[2][name]
    assert tables[0]["features"].equals(tables[2]["features"])


def test_an_embedding_goes_on_with_what_is_missing(weights: str, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(weights, images / "rest", output, "views=1")
    before = parts(output)
    lost = sorted(before)[1]
    (output / lost).unlink()
    job = output / "_ledger" / "job.json"
    begun = read_tree(Storage(str(job)))
    del begun["identity"]["features"]["model"]["lora_alpha"]  # a field that an older version did not know
    write_json(Storage(str(job)), begun)
    run(weights, images / "rest", output, "views=1")
    after = parts(output)
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in before.items()}
    assert [name for name in after if after[name][0] != before[name][0]] == [lost]


def test_copies_are_found_by_the_pixels_of_the_images(weights: str, images: Path, tmp_path: Path) -> None:
    """As in images: the pool's are left out, and a test image among the labelled ones is refused."""
    folders = [tmp_path / "photos" / place for place in ("train", "rest", "test")]
    for folder in folders:
        shutil.copytree(images / folder.name, folder)
    labelled = images / "train" / "ant" / "train00.png"
    shutil.copy(labelled, folders[1] / "copy.png")
    shutil.copy(labelled, folders[2] / "ant" / "copy.png")
    for folder in folders:
        run(weights, folder, tmp_path / folder.name, *([] if folder.name == "rest" else ["labelled=true"]))
    modes = [f"data.pool.mode={mode}" for mode in ("memory", "stream")]
    for mode in modes:
        with pytest.raises(
            ValueError, match=r"^data\.test=.*/test: 1 of its 11 images are copies of labelled ones, as .*copy"
        ):
            splits_of(tmp_path, mode)
        splits = splits_of(tmp_path, "data.test=null", mode)
        assert splits.copies.num_pool == 1
        assert str(folders[1] / "copy.png") not in pool_of(splits)
        assert len(splits.unlabeled) == 40
        checked = run_checks(load_config(overrides(tmp_path, "data.test=null", mode)))
        copy = f"1 image of the pool is a copy of a labelled image, as {folders[1]}/copy.png of {folders[0]}/ant/"
        assert [copy in str(finding) for finding in checked.findings if "copy" in str(finding)] == [True] * (
            mode == modes[0]
        )
        assert checked.timing is not None
    for part in (tmp_path / "rest").glob("*.parquet"):  # of a version that kept no hashes
        pq.write_table(pq.read_table(part).drop(["pixels"]), part)
    for mode in modes:
        assert len(splits_of(tmp_path, "data.test=null", mode).unlabeled) == 41


def test_pages_show_the_images_that_features_were_made_of(embedded: Path, images: Path) -> None:
    config = settle_model(load_config(overrides(embedded)))
    labeled, rows = splits_of(embedded).labeled, np.array([1, 7])
    pictures = read_pictures(labeled, rows, config.data)
    assert pictures is not None
    for picture_, sample in zip(pictures, labeled.ids[rows], strict=True):
        assert np.array_equal(picture_, decode(Path(sample).read_bytes(), DecodeSettings(SIZE, 3, "crop", "bicubic")))
    gone = replace(labeled, ids=np.char.add(labeled.ids, ".gone"))
    assert read_pictures(gone, rows, config.data) is None
    assert class_sheets(gone, 2, config.data) == []
    answers = Predictions(labeled.targets, np.full(len(labeled), 0.5, np.float32))
    assert pictures_section(labeled, answers, CLASSES, config.data) is not None
    assert pictures_section(gone, answers, CLASSES, config.data) is None


def test_pages_show_images_of_parquet_files_too(trained: str, weights: str, images: Path, tmp_path: Path) -> None:
    """Whatever their column of images is called."""
    files = sorted((images / "train").glob("*/*.png"))
    shard, labels = tmp_path / "train.parquet", [path.parent.name for path in files]
    pq.write_table(pa.table({"img": [path.read_bytes() for path in files], "label": labels}), shard)
    run(weights, shard, tmp_path / "train", "image_column=img", "views=1", "labelled=true")
    given = ["data=features", f"data.train={tmp_path / 'train'}", "data.num_labels_per_class=2"]
    config = settle_model(load_config(given))
    splits = load_splits(config.data, seed=0)
    for part in (splits.labeled, splits.unlabeled):
        assert isinstance(part, ImageSet)
        found = read_pictures(part, np.arange(len(part)), config.data)
        assert found is not None
        for picture_, sample in zip(found, part.ids, strict=True):
            encoded = files[int(sample.removeprefix(f"{shard}:"))].read_bytes()
            assert np.array_equal(picture_, decode(encoded, DecodeSettings(SIZE, 3, "crop", "bicubic")))
    _, info = load_config_and_info(Storage(trained))
    image, sample, _ = _of_features(f"{shard}:3", None, config, info)
    assert np.array_equal(image, decode(files[3].read_bytes(), info.decode_settings(config.data)))
    assert sample == f"{shard}:3"


def test_another_network_is_refused_for_an_output_that_was_begun(weights: str, images: Path, tmp_path: Path) -> None:
    run(weights, images / "rest", tmp_path / "out")
    with pytest.raises(ValueError, match=r"^output=.*views"):
        run(weights, images / "rest", tmp_path / "out", "views=3")


def test_an_image_that_cannot_be_read_is_named_and_left_out(
    weights: str, images: Path, embedded: Path, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for index in range(4):
        picture(index).save(pool / f"{index}.png")
    (pool / "broken.png").write_bytes(b"no image")
    (pool / "notes").write_text("no image")
    console = Console(file=(told := io.StringIO()), width=200)
    result = run(weights, pool, tmp_path / "out", "max_bad_fraction=0.5", "views=2", console=console)
    assert "without features: 1 neither an image nor called one, 1 not an image" in told.getvalue()
    assert result.bad is not None
    assert "broken.png" in Path(result.bad).read_text()
    assert (result.num_rows, sum(result.unreadable.values())) == (6, 2)
    pools = f"data.unlabeled=[{embedded / 'train'},{tmp_path / 'out'}]"  # the labelled ones are not of the pool
    for mode in ("memory", "stream"):
        splits = splits_of(embedded, pools, f"data.pool.mode={mode}")
        assert sorted(pool_of(splits)) == [str(pool / f"{index}.png") for index in range(4)]
        assert [image.id for image in splits.bad] == [str(pool / "broken.png")]
        assert splits.left_out == {"without extension": 1}


def test_a_table_names_images_and_labels(weights: str, images: Path, tmp_path: Path) -> None:
    labelled = sorted((images / "train").glob("*/*.png"))
    rows = [f"{path},{path.parent.name}" for path in labelled] + [
        f"{next((images / 'rest').iterdir())},",
        "gone.png,ant",
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    fields = ("labelled=true", "max_bad_fraction=0.5")
    with pytest.raises(ValueError, match=r"^pool=.*: row 1 names .*: path leads out .*; allow_outside=true reads it"):
        run(weights, tmp_path / "labels.csv", tmp_path / "out", *fields)
    fields = (*fields, "allow_outside=true")
    result = run(weights, tmp_path / "labels.csv", tmp_path / "out", *fields)
    assert (result.num_rows, sum(result.unreadable.values())) == (14, 1)
    assert run(weights, tmp_path / "labels.csv", tmp_path / "out", *fields).num_rows == 14, "begun, it goes on"
    splits = load_splits(load_config(["data=features", f"data.train={tmp_path / 'out'}"]).data, seed=0)
    assert splits.class_names == CLASSES
    assert len(splits.unlabeled) == 1
    names = {path: CLASSES[target] for path, target in zip(splits.labeled.ids, splits.labeled.targets, strict=True)}
    assert names.items() <= {str(path): path.parent.name for path in labelled}.items()


def test_a_tar_has_images_and_labels(weights: str, images: Path, tmp_path: Path) -> None:
    files = sorted((images / "train").rglob("*.png"))
    with webdataset.TarWriter(str(tmp_path / "train.tar")) as sink:
        for file in files:
            sink.write({"__key__": file.stem, "png": file.read_bytes(), "cls": file.parent.name})
    for pool in (images / "train", tmp_path / "train.tar"):
        run(weights, pool, tmp_path / pool.name.replace(".", "_"), "labelled=true")
    of_files, of_tar = (pq.read_table(tmp_path / name).to_pylist() for name in ("train", "train_tar"))
    assert [row["sample_id"] for row in of_tar] == [f"{tmp_path}/train.tar:{file.name}" for file in files]
    assert [row | {"sample_id": ""} for row in of_tar] == [row | {"sample_id": ""} for row in of_files]


def test_features_become_the_splits_of_a_run(embedded: Path) -> None:
    splits = splits_of(embedded)
    assert splits.class_names == CLASSES
    assert (len(splits.labeled), len(splits.unlabeled), len(splits.test)) == (12, 40, 10)
    assert splits.labeled.images.dtype == np.float16
    assert splits.labeled.images.shape[1:] == (5, 1, splits.labeled.images.shape[3])
    for part in (splits.labeled, splits.test):
        assert [CLASSES[target] for target in part.targets] == [Path(sample).parent.name for sample in part.ids]


def test_images_go_into_the_checkpoint_again(trained: str, embedded: Path) -> None:
    model = load_checkpoint(trained)
    splits = splits_of(embedded)
    of_features = predict_probs(model.model, splits.test.images)
    decoded = np.stack(
        [decode(Path(sample).read_bytes(), DecodeSettings(SIZE, 3, "crop", "bicubic")) for sample in splits.test.ids]
    )
    torch.testing.assert_close(predict_probs(model.model, decoded), of_features, rtol=0, atol=5e-3)
    assert (model.channels, model.image_size, model.class_names) == (3, (SIZE, SIZE), CLASSES)


def test_a_pool_of_images_is_labelled_by_it(trained: str, images: Path, tmp_path: Path) -> None:
    result = label(trained, images / "rest", tmp_path / "labels", force=True)
    assert result.num_rows == 40


def test_it_is_evaluated_on_features_and_on_images(trained: str, embedded: Path, images: Path, tmp_path: Path) -> None:
    found = [
        evaluate(checkpoint=trained, data=str(place / "test"), output=str(tmp_path / "out"))
        for place in (embedded, images)
    ]
    assert found[0].metrics["eval/accuracy"] == found[1].metrics["eval/accuracy"]
    for place in (embedded, images):
        with pytest.raises(ValueError, match="the model was trained on 12 of its 12 images"):
            evaluate(checkpoint=trained, data=str(place / "train"))


def test_an_image_of_the_pool_is_explained_as_the_image_that_it_is(
    trained: str, embedded: Path, tmp_path: Path
) -> None:
    pool = splits_of(embedded).unlabeled
    for sample in (3, Path(str(pool.ids[3])).name):
        found = explain(trained, sample, output=tmp_path / "page.html")
        assert found.sample == str(pool.ids[3])


def test_a_run_on_features_makes_features_that_belong_to_its_own(
    trained: str, embedded: Path, images: Path, tmp_path: Path
) -> None:
    again = embed(checkpoint=trained, pool=str(images / "rest"), output=str(tmp_path / "out"), scale={"num_workers": 0})
    assert again.digest == read_spec("data.train", str(embedded / "train")).digest


def test_a_run_on_features_needs_neither_backbone_nor_features_to_be_used(trained: str, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    Path(trained).rename(moved)
    try:
        assert load_checkpoint(moved).model.training is False
    finally:
        moved.rename(trained)


def test_weights_that_the_network_of_a_checkpoint_names_are_not_looked_for(trained: str, tmp_path: Path) -> None:
    """They could be at an address of somebody else."""
    shutil.copytree(trained, tmp_path / "copy")
    spec = json.loads((tmp_path / "copy" / BACKBONE_SPEC).read_bytes())
    spec["model"]["weights"] = str(tmp_path / "none.safetensors")
    replaced(tmp_path / "copy", BACKBONE_SPEC, json.dumps(spec).encode())
    assert load_checkpoint(tmp_path / "copy").class_names == CLASSES


def test_what_does_not_belong_together_is_refused(weights: str, images: Path, embedded: Path, tmp_path: Path) -> None:
    def read(**places: Path | str) -> None:
        given = {"train": embedded / "train", "unlabeled": embedded / "rest", "test": embedded / "test"} | places
        config = load_config(["data=features", *(f"data.{field}={place}" for field, place in given.items())])
        load_splits(settle_model(config).data, seed=0)

    run(weights, images / "rest", tmp_path / "fewer", "views=1")
    run(weights, images / "rest", tmp_path / "larger", "views=2", "image_size=32")
    with pytest.raises(ValueError, match=r"^image_size: .* does not take images of 8x8 .*, as image_size=\d"):
        run(weights, images / "rest", tmp_path / "small", "image_size=8")
    with pytest.raises(ValueError, match=r"^data\.unlabeled=.*views=1, data\.train has views=2"):
        read(unlabeled=tmp_path / "fewer")
    with pytest.raises(ValueError, match=r"^data\.unlabeled=.*of another network .*embed both with one"):
        read(unlabeled=tmp_path / "larger")
    with pytest.raises(
        ValueError, match=r"^image_column=image: .*has features that dpl-ray embed wrote, and no images"
    ):
        run(weights, embedded / "rest", tmp_path / "again")
    with pytest.raises(ValueError, match=r"^data\.train=.*is no folder of features .*dpl-ray embed writes one"):
        read(train=images / "train")
    with pytest.raises(ValueError, match=r"^data\.train=.*none of its 40 images has a label"):
        read(train=embedded / "rest")
    spec = tmp_path / "fewer" / "_backbone" / "spec.json"
    spec.write_text(spec.read_text()[:50])
    with pytest.raises(ValueError, match=r"spec\.json is damaged .*embed anew"):
        read(unlabeled=tmp_path / "fewer")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["data=features"], r"^data\.train is missing"),
        (["data=digits", "model=head"], r"^model=head: data=digits has images, which take a network"),
    ],
)
def test_a_configuration_that_does_not_fit_is_answered(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(given)


def test_features_of_random_weights_are_refused() -> None:
    places = ["pool=photos", "output=features"]
    with pytest.raises(ValueError, match=r"^model\.weights is missing: features of random weights say nothing"):
        EmbedConfig.load(places)
    with pytest.raises(ValueError, match=r"^model=wide_resnet: there are no pretrained weights of it; give model=timm"):
        EmbedConfig.load([*places, "model=wide_resnet", "model.weights=w.pth"])
    named = [*places, "model.architecture=resnet18", "model.weights=w.pth"]
    assert EmbedConfig.load(named).model.name == "timm", "without another name it is the default's"


def stored(num_samples: int, num_views: int, num_features: int = 3) -> NDArray[np.float16]:
    """Features whose numbers say sample and view."""
    shape = (num_samples, 1 + 2 * num_views, 1, num_features)
    samples, views = np.arange(num_samples)[:, None, None, None], np.arange(shape[1])[None, :, None, None]
    return np.broadcast_to(10 * samples + views, shape).astype(np.float16)


@pytest.mark.parametrize("num_views", [1, 4])
def test_every_stored_view_is_drawn_and_only_those_of_its_kind(num_views: int) -> None:
    features, views = torch.from_numpy(stored(200, num_views)), ViewsConfig()
    columns = max(WEAK_UNIFORMS, num_strong_uniforms(views))
    uniforms = torch.rand(200, columns, generator=torch.Generator().manual_seed(0))
    samples = 10 * torch.arange(200)[:, None]
    for make, first in ((weak, 1), (strong, 1 + num_views)):
        drawn = make(features, uniforms, views)
        assert drawn.shape == (200, 1, 1, 3)
        assert set((drawn[:, 0, 0] - samples).flatten().tolist()) == set(range(first, first + num_views))


def test_without_stored_views_the_features_are_their_own_views() -> None:
    features, views = torch.from_numpy(stored(5, 0)), ViewsConfig()
    uniforms = torch.rand(5, num_strong_uniforms(views))
    assert torch.equal(weak(features, uniforms, views), features)
    assert torch.equal(strong(features, uniforms, views), features)


def test_a_table_that_is_not_whole_is_no_data(embedded: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    for path in (embedded / "train").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["label"]), tmp_path / "copy" / path.name)
    (tmp_path / "copy" / "_backbone").mkdir()
    for path in (embedded / "train" / "_backbone").iterdir():
        (tmp_path / "copy" / "_backbone" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"^data\.train=.*cannot be read \(.*label"):
        load_splits(
            load_config(["data=features", f"data.train={tmp_path / 'copy'}"]).data, seed=0, uses_unlabeled=False
        )


def test_image_sets_hold_images_or_features_alone() -> None:
    with pytest.raises(AssertionError):
        ImageSet(np.zeros((1, 1, 1, 3), np.float32), np.zeros(1, np.int64), np.array(["a"]))  # type: ignore[arg-type]
