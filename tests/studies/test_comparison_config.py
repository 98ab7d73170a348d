"""A comparison's fields: which cells they ask for, and mistakes answered in one line before anything starts."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import dpl_ray.cluster.connect
import dpl_ray.studies.comparison.job
from dpl_ray.commands import cli, compare
from dpl_ray.config.compose import load_config
from dpl_ray.config.describe import describe_fields, list_groups
from dpl_ray.config.parse import to_yaml
from dpl_ray.store.records import write_json
from dpl_ray.studies.comparison.cells import CELL_FILE, CellResult, cell_config
from dpl_ray.studies.comparison.config import CompareConfig, comparison_name, load_comparison, make_plan
from dpl_ray.studies.comparison.job import Comparison
from tests.mistakes import Mistake, command, images, plain, storage_in_file, write
from tests.test_mistakes import check_answer, contents

ROOT = Path(__file__).parents[2]


def plan_of(*overrides: str) -> Any:
    return make_plan(*load_comparison(overrides))


def test_the_default_is_every_policy_on_five_subsets() -> None:
    plan = plan_of()
    assert set(plan.labels) == set(list_groups()["policy"])
    assert (plan.seeds, plan.reference) == ((0, 1, 2, 3, 4), "fixmatch")
    assert len(plan.cells) == len(plan.labels) * 5
    assert len({cell.name for cell in plan.cells}) == len(plan.cells)


def test_the_reference_is_fixmatch_where_it_is_there_and_else_the_first() -> None:
    assert plan_of("policies=[dpl,fixmatch]").reference == "fixmatch"
    assert plan_of("policies=[softmatch,dpl]").reference == "softmatch"
    assert plan_of("policies=[dpl(rule=band),fixmatch(threshold=0.9)]", "reference=null").reference == "dpl(rule=band)"


def test_cells_come_by_seed_with_the_policies_own_parameters() -> None:
    plan = plan_of("policies=[dpl, dpl(cut=own, rule=band),fixmatch(threshold=0.8)]", "reference=dpl", "subsets=2")
    labels = ("dpl", "dpl(rule=band,cut=own)", "fixmatch(threshold=0.8)")
    assert [(cell.seed, cell.label) for cell in plan.cells] == [(seed, label) for seed in (0, 1) for label in labels]
    assert plan.cells[1].policy == plan.cells[0].policy | {"rule": "band", "cut": "own"}
    assert plan.cells[2].policy == {"name": "fixmatch", "threshold": 0.8}
    assert [cell.name for cell in plan.cells[:3]] == [
        "dpl-seed-0", "dpl-rule-band-cut-own-seed-0", "fixmatch-threshold-0.8-seed-0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "label"),
    [
        ("dpl(rule=gaussian)", "dpl"),
        ("dpl()", "dpl"),
        ("'dpl(alignment=no)'", "dpl(alignment=false)"),
        ("dpl(epsilon=2e-2)", "dpl"),
        ("fixmatch(threshold=0.90)", "fixmatch(threshold=0.9)"),
    ],
)
def test_a_policy_has_one_label_however_it_is_written(entry: str, label: str) -> None:
    other = "supervised"
    assert plan_of(f"policies=[{entry},{other}]", f"reference={other}").labels == (label, other)


def test_the_first_subset_has_the_seed_of_training_and_more_of_either_keep_the_cells() -> None:
    def of(*overrides: str) -> list[tuple[int, int]]:
        return [(cell.subset, cell.seed) for cell in plan_of("policies=[fixmatch]", "train.seed=7", *overrides).cells]

    assert of("subsets=2") == of("seeds=2") == [(7, 7), (8, 8)]
    assert of("subsets=2", "repeats=3") == [(7, 7), (7, 1007), (7, 2007), (8, 8), (8, 1008), (8, 2008)]
    assert set(of("subsets=2", "repeats=2")) == set(of("subsets=3", "repeats=2")) & set(of("subsets=2", "repeats=3"))
    assert of("data.subset_seed=3", "subsets=1", "repeats=3") == [(3, 7), (3, 8), (3, 9)]


def test_a_repeat_has_the_labelled_subset_of_its_first_training() -> None:
    config, options = load_comparison(["policies=[fixmatch]", "subsets=1", "repeats=2", "train.seed=7"])
    first, second = (cell_config(config, cell, "runs") for cell in make_plan(config, options).cells)
    assert (first.train.seed, first.data.subset_seed) == (7, None), "as a training run and older cells have it"
    assert (second.train.seed, second.data.subset_seed) == (1007, 7)


def test_the_fields_are_told_from_those_of_training() -> None:
    config, options = load_comparison(["subsets=3", "data=fashion_mnist", "train.num_steps=9", "cpus_per_cell=0.5"])
    assert (options.subsets, options.cpus_per_cell) == (3, 0.5)
    assert (config.data.name, config.train.num_steps) == ("fashion_mnist", 9)
    assert load_comparison(["subsets=3", "seeds=4"])[1].subsets == 4
    assert load_comparison(["train.batch_size=15"])[0].train.batch_size == 15, "a cell has one process"
    assert load_comparison(["scale.num_workers=3"])[0].scale.num_workers == 1, "other than 0 says: as Ray tasks"
    assert load_comparison(["scale.num_workers=0"])[0].scale.num_workers == 0


def test_the_same_command_has_the_same_name_and_another_configuration_has_not() -> None:
    def name(*overrides: str) -> str:
        return comparison_name(load_comparison(overrides)[0])

    assert name() == name("subsets=2", "policies=[dpl,fixmatch]", "train.seed=3", "scale.num_workers=0")
    assert name() == name("run.storage_path=elsewhere", "tracking.enabled=false", "train.checkpoint_every=7")
    assert name() != name("train.log_every=7"), "the last record, which the tables have, is of that many steps"
    assert len({name(), name("train.num_steps=700"), name("data.num_labels_per_class=5"), name("model.width=1")}) == 4
    assert name("run.name=mine") == "mine"


def test_help_lists_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(compare.COMMAND, ["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for field, _, default, meaning in [*describe_fields(CompareConfig), *describe_fields()]:
        assert any(line.startswith(f"  {field}={default} ") and meaning in line for line in lines), field


def test_a_comparison_is_configured_without_torch_or_ray() -> None:
    code = (
        "import sys, dpl_ray.studies.comparison.config as c, dpl_ray.commands.cli, dpl_ray.commands.compare;"
        "c.make_plan(*c.load_comparison(['data=cifar10', 'policies=[dpl,fixmatch]']));"
        "print(sorted({'torch', 'ray', 'mlflow', 'torchvision'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def begun(*overrides: str, cell: str = "") -> Callable[[Path], list[str]]:
    """A comparison `first` of 9 steps, perhaps with a cell that was begun, and then these arguments."""

    def prepare(tmp: Path) -> list[str]:
        config, options = load_comparison(["train.num_steps=9", "run.name=first", f"run.storage_path={tmp}/runs"])
        study = Comparison(config, options)
        study.save_info()
        if cell:
            old = load_config(["policy=fixmatch", "policy.threshold=0.5"])
            (study.storage / cell / "config.yaml").write(to_yaml(old).encode())
        return ["run.name=first", *overrides]

    return prepare


def training_run(tmp: Path) -> list[str]:
    write(tmp / "runs" / "first" / "run.json", b"{}")
    return ["run.name=first"]


MISTAKES = (
    Mistake("no_list", plain("policies=dpl"), ("policies=dpl: must be a list, as policies=[dpl]",)),
    Mistake("policy", plain("policies=[fixmach]"), ("policies=[fixmach]: there is no such", "did you mean fixmatch?")),
    Mistake("parameter", plain("policies=[dpl(rul=band)]"), ("[dpl(rul=band)]: rul=band: there is", "mean rule?")),
    Mistake("choice", plain("policies=[dpl(rule=bnd)]"), ("rule=bnd: must be 'gaussian'", "did you mean band?")),
    Mistake("bound", plain("policies=[fixmatch(threshold=95)]"), ("threshold=95: must be less than or equal to 1",)),
    Mistake("type", plain("policies=[fixmatch(threshold=x)]"), ("threshold=x: must be a number",)),
    Mistake("no_value", plain("policies=[dpl(rule)]"), ("rule says no parameter=value, as in dpl(rule=band",)),
    Mistake("parenthesis", plain("policies=[dpl(rule=band]"), ("[dpl(rule=band]: a policy is written as dpl, or",)),
    Mistake("yaml", plain("policies=[dpl(rule={),fixmatch]"), ("policies=[dpl(rule={)]: rule={ has no value that",)),
    Mistake(
        "quote", plain("policies=[dpl(rule='a),fixmatch]"), ("policies=[dpl(rule='a)]: rule='a has no value that",)
    ),
    Mistake("list_of_values", plain("policies=[fixmatch(threshold=[1,2])]"), ("threshold=[1,2]: must be a number",)),
    Mistake("list", plain("policies=[dpl(shares=[1,-2],rule=band)]"), ("shares=-2: must be greater than 0",)),
    Mistake("date", plain("policies=[fixmatch(threshold=2026-13-45)]"), ("threshold=2026-13-45 has no value that",)),
    Mistake("name", plain("policies=[dpl(name=fixmatch)]"), ("name=fixmatch is no parameter; the name stands before",)),
    Mistake("twice", plain("policies=[dpl,dpl]"), ("policies: dpl is there twice",)),
    Mistake("same", plain("policies=[dpl,dpl(rule=gaussian)]"), ("dpl(rule=gaussian) and dpl are the same policy",)),
    Mistake("seeds", plain("seeds=0"), ("subsets=0: must be greater than or equal to 1",)),
    Mistake("number", plain("seeds=many"), ("subsets=many: must be a whole number",)),
    Mistake("list_of_seeds", plain("seeds=[0,1]"), ("subsets=[0,1]: must be a whole number",)),
    Mistake("repeats", plain("repeats=0"), ("repeats=0: must be greater than or equal to 1",)),
    Mistake(
        "one_subset",
        plain("data.subset_seed=3", "subsets=4"),
        ("subsets=4: data.subset_seed=3 is one labelled subset; leave it out, or set subsets=1 repeats=4",),
    ),
    Mistake("reference", plain("reference=dlp"), ("reference=dlp: there is no such policy", "did you mean dpl?")),
    Mistake(
        "no_reference",
        plain("policies=[dpl]", "reference=fixmatch"),
        ("reference=fixmatch: is not among the policies (dpl); add it",),
    ),
    Mistake("near_field", plain("polices=[dpl]"), ("there is no field polices; did you mean policies?",)),
    Mistake("seed", plain("seed=3"), ("seed=3: there is no field seed; did you mean seeds?",)),
    Mistake("field_of_training", plain("train.batch_sz=8"), ("no field train.batch_sz", "mean train.batch_size?")),
    Mistake("one_policy", plain("policy=dpl"), ("policy=dpl: a comparison's policies carry their parameters",)),
    Mistake("policy_parameter", plain("policy.rule=band"), ("policy.rule=band: a comparison's", "dpl(rule=band)")),
    Mistake("baseline", plain("train.baseline=true"), ("train.baseline=true: a comparison's baseline is the policy",)),
    Mistake("share", plain("gpus_per_cell=2"), ("gpus_per_cell=2: must be less than or equal to 1",)),
    Mistake("cpus", plain("cpus_per_cell=4096"), ("cpus_per_cell=4096: no node of this machine has that many CPUs",)),
    Mistake("gpu", plain("scale.use_gpu=true"), ("scale.use_gpu=true", "this machine has 0; scale.use_gpu=false")),
    Mistake("no_cluster", plain("scale.address=127.0.0.1:1"), ("scale.address=127.0.0.1:1: no Ray cluster answers",)),
    Mistake("labels", plain("data.num_labels_per_class=1000"), ("=1000: class 8 has only", "use at most 139")),
    Mistake("path", images("data.train={tmp}/trian"), ("data.train={tmp}/trian: there is no such", "mean train?")),
    Mistake("workers", plain("scale.num_workers=5000"), ("num_workers=5000: must be less than or equal to 4096",)),
    Mistake("storage", storage_in_file, ("run.storage_path={tmp}/notes.txt/runs: cannot be written",)),
    Mistake(
        "other_comparison",
        begun("train.num_steps=8"),
        ("run.name=first: this comparison exists with train.num_steps=9, now it is 8; take another run.name",),
    ),
    Mistake(
        "other_records",
        begun("train.num_steps=9", "train.log_every=7"),
        ("run.name=first: this comparison exists with train.log_every=50, now it is 7; take another run.name",),
    ),
    Mistake("training_run", training_run, ("run.name=first: a training run has this name; take another run.name",)),
    Mistake(
        "other_policy",
        begun("train.num_steps=9", cell="fixmatch-seed-1"),
        ("run.name=first: this comparison exists with policy.threshold=0.5, now it is 0.95",),
    ),
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.id)
def test_mistake(
    mistake: Mistake, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*arguments: Any, **keywords: Any) -> None:
        pytest.fail("a cell was started")

    monkeypatch.setattr(dpl_ray.studies.comparison.job.Comparison, "run", started)
    monkeypatch.setattr(dpl_ray.cluster.connect, "count_gpus", lambda: 0)
    monkeypatch.chdir(tmp_path)
    arguments, fragments = command(mistake, tmp_path)
    before = contents(tmp_path)
    status = cli.run(compare.COMMAND, arguments)
    check_answer(status, *capsys.readouterr(), fragments)
    assert contents(tmp_path) == before, "nothing is left behind"


def test_cells_of_other_data_are_not_compared(tmp_path: Path) -> None:
    config = load_config(["train.num_steps=9", f"run.storage_path={tmp_path}", "run.name=first"])

    def opened() -> Comparison:
        return Comparison(config, CompareConfig())

    study = opened()
    facts = {"data.fingerprint": "old"}
    result = CellResult("dpl", config.policy.model_dump(), 1, 9, 1.0, {}, [], "", facts, subset=1)
    write_json(study.storage / "dpl-seed-1" / CELL_FILE, result)
    study.check_data(0, "new", "all")
    study.check_data(1, "old", "all")
    with pytest.raises(ValueError, match=r"run\.name=first: dpl with seed 1 was trained on other data"):
        study.check_data(1, "new", "all")
    study.save_info()
    with pytest.raises(ValueError, match=r"run\.name=first: the cells of other subsets than 2 were trained on other"):
        opened().check_data(2, "new", "others")
    (study.storage / "dpl-seed-1").delete()
    opened().check_data(2, "new", "corrected")


def test_the_command_says_where_its_results_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["policies=[supervised]", "reference=supervised", "subsets=1", "train.num_steps=2", "model.width=1"]
    arguments += [f"run.storage_path={tmp_path}", "run.name=c", "scale.num_workers=0", "tracking.enabled=false"]
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    output = io.StringIO()
    compare.job(load_comparison(arguments), Console(file=output, width=200))
    for name in ("comparison.csv", "comparison.md", "comparison.html"):
        assert f"{tmp_path}/c/{name}" in output.getvalue()
    text = (tmp_path / "c" / "comparison.md").read_text()
    assert "dpl-ray compare 'policies=[supervised]' reference=supervised subsets=1" in text
