"""Where the user's images lie: lists of places, variables in paths, and how folders name classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpl_ray.config.compose import load_config
from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.files.listing import list_files
from dpl_ray.data.files.location import open_location
from dpl_ray.data.formats.rows import list_pool
from dpl_ray.data.pool.windows import StreamedPool
from dpl_ray.store.paths import expand_path
from dpl_ray.store.storage import Storage
from tests.builders import write_images
from tests.data.test_class_names import write_class
from tests.data.test_sources import all_labels, fails, load, write_folder


def pool_ids(*places: object, mode: str = "memory", **fields: Any) -> list[str]:
    """Ids of the pool of these places."""
    unlabeled = tuple(map(str, places)) if len(places) > 1 else str(places[0])
    given = {"unlabeled": unlabeled, "pool": {"mode": mode}, "image_size": 4, "allow_overlap": True} | fields
    pool = load(uses_unlabeled=True, **given).unlabeled
    if isinstance(pool, ImageSet):
        return [str(sample_id) for sample_id in pool.ids]
    assert isinstance(pool, StreamedPool)
    return [row[0] for part in pool.parts for row in part.read_all()]


# Lists


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_a_pool_of_several_places_has_every_file_once(tmp_path: Path, mode: str) -> None:
    """In the order of the paths, whatever the order of the list and however often a file is met."""
    train = write_folder(tmp_path / "train")
    write_class(tmp_path / "a", range(3))
    write_class(tmp_path / "b" / "deep", range(10, 12))
    write_images(tmp_path / "c.parquet", range(2))
    (tmp_path / "link").symlink_to("b")
    a, deep = tmp_path / "a", tmp_path / "b" / "deep"
    expected = [f"{a}/{n}.png" for n in range(3)] + [f"{deep}/{n}.png" for n in (10, 11)]
    expected += [f"{tmp_path}/c.parquet:{row}" for row in range(2)]
    places = (a / "*.png", a, tmp_path / "b", deep / "10.png", tmp_path / "link", tmp_path / "c.parquet")
    assert pool_ids(*places, mode=mode, train=train) == expected
    assert pool_ids(*places[::-1], mode=mode, train=train) == expected
    assert pool_ids(a / "0.png", train / "ant", a / "2.png", train=train) == [expected[0], expected[2]]


def test_what_several_places_leave_out_is_counted_once(tmp_path: Path) -> None:
    for name in ("a", "a/b", "c"):
        write_class(tmp_path / name, range(1))
        (tmp_path / name / "notes.txt").write_text("no image")
    listing = list_files(open_location("pool", [str(tmp_path / name) for name in ("c", "a/b", "a", "a")]))
    assert listing.left_out == {".txt": 3}
    assert len(listing.paths) == len(listing.sizes) == 3


def test_a_path_beside_a_parquet_file_is_below_the_place_that_has_the_file(tmp_path: Path) -> None:
    location = open_location("pool", [str(tmp_path / "a"), str(tmp_path / "b" / "*.parquet")])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_images(tmp_path / name / "1.parquet", range(2))
    files = list_pool(location, image_column="image")
    assert [location.root_of(path.as_py()) for path in files.paths] == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_a_list_that_is_wrong_names_the_place(tmp_path: Path) -> None:
    train = str(write_folder(tmp_path / "train"))
    fields: dict[str, Any] = {"train": train, "uses_unlabeled": True}
    fails(r"data.unlabeled=\[\]: is empty; give a path", unlabeled=(), **fields)
    fails(r"^data.unlabeled=.*/poll: there is no such", unlabeled=(train, f"{tmp_path}/poll"), **fields)
    fails(r"^data.unlabeled=\[.*,.*\]: there is no unlabelled image", unlabeled=(f"{train}/ant", train), **fields)


def test_lists_are_read_from_the_command_line() -> None:
    data = load_config(["data=image_folder", "data.train=x", "data.unlabeled=[a/*.png,~/b,$HOME/c]"]).data
    assert data.unlabeled == ("a/*.png", "~/b", "$HOME/c")


# Variables


def test_home_and_variables_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PHOTOS", "my photos")
    write_folder(tmp_path / "my photos" / "train")
    expected = load(train=tmp_path / "my photos" / "train").fingerprint()
    for given in ("~/$PHOTOS/train", "$HOME/${PHOTOS}/train", "file://$HOME/my photos/train"):
        config = load_config(["data=image_folder", f"data.train='{given}'", "data.channels=1", "data.image_size=null"])
        assert config.data.train == given, "written down as it was given"
        assert load(train=config.data.train).fingerprint() == expected
    assert Storage("~/$PHOTOS/runs").path == f"{tmp_path}/my photos/runs"
    assert Storage("file://$HOME/x").path == f"{tmp_path}/x"


def test_a_name_with_a_dollar_or_a_tilde_stays_where_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("~", "cash$HOME", "${PRICE}"):
        write_folder(tmp_path / name / "train")
        assert len(load(train=f"{name}/train/*/*.png").labeled) == 24
        assert Storage(f"{name}/new").path == f"{tmp_path}/{name}/new"
    assert expand_path("a/~/5$/$1.png") == "a/~/5$/$1.png"


def test_a_variable_that_is_not_set_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PHOTOS", raising=False)
    for given in ("$PHOTOS/train", "${PHOTOS}x/train", "s3://$PHOTOS/train"):
        fails(r"^data.train=.*: the environment variable PHOTOS is not set; set it", train=given)
        with pytest.raises(ValueError, match=r"\$.*: the environment variable PHOTOS is not set"):
            Storage(given)
    with pytest.raises(ValueError, match=r"^data.root=~nobody-here/x: there is no user nobody-here; write"):
        expand_path("~nobody-here/x", "data.root=~nobody-here/x")


# Classes


def nested(tmp_path: Path) -> Path:
    """Of the years 1 and 2, with the same classes in both."""
    for year, classes in (("1", ("ant", "bee")), ("2", ("ant", "bee", "small/cat"))):
        for number, name in enumerate(classes):
            write_class(tmp_path / "photos" / year / name, [20 * int(year) + 5 * number + n for n in range(5)])
    return tmp_path / "photos"


def test_the_last_folder_or_the_whole_path_may_name_the_class(tmp_path: Path) -> None:
    photos = nested(tmp_path)
    splits = load(train=photos, classes_by="leaf")
    assert splits.class_names == ("ant", "bee", "cat")
    names = {value: splits.class_names[target] for value, target in all_labels(splits).items()}
    assert names == {
        20 * year + 5 * number + n: name
        for year in (1, 2)
        for number, name in enumerate(("ant", "bee", "cat")[: year + 1])
        for n in range(5)
    }
    by_path = ("1/ant", "1/bee", "2/ant", "2/bee", "2/small/cat")
    assert load(train=photos, classes_by="path").class_names == by_path
    assert load(train=photos / "**" / "*.png", classes_by="path").class_names == by_path
    assert load(train=photos / "**" / "*.png").class_names == ("ant", "bee", "cat")
    splits = load(train=photos / "2", classes_by="leaf", test=photos / "1" / "**" / "*.png")
    assert sorted(splits.test.targets) == [0] * 5 + [1] * 5


def test_folders_below_those_of_the_classes_are_told(tmp_path: Path) -> None:
    photos = nested(tmp_path)
    hint = r"25 images lie in folders below .*, as 1/ant/20.png, and are of the class 1; data.classes_by=leaf makes "
    with pytest.warns(UserWarning, match=rf"^data.train=.*/photos: {hint}that ant, data.classes_by=path 1/ant$"):
        assert load(train=photos).class_names == ("1", "2")
    (photos / "1").rename(tmp_path / "1")
    fails(r"15 images lie in folders below .*, as 2/ant/40.png, and are of the class 2; .*leaf", train=photos)


def test_parts_of_a_data_set_are_no_classes(tmp_path: Path) -> None:
    photos = tmp_path / "my photos"
    for part in ("Labelled", "rest", "test"):
        write_class(photos / part, range(8))
    for hidden in ((), ("test",)):
        for name in hidden:
            (photos / name).rename(photos / f"_{name}")
        test = "" if hidden else f" 'data.test={photos}/test'"
        command = f"'data.train={photos}/Labelled' 'data.unlabeled={photos}/rest'{test} "
        fails(rf"called as parts of a data set, not as classes; give {command}\(or list them in", train=photos)
    load(train=photos, class_names=("Labelled", "rest"))
    write_class(tmp_path / "vehicles" / "train", range(8))
    write_class(tmp_path / "vehicles" / "bus", range(10, 18))
    assert load(train=tmp_path / "vehicles").class_names == ("bus", "train")


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_a_link_that_leads_nowhere_is_counted(tmp_path: Path, mode: str) -> None:
    train = write_folder(tmp_path / "train")
    write_class(tmp_path / "pool", range(200, 203))
    for folder in (tmp_path / "pool", train / "ant"):
        (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    splits = load(train=train, unlabeled=tmp_path / "pool", pool={"mode": mode}, image_size=4, uses_unlabeled=True)
    assert splits.left_out == {"broken link": 2}
