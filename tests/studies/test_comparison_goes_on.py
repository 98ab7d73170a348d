"""What may be added to a comparison that was begun before, and what is refused because it would not be comparable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpl_ray import CompareConfig, compare
from dpl_ray.data.dataset import Splits
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.store.records import read_tree, write_json
from dpl_ray.store.storage import Storage
from dpl_ray.studies.comparison.cells import Cell, read_cells, run_cell
from dpl_ray.studies.comparison.config import load_comparison
from dpl_ray.studies.comparison.folder import write_comparison
from dpl_ray.studies.comparison.job import Comparison
from tests.mistakes import png, write, write_folder, write_pool
from tests.studies.test_comparison import FIXED, SMALL, TWO, config_for, run


def folder_of_images(root: Path) -> tuple[str, ...]:
    """Three classes and a pool of their own, and the fields that read them."""
    write_folder(root / "train")
    write_pool(root / "pool")
    paths = (f"data.train={root}/train", f"data.unlabeled={root}/pool")
    return ("data=image_folder", *paths, "data.image_size=8", "data.num_labels_per_class=2")


def test_seeds_are_not_added_to_cells_of_other_data(tmp_path: Path) -> None:
    fields = folder_of_images(tmp_path / "images")
    run(tmp_path, *fields, options=TWO.model_copy(update={"subsets": 1}))
    write(tmp_path / "images" / "pool" / "0.png", png(7))
    with pytest.raises(ValueError, match=r"run\.name=first: the cells of other subsets than 1 were trained on other"):
        run(tmp_path, *fields)
    assert not list((tmp_path / "first").glob("*-seed-1")), "before any cell starts"


def test_a_policy_whose_defaults_have_changed_is_not_added_to_its_older_cells(tmp_path: Path) -> None:
    config, splits = config_for(tmp_path), load_splits(config_for(tmp_path).data, seed=0)
    for seed, threshold in ((0, 0.5), (1, 0.95)):
        cell = Cell("fixmatch", {"name": "fixmatch", "threshold": threshold}, seed)
        run_cell(config, cell, splits, str(tmp_path / "first"))
    message = r"run\.name=first: fixmatch has threshold=0\.5 with seed 0 and threshold=0\.95 with seed \d"
    with pytest.raises(ValueError, match=message):
        write_comparison(str(tmp_path / "first"), "fixmatch")
    (tmp_path / "first" / "fixmatch-seed-1" / "cell.json").unlink()
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "train.seed=2", options=CompareConfig(policies=("fixmatch",), subsets=1))
    assert not (tmp_path / "first" / "fixmatch-seed-2").exists(), "before any cell starts"


def test_a_comparison_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """One whose fields and facts were fewer, and one of a newer version, which has more."""
    first, _ = run(tmp_path)
    folder = tmp_path / "first"
    info = read_tree(Storage(str(folder / "comparison.json")))
    del info["config"]["train"]["lambda_u"], info["config"]["data"]["views"]["cutout"]
    write_json(Storage(str(folder / "comparison.json")), info)
    for cell in folder.glob("*-seed-*/cell.json"):
        tree = read_tree(Storage(str(cell)))
        if tree["seed"]:
            del tree["facts"]["data.num_test"], tree["facts"]["commit"], tree["facts"]["version.torch"]
            del tree["policy"]["ema_decay" if tree["label"] == "dpl" else "threshold"]
        write_json(Storage(str(cell)), tree | {"new": 1})
    config = folder / "dpl-seed-0" / "config.yaml"
    kept = [line for line in config.open() if not line.startswith("#") and "curve_images" not in line]
    config.write_text("".join(kept))
    more, output = run(tmp_path, options=TWO.model_copy(update={"policies": ("dpl", "fixmatch", "supervised")}))
    assert "goes on, 4 of them finished before" in output
    assert [row for row in more.rows if row.label != "supervised"] == first.rows
    assert ", unknown" in Path(first.table).read_text().partition("- versions: ")[2]
    with pytest.raises(ValueError, match=r"this comparison exists with train\.lambda_u=1\.0, now it is 2\.0"):
        run(tmp_path, "train.lambda_u=2")


def test_repeats_are_added_to_a_comparison_that_knew_seeds_alone(tmp_path: Path) -> None:
    """An older version kept no subset: it is the seed, or data.subset_seed, which then all seeds share."""
    one = CompareConfig(policies=("fixmatch",), subsets=1)
    run(tmp_path / "each", options=one)
    run(tmp_path / "shared", "data.subset_seed=5", options=one)
    for file in tmp_path.glob("*/first/*/cell.json"):
        tree = read_tree(Storage(str(file)))
        del tree["subset"]
        write_json(Storage(str(file)), tree)
    assert [cell.key for cell in read_cells(str(tmp_path / "shared" / "first"))] == [(5, 0)]
    _, output = run(tmp_path / "each", options=one.model_copy(update={"repeats": 2}))
    assert "goes on, 1 of them finished before: 1 policies (fixmatch) x 1 subset x 2 repeats, 2 cells" in output
    cells = read_cells(str(tmp_path / "each" / "first"))
    assert [cell.key for cell in cells] == [(0, 0), (0, 1000)]
    assert len({cell.facts["data.fingerprint"] for cell in cells}) == 1, "one labelled subset"
    with pytest.raises(ValueError, match="with seed 1000 was trained on the labelled subset 0, now it is 1000; take"):
        run(tmp_path / "each", "train.seed=1000", options=one)


def test_a_policy_that_uses_the_pool_can_be_added_to_one_that_does_not(tmp_path: Path) -> None:
    fields = folder_of_images(tmp_path / "images")
    one = CompareConfig(policies=("supervised",), subsets=1, reference="supervised")
    run(tmp_path, *fields, options=one)
    more, _ = run(tmp_path, *fields, options=one.model_copy(update={"policies": ("supervised", "fixmatch")}))
    assert (len(more.rows), more.failed) == (2, {})


def test_what_was_made_of_the_pool_is_in_table_and_csv(tmp_path: Path) -> None:
    config, _ = load_comparison(["data.pool.foreign=0.6", *FIXED, *SMALL, f"run.storage_path={tmp_path}"])
    result = compare(config.changed(scale={"num_workers": 0}), CompareConfig(policies=("fixmatch",), subsets=2))
    made = "foreign classes 4, 5, 6, 7, 8, 9, out of labels and test: 838 of 1,398 images"
    assert f"- pool made for a benchmark: {made}\n" in result.markdown
    assert Path(result.csv).read_text().count(f'"{made}"') == 2
    assert result.failed == {}, "the second subset has other labels of the same data"


def test_data_that_cannot_be_had_for_a_later_seed_fail_its_cells_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(*arguments: Any, seed: int, **keywords: Any) -> Splits:
        if seed == 1:
            raise ValueError("data.train=/x: there is no such folder")
        return load_splits(*arguments, seed=seed, **keywords)

    monkeypatch.setattr("dpl_ray.studies.comparison.job.load_splits", reading)
    result, _ = run(tmp_path, options=TWO.model_copy(update={"subsets": 3}))
    cause = "ValueError: data.train=/x: there is no such folder"
    assert result.failed == {"dpl-seed-1": cause, "fixmatch-seed-1": cause}
    assert {row.seeds for row in result.rows} == {(0, 2)}


def test_the_error_of_a_cell_whose_success_was_not_heard_of_goes(tmp_path: Path) -> None:
    one = CompareConfig(policies=("fixmatch",), subsets=1)
    run(tmp_path, options=one)
    error = write(tmp_path / "first" / "fixmatch-seed-0" / "error.txt", b"the node is gone")
    run(tmp_path, options=one)
    assert not error.exists()


def test_a_batch_of_two_images_does_for_a_cell_whatever_the_workers(tmp_path: Path) -> None:
    fields = (*folder_of_images(tmp_path / "images"), "data.image_size=4")  # one pixel is left for BatchNorm
    config = config_for(tmp_path, *fields, "scale.num_workers=2", "train.batch_size=2")
    study = Comparison(config, TWO)
    assert len(study.load(study.missing[0]).labeled) == 6
