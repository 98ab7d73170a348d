"""The configuration: conf/, overrides, validation, and the text that a run is saved with."""

from __future__ import annotations

import copy
import re
import typing
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from pydantic import ValidationError

from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.config.compose import load_config
from dpl_ray.config.describe import default_options, describe_fields, describe_policies, list_groups, option_values
from dpl_ray.config.parse import parse_config, parse_policy, to_yaml
from dpl_ray.config.schema import Config, DataConfig, DataName, OperationName
from dpl_ray.config.section import LONGEST, Section, suggest, validated
from dpl_ray.data.batches.operations import OPERATIONS

RECORDED = Path(__file__).parents[1] / "recorded" / "storage"
OPTIONS = [(group, option) for group, options in list_groups().items() for option in options]


def needed(group: str, option: str) -> list[str]:
    """What an option cannot do without."""
    if (group, option) == ("model", "head"):
        return ["data=features", "data.train=somewhere"]
    own = ("image_folder", "parquet", "webdataset", "features")
    return ["data.train=somewhere"] if group == "data" and option in own else []


def field_at(config: Config, field: str) -> Any:
    value: Any = config
    for part in field.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def test_defaults_are_valid() -> None:
    assert parse_config({}) == Config()


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes(group: str, option: str) -> None:
    config = load_config([f"{group}={option}", *needed(group, option)])
    assert field_at(config, "scale.cpus_per_worker" if group == "scale" else f"{group}.name") is not None
    for field, value in option_values(group, option).items():
        assert yaml.safe_load(value) == field_at(config, field), "the recipe is what --help says it sets"
    assert parse_config(yaml.safe_load(to_yaml(config))) == config


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_says_what_it_is(group: str, option: str) -> None:
    assert list_groups()[group][option].strip()


def test_default_options() -> None:
    assert default_options().keys() == list_groups().keys()
    config = load_config()
    assert config == load_config([f"{group}={option}" for group, option in default_options().items()])
    assert (config.data.name, config.policy.name, config.scale.num_workers) == ("digits", "dpl", None)


def test_names_agree_with_the_files_and_the_code() -> None:
    groups = list_groups()
    assert set(groups["data"]) == set(typing.get_args(DataName))
    assert set(groups["policy"]) == set(POLICIES)
    assert typing.get_args(OperationName) == tuple(OPERATIONS)
    assert {name for name, policy in POLICIES.items() if not policy.uses_unlabeled} == {"supervised"}


@pytest.mark.parametrize(
    ("overrides", "field", "value"),
    [
        (["train.num_steps=9", "data=digits"], "train.num_steps", 9),
        (["data.channels=3"], "data.channels", 3),
        (["data.views.horizontal_flip=true"], "data.views.horizontal_flip", True),
        (["model=wide_resnet", "data=fashion_mnist"], "model.depth", 16),
        (["model.depth=22", "data=fashion_mnist"], "model.depth", 22),
        (["data=image_folder", "data.train=/a b/*.png", "data.image_size=null"], "data.image_size", None),
        (["data=image_folder", "data.train=/a b/*.png"], "data.train", "/a b/*.png"),
        (["policy=fixmatch", "policy.threshold=0.8"], "policy.threshold", 0.8),
        (["data.views={cutout: 0.25, num_operations: 1}"], "data.views.cutout", 0.25),
        (["data=parquet", "data.train=x", "data.class_names=[0,1]"], "data.class_names", ("0", "1")),
        (["run.name=12"], "run.name", "12"),
        (["run.name=1e3"], "run.name", "1e3"),
        (["run.name=2024_11"], "run.name", "2024_11"),
        (["data=parquet", "data.train=1.50"], "data.train", "1.50"),
        (
            ["data=parquet", "data.train=x", "data.unlabeled=[2024_10, x/1e3,true]"],
            "data.unlabeled",
            ("2024_10", "x/1e3", "true"),
        ),
        (["scale.num_workers=[1,4]"], "scale.num_workers", (1, 4)),
        (["data.views.exclude=[rotate,equalize]"], "data.views.exclude", ("rotate", "equalize")),
        (["++train.seed=3"], "train.seed", 3),
        (["train.seed=1", "train.seed=2"], "train.seed", 2),
    ],
)
def test_overrides_win_over_recipes(overrides: list[str], field: str, value: Any) -> None:
    assert field_at(load_config(overrides), field) == value


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"trian": {}}, "trian={}: there is no such field; known: data, model, .*; did you mean train"),
        ({"train": {"batchsize": 4}}, "train.batchsize=4: there is no such field; .*; did you mean batch_size"),
        ({"data": {"views": {"cut_out": 1}}}, "data.views.cut_out=1: .*; did you mean cutout"),
        ({"train": {"seed": -1}}, "train.seed=-1: must be greater than or equal to 0"),
        ({"train": {"lambda_u": float("nan")}}, "train.lambda_u=nan: must be a finite number"),
        ({"train": 3}, "train=3: must be a section of fields"),
        ({"data": {"class_names": "ant"}}, r"data.class_names=ant: must be a list, as data.class_names=\[ant\]"),
        ({"data": {"views": {"exclude": list(OPERATIONS)}}}, "data.views.exclude: leaves no operation"),
        ({"policy": {}}, "policy.name is missing: choose one with policy=NAME"),
        ({"policy": None}, "policy=null: must be a section of fields"),
    ],
)
def test_mistakes_in_a_tree(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_config(tree)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [15, 1])
def test_a_batch_must_divide_by_the_workers(size: int) -> None:
    with pytest.raises(ValueError, match=f"train.batch_size={size}: .* scale.num_workers=2; .* would"):
        parse_config({"train": {"batch_size": size}, "scale": {"num_workers": 2}})
    for workers in (None, 0, 1):
        assert parse_config({"train": {"batch_size": size}, "scale": {"num_workers": workers}})


def test_the_workers_may_be_a_range() -> None:
    config = load_config(["scale.num_workers=[1,4]"])
    assert (config.scale.num_workers, config.scale.worker_range) == ((1, 4), (1, 4))
    assert parse_config(yaml.safe_load(to_yaml(config))) == config
    assert [parse_config({"scale": {"num_workers": n}}).scale.worker_range for n in (None, 2)] == [(0, 0), (2, 2)]
    kinds = {field: kind for field, kind, _, _ in describe_fields()}
    assert kinds["scale.num_workers"] == "int|list|null"
    for given in ("[4,1]", "[0,4]", "[1]", "[1,5000]", "[1,two]"):
        message = f"scale.num_workers={given}: a range is [min,max] with 1 <= min <= max <= 4096"
        with pytest.raises(ValueError, match=re.escape(message)):
            load_config([f"scale.num_workers={given}"])
    message = "^train.batch_size=16: .* both ends of scale.num_workers=\\[2,3\\]; 12 or 18 would, or other workers"
    with pytest.raises(ValueError, match=message):
        load_config(["scale.num_workers=[2,3]"])


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"name": "dlp"}, r"policy.name=dlp: .* did you mean dpl\?"),
        ({"name": None}, "policy.name=None: there is no such policy"),
        ({"name": ["dpl"]}, r"policy.name=\['dpl'\]: there is no such policy"),
        ({"name": "dpl", "epsilom": 1}, r"policy.epsilom=1: there is no such field; .* did you mean epsilon\?"),
        ({"name": "fixmatch", "threshold": "x"}, "policy.threshold=x: must be a number"),
        ({"name": "fixmatch", "threshold": 2}, "policy.threshold=2: must be less than or equal to 1"),
        ({"name": "dpl", "cut": "owm"}, "policy.cut=owm: must be 'confidence', 'own' or 'none'; did you mean own"),
    ],
)
def test_mistakes_in_a_policy(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_policy(policy)
    assert "\n" not in str(error.value)


def test_every_field_is_described() -> None:
    rows = {field: (kind, default, meaning) for field, kind, default, meaning in describe_fields()}

    def check(section: type[Section], prefix: str) -> int:
        count = 0
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                assert field.description
                count += check(field.annotation, f"{prefix}{name}.")
            elif prefix + name != "policy":
                kind, default, meaning = rows[prefix + name]
                assert not {"Optional", "Union", ""} & set(kind.split("|"))
                assert meaning.strip()
                value = yaml.safe_load(default)
                assert (tuple(value) if isinstance(value, list) else value) == field.default
                count += 1
        return count

    assert check(Config, "") == len(rows)
    for parameters in describe_policies().values():
        assert all(meaning.strip() for _, _, _, meaning in parameters)


def test_sections_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().train.seed = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"^image_size=2: must be greater than or equal to 4 \(side in"):
        validated(DataConfig, {"image_size": 2})


def test_suggestions() -> None:
    assert suggest("batch_sise", ["batch_size", "mu"]) == "; did you mean batch_size?"
    assert suggest("colour", ["batch_size", "mu"]) == ""


def test_loading_again_gives_the_same_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = load_config(["data=cifar10", "policy=fixmatch"])
    load_config(["train.seed=5"])
    with pytest.raises(ValueError, match="no such data"):
        load_config(["data=none"])
    assert load_config(["data=cifar10", "policy=fixmatch"]) == first
    assert list(tmp_path.iterdir()) == []
    assert Path.cwd() == tmp_path


def test_a_host_programs_hydra_is_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "host.yaml").write_text("defaults: [of_the_host, _self_]\nb: 2\n")
    store = ConfigStore.instance()
    store.store(name="of_the_host", node={"a": 1})
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        kept = copy.deepcopy(store.repo)
        load_config(["data=cifar10", "policy=fixmatch"])
        with pytest.raises(ValueError, match="no such data"):
            load_config(["data=none"])
        assert store.repo == kept
        assert hydra.compose("host") == {"a": 1, "b": 2}
    assert not GlobalHydra.instance().is_initialized()
    del store.repo["of_the_host.yaml"]


@pytest.mark.parametrize("field", [row[0] for row in describe_fields()])
def test_a_field_that_an_older_file_lacks_has_its_default(field: str, tmp_path: Path) -> None:
    tree = yaml.safe_load((RECORDED / "run" / "config.yaml").read_text())
    *path, name = field.split(".")
    section = tree
    for part in path:
        section = section[part]
    section.pop(name, None)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert field_at(load_config([f"config={tmp_path}/config.yaml"]), field) == field_at(Config(), field)


@pytest.mark.parametrize(
    "text",
    [
        "train.seed=" + "a" * 40_000,
        "a" * 40_000,
        "a" * 40_000 + "=1",
        "policy=" + "d" * 40_000,
        "train.seed=[" + "1," * 20_000 + "1]",
        "train={" + ",".join(f"k{number}:1" for number in range(5_000)) + "}",
        "data.class_names=[" + "[" * 3_000 + "]" * 3_000 + "]",
        "train.seed=" + "${" * 20_000,
    ],
    ids=lambda text: text[:12] + text[-4:],
)
def test_what_is_long_is_answered_in_short(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And at once: nothing that takes the square of its length, nor Hydra's grammar, sees it."""
    compared = []
    monkeypatch.setattr("difflib.get_close_matches", lambda word, *_, **__: compared.append(len(word)) or [])
    with pytest.raises(ValueError, match=text[:5].replace("[", r"\[")) as error:
        load_config([text])
    assert len(str(error.value)) <= LONGEST
    assert max(compared, default=0) <= 100
