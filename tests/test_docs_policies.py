"""docs/policies.md: its example is built as it says and held to all that holds for every policy; its table is true."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import dpl_ray.algorithm
from dpl_ray.algorithm import policies as policies_module
from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.config import describe
from dpl_ray.config import policies as config_policies
from dpl_ray.config.compose import load_config
from dpl_ray.config.policies import POLICY_CONFIGS
from dpl_ray.config.schema import Config
from dpl_ray.training.distributed import Workers
from dpl_ray.training.metrics import SUMS
from dpl_ray.training.state import build_state
from dpl_ray.training.step import train_step
from tests.algorithm import policy_references, test_policies
from tests.builders import tiny_config, tiny_feed, tiny_splits
from tests.training import test_step

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "policies.md").read_text()
NAME = "running_mean"


def section(page: str, title: str) -> str:
    """From a heading to the next one."""
    return only(rf"(^## {title}$.*?)(?=^## |\Z)", page)


def only(pattern: str, text: str) -> str:
    """The group of a pattern that occurs once."""
    found = re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, (pattern, found)
    return found[0]


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Adds the policy of a page as the page says, until the test ends; the files lie in a temporary folder."""

    policy = Config.model_fields["policy"]
    known = policy.annotation

    def steps(page: str) -> None:
        text = section(page, "Adding a policy")
        class_code, parameters_code, loop_code = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)

        module = only(rf"`(dpl_ray/algorithm/{NAME}\.py)`", text)
        (tmp_path / Path(module).name).write_text(class_code)
        monkeypatch.setattr(dpl_ray.algorithm, "__path__", [*dpl_ray.algorithm.__path__, str(tmp_path)])
        imported = vars(importlib.import_module(f"dpl_ray.algorithm.{NAME}"))
        line = only(rf'`("{NAME}": \w+,)`', text)
        monkeypatch.setitem(POLICIES, NAME, eval(f"{{{line}}}", vars(policies_module) | imported)[NAME])

        assert "`dpl_ray/config/policies.py`" in text
        sections = dict(vars(config_policies))
        exec(parameters_code, sections)
        added = eval(only(r"`\| (\w+)`", text), sections)
        monkeypatch.setitem(POLICY_CONFIGS, added.model_fields["name"].default, added)
        policy.annotation = known | added
        Config.model_rebuild(force=True)

        file = only(rf"`(conf/policy/{NAME}\.yaml)`", text)
        shutil.copytree(describe.CONF_FOLDER, tmp_path / "conf")
        (tmp_path / file).write_text("\n".join(re.findall(r"`(# .+?|name: .+?)`", text)))
        for reader in (describe, test_policies):
            monkeypatch.setattr(reader, "CONF_FOLDER", tmp_path / "conf")

        loops = dict(vars(policy_references))
        exec(loop_code, loops)
        monkeypatch.setattr(policy_references, NAME, loops[NAME], raising=False)
        row = only(rf'`("{NAME}": Row\([^`]+,)`', text)
        monkeypatch.setitem(test_policies.ROWS, NAME, eval(f"{{{row}}}", vars(test_policies))[NAME])
        monkeypatch.setitem(test_step.CASES, NAME, {"name": NAME})

    yield steps
    policy.annotation = known
    Config.model_rebuild(force=True)
    sys.modules.pop(f"dpl_ray.algorithm.{NAME}", None)
    vars(dpl_ray.algorithm).pop(NAME, None)


def hold_to_all_tests() -> list[str]:
    """Run every test that a row brings; returns their names, once for every set of arguments."""
    row, checks, ran = test_policies.ROWS[NAME], test_policies.CHECKS, []

    def run(kind: str, *given: Any) -> None:
        for check in checks[kind]:
            check(*given)
            ran.append(check.__name__)

    test_policies.test_every_policy_has_a_row_parameters_and_a_yaml_file()
    run("policy", NAME)
    for variant in ({}, *row.variants):
        parameters = {"name": NAME} | variant
        run("variant", parameters)
        for num_samples in test_policies.FEW:
            run("variant, samples", parameters, num_samples)
        for world_size in test_policies.WORLD_SIZES:
            run("variant, workers", parameters, world_size)
    for key, value in row.wrong:
        run("wrong", NAME, key, value)
    return ran


def test_the_example_passes_all_tests_that_every_policy_passes(follow: Callable[[str], None]) -> None:
    follow(PAGE)
    ran = hold_to_all_tests()
    assert ran.count("test_weights_and_targets_are_those_of_the_loop") == 2
    assert ran.count("test_workers_hold_together_the_state_of_one_and_weigh_as_it_does") == 2 * 3
    assert set(ran) >= {
        "test_statistics_of_shards_sum_to_those_of_the_batch",
        "test_the_state_dict_holds_all_that_later_steps_depend_on",
        "test_every_parameter_of_the_constructor_is_configured_and_described",
        "test_a_parameter_out_of_bounds_is_named",
    }


def test_the_example_trains(follow: Callable[[str], None]) -> None:
    follow(PAGE)
    test_step.test_a_step_is_the_slow_step_that_skips_nothing(NAME)
    config = tiny_config(policy=load_config([f"policy={NAME}", "policy.decay=0.5"]).policy.model_dump())
    assert config.policy.model_dump() == {"name": NAME, "decay": 0.5}
    splits = tiny_splits()
    state = build_state(config, 3, 3, Workers(), pool_size=len(splits.unlabeled))
    feed = tiny_feed(config, splits)
    before = [parameter.clone() for parameter in state.student.parameters()]
    weight = unlabeled = 0.0
    for step in range(5):
        values = train_step(state, feed(step), config, Workers()).tolist()
        sums = dict(zip(SUMS, values, strict=True))
        weight, unlabeled = weight + sums["weight"], unlabeled + sums["unlabeled"]
    assert state.step == 5
    assert any((old != new).any() for old, new in zip(before, state.student.parameters(), strict=True))
    assert 0 < weight < unlabeled == 5 * 12
    mean = state.policy.thresholds()["mean"]
    assert mean.shape == (3,)
    assert ((mean > 1 / 3) & (mean < 1)).all()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("import torch\n", ""),
        ("(pseudo.confidence >= self", "(pseudo.confidence < self"),
        (".add_(statistics)", ".add_(statistics[0])"),
        (".mul_(self.decay)", ""),
        ("torch.nn.Buffer(torch.zeros(2, dtype=torch.float64))", "torch.zeros(2, dtype=torch.float64)"),
        (".double().sum(dim=1)", ".double().mean(dim=1)"),
        ("ge=0, lt=1", "ge=0"),
        (', description="of the mean"', ""),
        ("    decay: float = Field(", "    decays: float = Field("),
        ("`| RunningMeanConfig`", "`| RunningConfig`"),
        ("`name: running_mean`", "`name: running`"),
        ('`"running_mean": RunningMean,`', '`"running_mean": Running,`'),
        ("references.running_mean,", "references.fixmatch,"),
        ("decay * total + sum(confidences)", "total + sum(confidences)"),
    ],
)
def test_a_mistake_in_the_page_is_found(follow: Callable[[str], None], right: str, wrong: str) -> None:
    assert PAGE.count(right) == 1
    found = (AssertionError, AttributeError, LookupError, NameError, TypeError, ValueError, pytest.fail.Exception)

    def build_and_test() -> None:
        follow(PAGE.replace(right, wrong))
        hold_to_all_tests()

    with pytest.raises(found):
        build_and_test()


def table() -> dict[str, list[str]]:
    """Policy -> the cells of its row."""
    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if re.match(r"\| `\w+`", line)]
    return {only(r"^ `(\w+)`", row[0]): row for row in rows}


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_table_has_every_policy() -> None:
    assert set(table()) == set(POLICIES)


@pytest.mark.parametrize("name", POLICIES)
def test_the_table_says_what_a_policy_keeps_and_its_parameters_with_defaults(name: str) -> None:
    _, _, _, state, parameters = table()[name]
    policy = test_policies.build({"name": name})
    assert set(quoted(state)) == {key for key, _ in policy.named_buffers()}
    assert tuple(re.findall(r"`(\w+)`, sharded", state)) == policy.sharded
    pairs = [pair.split("=") for pair in quoted(parameters)]
    assert {key: yaml.safe_load(value) for key, value in pairs} == POLICY_CONFIGS[name]().model_dump(exclude={"name"})


@pytest.mark.parametrize("name", POLICIES)
def test_docs_metrics_names_the_policys_thresholds(name: str) -> None:
    rows = [line for line in (ROOT / "docs" / "metrics.md").read_text().splitlines() if "`threshold/" in line]
    keys = {key for row in rows if re.search(rf"\b{name}\b", row) for key in re.findall(r"`threshold/(\w+)/", row)}
    assert keys == set(test_policies.build({"name": name}).thresholds())


def test_the_page_of_settings_lists_every_policy() -> None:
    listed = only(r"`policy=([^`]+)`", (ROOT / "docs" / "configuration.md").read_text())
    assert set(listed.split(r"\|")) == set(POLICIES)
