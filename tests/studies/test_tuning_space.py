"""The space of a search: what is drawn lies in it, what is wrong with it is said before anything starts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dpl_ray.config.compose import load_config
from dpl_ray.config.describe import CONF_FOLDER, describe_fields, list_groups
from dpl_ray.studies.tuning.space import FIXED_FIELDS, KINDS, Domain, check_space, draw_values, parse_space, with_values

DPL, FIXMATCH = load_config(["data=digits"]), load_config(["data=digits", "policy=fixmatch"])
FINITE = st.floats(-1e6, 1e6).map(lambda number: round(number, 6))
SCALARS = st.one_of(st.integers(-9, 9), st.text("abc", min_size=1, max_size=3), st.none())


def ordered(numbers: Any) -> Any:
    return st.lists(numbers, min_size=2, max_size=2, unique=True).map(sorted)


FORMS = st.one_of(
    st.lists(SCALARS, min_size=1, max_size=4, unique=True).map(lambda values: {"choice": values}),
    ordered(FINITE).map(lambda bounds: {"uniform": bounds}),
    ordered(st.floats(1e-6, 1e6)).map(lambda bounds: {"loguniform": bounds}),
    ordered(st.integers(-50, 50)).map(lambda bounds: {"randint": bounds}),
)
NAMES = st.lists(
    st.sampled_from(["train.mu", "train.lambda_u", "optim.momentum", "policy.cut"]), min_size=1, unique=True
)


def inside(value: Any, domain: Domain) -> bool:
    if domain.kind == "choice":
        return any(value is choice or (type(value) is type(choice) and value == choice) for choice in domain.values)
    low, high = domain.values
    return low <= value <= high and isinstance(value, int if domain.kind == "randint" else float)


@given(form=FORMS, seed=st.integers(0, 99), number=st.integers(0, 99))
def test_what_is_drawn_lies_in_the_domain(form: dict[str, Any], seed: int, number: int) -> None:
    space = parse_space({"train": {"mu": form}})
    value = draw_values(space, seed, number)["train.mu"]
    assert inside(value, space["train.mu"])
    assert all(inside(probe, space["train.mu"]) for probe in space["train.mu"].probes())


@given(fields=NAMES, forms=st.lists(FORMS, min_size=4, max_size=4))
def test_nested_and_dotted_fields_are_the_same(fields: list[str], forms: list[dict[str, Any]]) -> None:
    dotted = dict(zip(fields, forms, strict=False))
    nested: dict[str, Any] = {}
    for field, form in dotted.items():
        section, _, name = field.partition(".")
        nested.setdefault(section, {})[name] = form
    assert parse_space(dotted) == parse_space(nested)
    assert list(parse_space(dotted)) == sorted(fields)


@given(seed=st.integers(0, 99), number=st.integers(0, 99))
def test_a_draw_is_a_function_of_seed_and_number(seed: int, number: int) -> None:
    space = parse_space({"optim.learning_rate": {"loguniform": [0.001, 1]}, "train.mu": {"randint": [1, 1000]}})
    first = draw_values(space, seed, number)
    assert first == draw_values(space, seed, number)
    assert first != draw_values(space, seed, number + 1)
    assert first != draw_values(space, seed + 1, number)


def test_draws_are_spread_as_the_domain_says() -> None:
    def drawn(form: dict[str, Any]) -> list[Any]:
        space = parse_space({"train.mu": form})
        return [draw_values(space, 0, number)["train.mu"] for number in range(400)]

    assert set(drawn({"choice": [1, 2, 3]})) == {1, 2, 3}
    assert set(drawn({"randint": [1, 3]})) == {1, 2, 3}, "both ends are included"
    assert 0.4 < np.mean(drawn({"uniform": [0, 1]})) < 0.6
    assert math.log(0.05) < np.mean(np.log(drawn({"loguniform": [0.01, 1]}))) < math.log(0.2)


def test_a_field_that_is_null_is_left_out() -> None:
    assert list(parse_space({"train": {"mu": {"choice": [1]}, "lambda_u": None}})) == ["train.mu"]


@pytest.mark.parametrize("option", list_groups(["space"])["space"])
def test_the_spaces_of_conf_fit(option: str) -> None:
    space = parse_space(OmegaConf.to_container(OmegaConf.load(CONF_FOLDER / "space" / f"{option}.yaml")))
    check_space(space, DPL)
    if option != "schedules":
        check_space(space, FIXMATCH)


def test_values_are_set_and_all_else_stays() -> None:
    changed = with_values(DPL, {"train.mu": 3, "policy.cut": "own", "optim.learning_rate": 0.1})
    assert (changed.train.mu, changed.policy.cut, changed.optim.learning_rate) == (3, "own", 0.1)
    assert with_values(changed, {"train.mu": 7, "policy.cut": "confidence", "optim.learning_rate": 0.03}) == DPL


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "space: has no field to search over"),
        ({"train": {"mu": None}}, "space: has no field to search over"),
        ([1], r"space=\[1\]: must be fields"),
        ({"train": {"mu": 3}}, r"space\.train\.mu=3: must be \{choice:"),
        ({"train": {"mu": {"chioce": [3]}}}, r"space\.train\.mu\.chioce=\[3\]: must be"),
        ({"train": {"mu": {"choice": [3], "uniform": [1, 2]}}}, r"space\.train\.mu=.*: must be \{choice:"),
        ({"train": {"mu": {"choice": 3}}}, "choice takes a list"),
        ({"train": {"mu": {"choice": []}}}, "at least one"),
        ({"train": {"mu": {"choice": [[1]]}}}, "numbers, words"),
        ({"train": {"mu": {"choice": [3, 3]}}}, "a value is there twice"),
        ({"train": {"mu": {"randint": [1.5, 3]}}}, "two whole numbers"),
        ({"train": {"mu": {"randint": [1, 2, 3]}}}, "two whole numbers"),
        ({"train": {"mu": {"randint": [True, 3]}}}, "two whole numbers"),
        (
            {"train": {"lambda_u": {"uniform": [2, 1]}}},
            r"space\.train\.lambda_u=\{uniform: \[2,1\]\}: low must be below",
        ),
        ({"train": {"lambda_u": {"uniform": [0, math.inf]}}}, "takes two numbers"),
        ({"train": {"lambda_u": {"loguniform": [0, 1]}}}, "low must be above 0 for loguniform"),
    ],
)
def test_wrong_forms(tree: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_space(tree)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "form", "message"),
    [
        ("train.moo", {"choice": [1]}, r"there is no field train\.moo; did you mean train\.mu\?"),
        ("moo", {"choice": [1]}, "there is no field moo"),
        ("policy.treshold", {"choice": [0.5]}, "policy=fixmatch has no such parameter; known: threshold"),
        ("policy.cut", {"choice": ["own"]}, r"policy=dpl has it\. space=optimizer .* space\.policy\.cut=null leaves"),
        ("policy.name", {"choice": ["dpl"]}, "dpl-ray compare sets policies side by side"),
        ("data.num_labels_per_class", {"randint": [1, 9]}, r"is the same for all trials; set it, as data\.num_labels"),
        ("run.name", {"choice": ["a"]}, "is the same for all trials"),
        ("train.num_steps", {"randint": [1, 9]}, "is the same for all trials"),
        ("train.mu", {"uniform": [1, 3]}, r"train\.mu=1\.7.*: must be a whole number"),
        ("train.ema_decay", {"uniform": [0.5, 1.5]}, r"train\.ema_decay=1\.5: "),
        ("optim.name", {"choice": ["sgd", "adam"]}, r"optim\.name=adam: .*did you mean adamw"),
        ("policy.threshold", {"uniform": [0.5, 2]}, r"policy\.threshold=2\.0: "),
        ("model.depth", {"choice": [10, 12]}, r"model\.depth=12: must be 6 n \+ 4"),
    ],
)
def test_fields_that_do_not_fit(field: str, form: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_space(parse_space({field: form}), FIXMATCH)
    assert str(caught.value).startswith(f"space.{field}={{")
    assert "\n" not in str(caught.value)


def test_views_may_be_searched_though_data_may_not() -> None:
    check_space(parse_space({"data.views.cutout": {"uniform": [0, 1]}}), DPL)


def test_the_fixed_fields_exist() -> None:
    assert set(FIXED_FIELDS) <= {row[0] for row in describe_fields()}
    assert set(KINDS) == {"choice", "uniform", "loguniform", "randint"}
