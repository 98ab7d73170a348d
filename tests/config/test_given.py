"""What the functions of Python take in place of a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpl_ray import CompareConfig, LabelConfig, compare, fit, label_pool, search, self_train
from dpl_ray.config.compose import load_config
from dpl_ray.config.given import read_given, read_study
from dpl_ray.studies.comparison.config import load_comparison
from dpl_ray.studies.self_training.config import load_self_training
from dpl_ray.studies.tuning.config import load_search


@pytest.mark.parametrize(
    ("keywords", "overrides"),
    [
        ({"data": "fashion_mnist", "policy": "fixmatch"}, ["data=fashion_mnist", "policy=fixmatch"]),
        ({"policy": {"threshold": 0.9, "name": "fixmatch"}}, ["policy=fixmatch", "policy.threshold=0.9"]),
        ({"train": {"num_steps": 30, "baseline": False, "curve_every": None}},
         ["train.num_steps=30", "train.baseline=false", "train.curve_every=null"]),
        ({"data": {"views": {"exclude": ("rotate", "solarize"), "cutout": 1e-3}}},
         ["data.views.exclude=[rotate,solarize]", "data.views.cutout=0.001"]),
        ({"run": {"name": "12"}}, ["run.name=12"]),
    ],
)  # fmt: skip
def test_keywords_say_what_overrides_say(keywords: dict[str, Any], overrides: list[str]) -> None:
    expected = load_config(["train.mu=3", *overrides])
    assert read_given(["train.mu=3"], keywords, load_config) == expected
    config = read_given(["train.mu=3", *overrides[:1]], {}, load_config)
    assert read_given(config, {}, load_config) is config
    if "policy" not in keywords:
        assert read_given(load_config(["train.mu=3"]), keywords, load_config) == expected
    assert config == read_given(config, {"train": {"mu": 3}}, load_config)


@pytest.mark.parametrize("text", ["a b", 'it\'s [1], {2}: "x"', "back\\slash\\", "null", "1.0", "=", "a,b", ""])
def test_a_text_may_have_any_signs(text: str) -> None:
    keywords = {"data": {"name": "image_folder", "train": "x", "unlabeled": text, "class_names": [text, "other"]}}
    data = read_given((), keywords, load_config).data
    assert (data.unlabeled, data.class_names) == (text, (text, "other"))
    given = {"checkpoint": text + "x", "pool": Path("y"), "output": "z", "run": {"storage_path": text + "x"}}
    found = read_given((), given, LabelConfig.load, LabelConfig)
    assert (found.checkpoint, found.pool, found.run.storage_path) == (text + "x", "y", text + "x")
    assert read_given(found, {"batch_size": 3}, LabelConfig.load, LabelConfig) == found.changed(batch_size=3)


def test_studies_take_their_own_fields_too() -> None:
    config, options = read_study((), {"policies": ["dpl(rule=band)", "fixmatch"], "seeds": 2}, load_comparison, None)
    assert (config, options) == load_comparison(["policies=[dpl(rule=band),fixmatch]", "seeds=2"])
    assert read_study(config, {}, load_comparison, options) == (config, options)
    found = read_study(config, {"tune": "asha", "space": {"train.mu": {"choice": [3, 7]}}}, load_search, None)
    assert found == (config, load_search(["tune=asha", "space.train.mu={choice:[3,7]}"])[1])
    given = {"data": {"name": "parquet", "train": "x", "unlabeled": "y"}, "min_change": 0.1, "checkpoint": "my runs/a"}
    options = read_study((), given, load_self_training, None)[1]
    assert (options.min_change, options.checkpoint) == (0.1, "my runs/a")
    with pytest.raises(ValueError, match=r"^options: fields of CompareConfig are given beside it"):
        compare((), CompareConfig(subsets=3), policies=["dpl"])


@pytest.mark.parametrize("function", [fit, compare, search, self_train, label_pool])
@pytest.mark.parametrize("given", ["data=digits", {"data": "digits"}, [1], 3])
def test_what_is_no_configuration_is_told_what_is_one(function: Any, given: Any) -> None:
    named = "'data=digits'" if given == "data=digits" else f"a value of type {type(given).__name__}"
    with pytest.raises(ValueError, match=rf"^{named} is no configuration; give a \w*Config, overrides in") as error:
        function(given)
    assert "\n" not in str(error.value)


def test_mistakes_in_keywords_are_answered_as_on_the_command_line() -> None:
    for keywords, message in (
        ({"data": "cifar11"}, "data=cifar11: there is no such data; .* did you mean cifar10"),
        ({"train": {"num_step": 3}}, "there is no field train.num_step; did you mean train.num_steps"),
        ({"consol": True}, "consol=true: there is no field consol"),
        ({"train": 3}, "train=3: train is a section; set its fields"),
    ):
        with pytest.raises(ValueError, match=message):
            read_given((), keywords, load_config)
    with pytest.raises(ValueError, match="policy=dpl: the configuration that is given has chosen every group"):
        fit(load_config(), policy="dpl")
    with pytest.raises(ValueError, match=r"config=x\.yaml: a Config is given already"):
        load_config(["config=x.yaml"], load_config())
