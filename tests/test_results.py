"""The tables of results: what is made of a few rows by hand, and that the documents are as the command writes them."""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import pytest

from benchmarks import backbones, house, paper, results, study, study_goals, study_table, tables
from benchmarks.figures import FOLDER, Figure, Measurement, add_save, command_line, mean_deviation, median, quartiles
from dpl_ray.config.describe import list_groups
from dpl_ray.config.schema import Config
from dpl_ray.studies.comparison.table import make_rows

MEASUREMENT = Measurement(
    command="python -m benchmarks.views",
    figures={
        "strong": {"ours": Figure(62_282.0, "images/s", 58_414, 63_798), "ratio": Figure(9.5, at_least=10)},
        "weak": {"ratio": Figure(39.4)},
    },
    commit="abc1234",
    date="2026-11-27",
    hardware="EPYC, 2 cores",
    versions="Python 3.11.7",
    note="Once.",
)


def result(policy: str, seed: int, accuracy: str, **rest: str) -> dict[str, str]:
    """A row of policies.csv."""
    columns = dict.fromkeys((*tables.METRICS, "setting", "policy"), "")
    return columns | {
        "setting": "small", "policy": policy, "seed": str(seed), "steps": "20", "training_seconds": "9",
        "accuracy": accuracy, "balanced_accuracy": accuracy, "ece": "0.1", **rest,
    }  # fmt: skip


def point(policy: str, seed: int, step: int, accuracy: str) -> dict[str, str]:
    """A row of policies_curves.csv."""
    return {
        "setting": "small", "policy": policy, "seed": str(seed), "step": str(step),
        "accuracy_of_2000_test_images": accuracy,
    }  # fmt: skip


USED = {"coverage": "0.9", "precision": "0.8", "high_entropy_share": "0.25", "high_entropy_precision": "0.5"}
RESULTS = [
    *(result("fixmatch", seed, accuracy) for seed, accuracy in enumerate(("0.5", "0.6"))),
    *(result("dpl", seed, accuracy, **USED) for seed, accuracy in enumerate(("0.7", "0.8"))),
    result("softmatch", 0, "0.9"),
]
CURVES = [
    *(point("fixmatch", seed, step, "0.5") for seed in (0, 1) for step in (10, 20)),
    *(point("dpl", seed, step, accuracy) for seed in (0, 1) for step, accuracy in ((10, "0.6"), (20, "0.7"))),
]


def test_the_table_of_a_comparison_is_made_from_its_csv_files() -> None:
    rows = make_rows(tables.cells("small", RESULTS, CURVES), "fixmatch")
    assert tables.comparison(rows).splitlines()[2:] == [
        "| softmatch | 1 x 1 | 90.00 | +40.00 | - (0 of 1) | - | - | - | - | 10.0 |",
        "| dpl | 2 x 1 | 75.00 ± 7.07 | +20.00 | 10 (2 of 2) | 90.0 | 80.0 | 25.0 | 50.0 | 10.0 |",
        "| fixmatch (reference) | 2 x 1 | 55.00 ± 7.07 | - | 10 (2 of 2) | - | - | - | - | 10.0 |",
    ]
    assert tables.setting("small", RESULTS, CURVES).endswith("| 10.0 |\n\nEach training has 20 steps.")


def test_a_rank_is_counted() -> None:
    assert tables.ours(RESULTS, CURVES).splitlines()[2:] == [
        "| small | 2 of 3 | softmatch | 15.00 | +20.00 | 0.50 | 0.25 | 0.50 |",
        "",
        "`dpl` is first in 0 of 1 settings, and second or third in 1.",
    ]


def test_means_are_of_policies_that_were_run_in_all_settings() -> None:
    other = [row | {"setting": "other", "accuracy": "0.25"} for row in RESULTS if row["policy"] != "softmatch"]
    assert tables.means([*RESULTS, *other]).splitlines()[2:] == ["| dpl | 50.0 |", "| fixmatch | 40.0 |"]


def test_an_ablation_shows_differences_and_seeds_of_what_can_be_measured_again() -> None:
    def row(setting: str, variant: str, accuracy: float) -> dict[str, str]:
        numbers = {"accuracy": str(accuracy), "accuracy_of_the_base": "0.5", "coverage": "0.9", "precision": "0.8"}
        return {"setting": setting, "variant": variant} | numbers

    rows = [
        row("fashion14-4", "worse", 0.4),
        row("fashion14-4", "tried*", 0.9),
        row("fashion14-4", "label_sets", 0.9),
        row("digits-2", "better", 0.6),
        row("digits-2", "better", 0.8),
        *(row("digits-4", "better", accuracy) for accuracy in (0.59, 0.6, 0.61)),
        *(row("digits-4", "worse", accuracy) for accuracy in (0.1, 0.6, 0.65)),
    ]
    assert tables.ablation(rows).splitlines()[2:] == [
        "| better |  | +20.00 (2) | **+10.00 (3)** |  |  |  |  |",
        "| worse | -10.00 (1) |  | -5.00 (3) |  |  |  | 0.90, 0.80 |",
        "",
        "On fashion14-4, 0 of 1 changes have a higher mean than dpl.",
    ]


def test_the_long_tails_have_a_row_for_each_policy_on_the_labelled_subsets_that_all_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [
        result(policy, subset, str(accuracy), setting=setting) | {"subset": str(subset)}
        for setting, policy, subset, accuracy in [
            ("frozen-4-lt20", "dpl", 5, 0.6),
            ("frozen-4-lt20", "supervised", 5, 0.5),
            ("frozen-4-lt20", "supervised", 6, 0.1),
            ("frozen-4-lt20", "dpl(cut=own)", 5, 0.7),
            ("frozen-4-lt100r", "dpl(cut=own)", 5, 0.7),
            ("frozen-4-lt100r", "fixmatch", 5, 0.9),
            ("frozen-4-lt100r", "dpl", 5, 0.4),
            ("frozen-4-lt100r", "supervised", 5, 0.6),
            ("frozen-4-lt100r", "dpl", 0, 0.0),
            ("frozen-4", "dpl", 5, 0.9),
        ]
    ]
    monkeypatch.setattr(study_table, "read", lambda _: rows)
    assert study_table.tails().splitlines() == [
        "| policy | frozen-4-lt20 | frozen-4-lt100r | mean |",
        "| --- | --- | --- | --- |",
        "| dpl(cut=own) | 70.0 | 70.0 | 70.0 |",
        "| supervised | 50.0 | 60.0 | 55.0 |",
        "| dpl | 60.0 | 40.0 | 50.0 |",
        "",
        "Above `supervised` in the mean: `dpl(cut=own)`.",
    ]


def test_each_part_of_dpl_on_features_has_its_difference_and_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = {"dpl": 0.5, "dpl(balance=0.0)": 0.45, "dpl(pace=1.0)": 0.5, "dpl(heads_weight=1.0)": 0.51}
    rows = [
        result(policy, 5, str(accuracy), setting=setting) | {"subset": "5"}
        for setting, above in (("frozen-4", 0.0), ("frozen-25", 0.2))
        for policy, accuracy in accuracies.items()
        for accuracy in [accuracy + (above if policy == "dpl(pace=1.0)" else 0)]
    ]
    rows.append(result("dpl(balance=0.0)", 5, "0.9", setting="frozen-4-lt20") | {"subset": "5"})
    monkeypatch.setattr(study_table, "read", lambda _: rows)
    assert study_goals.parts().splitlines()[2:] == [
        "| frozen-4 | -5.0 | +0.0 | +1.0 |",
        "| frozen-25 | -5.0 | +20.0 | +1.0 |",
        "| mean | -5.0 | +10.0 | +1.0 |",
    ]


def test_the_ceiling_stands_beside_the_most_accurate_other_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = {"supervised": 0.6, "fixmatch": 0.61, "dpl": 0.64, "dpl(cut=own)": 0.9}
    files = {
        "study": [
            result(policy, 5, str(accuracy), setting=setting) | {"subset": "5"}
            for setting in ("frozen-4", "frozen-25", "frozen-25-lt20")
            for policy, accuracy in accuracies.items()
        ],
        "ceiling": [
            {"setting": "frozen-25", "accuracy": "0.62"},
            {"setting": "frozen-4", "accuracy": "0.7"},
            {"setting": "frozen-4", "accuracy": "0.8"},
        ],
    }
    monkeypatch.setattr(study_table, "read", files.__getitem__)
    assert study_table.ceiling().splitlines()[2:] == [
        "| frozen-4 | 60.0 | fixmatch 61.0 | 64.0 | 75.0 | +14.0 |",
        "| frozen-25 | 60.0 | fixmatch 61.0 | 64.0 | 62.0 | +1.0 |",
        "",
        "Less than 2 points above the rival with the true labels: frozen-25.",
    ]


def test_a_pool_with_foreign_images_has_a_row_with_the_same_pool_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = {"supervised": 0.4, "fixmatch": 0.3, "openmatch": 0.2, "iomatch": 0.1, "dpl": 0.5}
    of_pool = accuracies | {"dpl(open_set=true)": 0.6}
    of_setting = {"frozen-4-open60": of_pool, "frozen-4-open30": of_pool, "frozen-4-clean60": {"dpl": 0.65}}
    rows = [
        result(policy, subset, str(accuracy), setting=setting) | {"subset": str(subset)}
        for setting, policies in of_setting.items()
        for policy, accuracy in policies.items()
        for subset in (0, 5)
    ]
    monkeypatch.setattr(study_table, "read", lambda _: rows)
    *_, row, unclean = study_table.open_sets().splitlines()
    assert unclean == "| frozen-4-open30 | 1 | 40.0 | 30.0 | 20.0 | 10.0 | 50.0 | 60.0 | - | +20.0 | +10.0 | - |"
    assert row == "| frozen-4-open60 | 1 | 40.0 | 30.0 | 20.0 | 10.0 | 50.0 | 60.0 | 65.0 | +20.0 | +10.0 | -5.0 |"


def test_scores_of_foreign_images_are_means_over_the_reported_subsets_the_best_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [
        {"setting": setting, "policy": "dpl", "subset": subset, "score": score, "auroc": area}
        for setting, subset, score, area in [
            ("a", "5", "energy", "0.5"),
            ("a", "6", "energy", "0.6"),
            ("a", "0", "energy", "1.0"),
            ("a", "5", "foreign", "0.8"),
            ("b", "5", "energy", "0.5"),
            ("b", "5", "foreign", "0.7"),
        ]
    ]
    monkeypatch.setattr(study_table, "read", lambda _: rows)
    assert study_table.foreign().splitlines()[2:] == [
        "| foreign | dpl | 80.0 | 70.0 |",
        "| energy | dpl | 55.0 | 50.0 |",
    ]


def test_calibration_is_shown_before_and_after_a_temperature_on_the_subsets_that_all_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [
        {"setting": setting, "policy": policy, "subset": subset, "ece": before, "calibrated": after}
        for setting, policy, subset, before, after in [
            ("a", "dpl", "5", "0.2", "0.03"),
            ("a", "fixmatch", "5", "0.1", "0.04"),
            ("a", "fixmatch", "6", "0.9", "0.9"),
            ("a", "dpl(cut=own)", "5", "0.0", "0.0"),
            ("b", "dpl", "5", "0.1", "0.2"),
            ("b", "dpl", "0", "0.9", "0.9"),
            ("b", "fixmatch", "5", "0.3", "0.1"),
            ("b", "supervised", "5", "0.3", "0.1"),
        ]
    ]
    monkeypatch.setattr(study_table, "read", lambda _: rows)
    assert study_table.calibration().splitlines()[2:] == [
        "| dpl | 20.0 to 3.0 | 10.0 to 20.0 |",
        "| fixmatch | 10.0 to 4.0 | 30.0 to 10.0 |",
        "",
        "The temperature lowers the error in 3 of 4 cases. `dpl` has the lowest in 1 of 2 settings without it, and in "
        "1 with it.",
    ]


def study_row(setting: str, policy: str, subset: str, accuracy: str, curve: str = "") -> dict[str, str]:
    row = dict.fromkeys(study.COLUMNS, "") | {"steps": "100", "training_seconds": "1"}
    named = {"setting": setting, "policy": policy, "subset": subset, "seed": subset, "accuracy": accuracy}
    return row | named | {"curve": curve}


def test_the_share_of_the_run_to_the_references_accuracy_is_read_off_the_curves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [
        study_row(setting, policy, "5", accuracy, curve)
        for setting, policy, accuracy, curve in [
            ("a", "supervised", "0.5", ""),
            ("a", "fixmatch", "0.6", "50:0.7 100:0.6"),
            ("a", "dpl", "0.6", "50:0.6 100:0.5"),
            ("b", "supervised", "0.5", ""),
            ("b", "fixmatch", "0.6", "50:0.7 100:0.6"),
            ("b", "dpl", "0.6", "50:0.5 100:0.55"),
            ("c", "supervised", "0.5", ""),
            ("c", "fixmatch", "0.6", ""),
            ("c", "dpl", "0.6", "50:0.5 100:0.55"),
            ("a-bfloat16", "dpl", "0.9", ""),
        ]
    ]
    monkeypatch.setattr(study_table, "read", lambda _: rows)
    assert [line.split(" | ")[-1] for line in study_table.study().splitlines()[2:5]] == ["0.50 |", "never |", "- |"]


def test_goals_are_reached_in_so_many_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = {
        "frozen-4": {"supervised": 0.4, "fixmatch": 0.5, "dpl": 0.6},
        "frozen-25": {"supervised": 0.7, "fixmatch": 0.5, "dpl": 0.6},
        "frozen-4-lt20": {"supervised": 0.4, "fixmatch": 0.58, "dpl": 0.6},
        "frozen-25-lt20": {"supervised": 0.61, "fixmatch": 0.59, "dpl": 0.6},
        "frozen-4-open60": {"supervised": 0.4, "fixmatch": 0.4, "dpl": 0.6, "dpl(open_set=true)": 0.65},
        "frozen-4-clean60": {"supervised": 0.4, "fixmatch": 0.8, "dpl": 0.665},
    }
    curves = {"fixmatch": "50:0.7 100:0.6", "dpl": "50:0.6 100:0.5"}
    rows = [
        study_row(setting, policy, subset, str(accuracy + int(subset) / 100), curves.get(policy, ""))
        | {"ece": "0.1" if policy == ("fixmatch" if setting == "frozen-4-lt20" else "dpl") else "0.2"}
        for setting, of_policy in accuracies.items()
        for policy, accuracy in of_policy.items()
        for subset in "567"
    ]
    monkeypatch.setattr(study_table, "read", lambda _: rows)
    assert study_goals.goals().splitlines()[2:] == [
        "| balanced pools: above every other policy | 1 of 2 | frozen-25 |",
        "| the same, with an interval above 0 (in half of them) | 2 of 2 | - |",
        "| fixmatch's final accuracy after half of the steps | 6 of 6 | - |",
        "| long tails: 2 points above the best rival | 1 of 2 | frozen-25-lt20 |",
        "| long tails: not below supervised | 1 of 2 | frozen-25-lt20 |",
        "| foreign images: not below supervised | 1 of 1 | - |",
        "| foreign images: at most 2 points below the cleaned pool, dpl | 0 of 1 | frozen-4-open60 |",
        "| foreign images: at most 2 points below the cleaned pool, dpl(open_set=true) | 1 of 1 | - |",
        "| lowest calibration error (in half of them) | 5 of 6 | frozen-4-lt20 |",
    ]


def test_what_was_chosen_is_shown_on_the_subsets_that_it_was_chosen_by(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        study_row(setting, policy, subset, accuracy)
        for setting, policy, subset, accuracy in [
            ("a", "dpl", "0", "0.7"),
            ("a", "dpl", "1", "0.1"),
            ("a", "dpl(shares=equal)", "0", "0.6"),
            ("a", "dpl(shares=equal)", "5", "0.1"),
            ("a", "dpl(cut=own)", "1", "0.2"),
            ("b", "dpl", "0", "0.7"),
        ]
    ]
    monkeypatch.setattr(study_goals, "read", lambda _: rows)
    assert study_goals.choice().splitlines()[2:] == [
        "| a | dpl(cut=own) | 1 | 20.0 | 10.0 | +10.0 |",
        "| a | dpl(shares=equal) | 1 | 60.0 | 70.0 | -10.0 |",
    ]


def test_the_extent_of_the_study_names_what_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        study_row(setting, policy, subset, "0.5") | {"training_seconds": seconds}
        for setting, policy, subset, seconds in [
            ("digits-2", "dpl", "5", "1800"),
            ("digits-2", "supervised", "5", "1800"),
            ("digits-2", "dpl(cut=own)", "5", "60"),
            ("digits-4", "supervised", "0", "60"),
            ("frozen-4", "dpl", "5", "3600"),
        ]
    ]
    for module in (study_goals, study_table):
        monkeypatch.setattr(module, "read", lambda _: rows)
    lines = study_goals.extent().splitlines()
    assert lines[2:4] == ["| digits-2 | `dpl`, `supervised` |", "| frozen-4 | `dpl` |"]
    assert lines[5].startswith("Not measured: digits-4, frozen-25, fashion14-4, ")
    assert lines[7].startswith("5 trainings of one thread each")
    assert "took 2.0 hours of a core" in lines[7]
    assert lines[7].endswith("two at once: digits-2 30.0, digits-4 1.00, frozen-4 60.0.")


def test_a_precision_is_compared_on_the_subsets_that_both_have(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        study_row(setting, policy, subset, accuracy)
        for setting, policy, subset, accuracy in [
            ("a", "dpl", "5", "0.5"),
            ("a", "dpl", "6", "0.1"),
            ("a", "fixmatch", "5", "0.1"),
            ("a-bfloat16", "dpl", "5", "0.6"),
            ("b", "dpl", "5", "0.1"),
        ]
    ]
    monkeypatch.setattr(study_table, "read", lambda _: rows)
    assert study_table.precision().splitlines()[2:] == ["| a | dpl | 1 | 50.0 | 60.0 | +10.0 |"]


def test_what_a_falling_weight_adds_is_compared_on_the_subsets_that_both_have(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        study_row(setting, policy, subset, accuracy)
        for policy in study_table.COMPARED
        for setting, subset, accuracy in [
            ("a", "5", "0.6"),
            ("a", "6", "0.1"),
            ("a-constant", "5", "0.5"),
            ("a-constant", "0", "0.9"),
            ("a", "0", "0.1"),
            ("b", "5", "0.4"),
            ("b-constant", "5", "0.5"),
        ]
    ]
    rows += [study_row("c-constant", "dpl", "5", "0.1"), study_row("c", "dpl", "5", "0.9")]
    monkeypatch.setattr(study_table, "read", lambda _: rows)
    assert study_table.falling().splitlines()[2:] == [
        "| a | +10.0 | +10.0 | +10.0 | +10.0 | +10.0 |",
        "| b | -10.0 | -10.0 | -10.0 | -10.0 | -10.0 |",
        "| mean | +0.0 | +0.0 | +0.0 | +0.0 | +0.0 |",
    ]


def test_the_first_runs_have_a_row_each() -> None:
    rows = [
        {"run": "a", "data": "digits", "policy": policy, "steps": "3000", "eval/accuracy": accuracy, "eval/ece": "0.5"}
        for policy, accuracy in {"dpl": "0.8", "fixmatch": "0.9", "supervised": "0.5"}.items()
    ]
    empty = dict.fromkeys(tables.FIRST_RUNS, "")
    lines = tables.first_runs([empty | row for row in rows]).splitlines()
    assert lines[2] == "| a | dpl | 3,000 | 80.0 | 50.0 | - | - | - | - |"
    assert lines[-1] == "On digits dpl is 10.0 points below fixmatch and 30.0 points above supervised."


def test_a_figure_shows_its_range_and_whether_it_keeps_its_bound() -> None:
    assert str(median([1, 30, 2000], "s", at_most=31)) == "30 s (1 to 2,000); bound: at most 31"
    assert str(quartiles([0.1] * 4, at_least=0.2)) == "0.1 (0.1 to 0.1); bound: at least 0.2, **missed**"
    assert str(mean_deviation([12.0, 14.0], "%")) == "13.0 ± 1.41 %"
    assert str(mean_deviation([1.25])) == "1.25"


def test_a_measurement_is_kept_and_shown_with_its_commit(tmp_path: Path) -> None:
    MEASUREMENT.save("views", tmp_path / "bench")
    assert Measurement.load("views", tmp_path / "bench") == MEASUREMENT
    assert MEASUREMENT.to_markdown().splitlines() == [
        "|  | ours | ratio |",
        "| --- | --- | --- |",
        "| strong | 62,282 images/s (58,414 to 63,798) | 9.50; bound: at least 10, **missed** |",
        "| weak |  | 39.4 |",
        "",
        "`python -m benchmarks.views`: EPYC, 2 cores; Python 3.11.7; commit abc1234, 2026-11-27. Once.",
    ]


def test_a_figure_is_kept_of_code_that_a_commit_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_save(parser, "views")
    monkeypatch.setattr("benchmarks.figures.git_commit", lambda: "abc1234")
    assert parser.parse_args(["--save"]).save == "views"
    monkeypatch.setattr("benchmarks.figures.git_commit", lambda: "abc1234+changes")
    assert parser.parse_args([]).save is None
    with pytest.raises(SystemExit):
        parser.parse_args(["--save"])
    assert "the code has changes of abc1234+changes: commit them, then measure" in capsys.readouterr().err


def test_a_command_is_kept_without_the_places_of_one_machine() -> None:
    arguments = ["--images", "/data/cifar10/train-*.parquet", "--save", "large", "--sizes", "1", "2"]
    assert (
        command_line("label", arguments) == "python -m benchmarks.label --images 'cifar10/train-*.parquet' --sizes 1 2"
    )
    assert command_line("views", ["--save", "--batch", "112"]) == "python -m benchmarks.views --batch 112"


def test_of_the_demo_stand_the_last_steps_two_rows_and_the_end() -> None:
    printed = (
        "a starts\nwait\nfirst  1/2 steps  b\nfirst  2/2 steps  c\ndpl  2/2 steps  d\nLast teacher\n┏━┓\n"
        "│ accuracy │ 1 % │\n│ other │ 2 % │\n└─┘\nThresholds\n┏━┓\n└─┘\nIt helped\nreport  runs/a\n"
    )
    expected = (
        "a starts\nfirst  2/2 steps  c\ndpl  2/2 steps  d\nLast teacher\n┏━┓\n│ accuracy │ 1 % │\n└─┘\nIt helped\n"
    )
    assert tables.demo(printed) == f"```\n{expected}report  runs/a\n```"


def test_the_plan_follows_the_measured_rates() -> None:
    names = {paper.PHOTOGRAPH: 100.0, paper.DECODE: 500.0, paper.INDEX: 124.0}
    listing = {paper.LISTING: {paper.WHOLE: Figure(1.5, "GB")}}
    rows = dict(paper.plan_rows({name: {paper.MEASURED: Figure(value)} for name, value in names.items()}, listing))
    assert rows["bytes in the bucket"] == "100 TB"
    assert rows["parquet files of 1.00 GB"] == "100,000 of 10,000 rows"
    assert rows["index, once in the object store for all workers"] == "34.0 MB"  # 100,000 x 100 + 1,000,000 x 24 bytes
    assert rows["decoding on one core"] == "23.1 days"
    assert rows["cores that decode meanwhile"] == "128: 2.00 for each GPU"
    assert rows["instead 10,000,000 single image files: peak memory of listing"] == "1.50 GB"


def test_the_plan_of_features_follows_the_measured_rates() -> None:
    images = {paper.PHOTOGRAPH: 100.0, paper.DECODE: 500.0}
    features = {paper.TRAINED: 200_000.0}
    for views, (size, rate) in zip(paper.VIEWS, [(1000.0, 400_000.0), (3000.0, 100_000.0)], strict=True):
        features |= {paper.ROW_BYTES.format(views): size, paper.ROW_RATE.format(views): rate}
    rates = [{name: {paper.MEASURED: Figure(value)} for name, value in given.items()} for given in (images, features)]
    rows = {row[0]: row[1:] for row in paper.features_rows(*rates)}
    assert rows["bytes in the bucket"] == ("100 TB", "1.00 TB", "3.00 TB")
    assert rows["parts of 8,192 rows"] == ("", "122,070 of 8.19 MB", "122,070 of 24.6 MB")
    assert rows["written once, by 64 GPUs that take 1,000 images/s"] == ("", "4.34 hours", "13.0 hours")
    assert rows["reading a pass on one core"] == ("23.1 days", "41.7 minutes", "2.78 hours")
    assert rows["the steps of a pass on one core, `dpl`, B = 448"] == ("", "1.59 hours", "1.59 hours")


def test_text_around_tables_stays_and_a_table_is_replaced_once() -> None:
    text = "a\n<!-- results: one -->\nold\n<!-- /results -->\nb\n"
    new, differ = results.update(text, lambda name: f"| {name} |")
    assert (new, differ) == ("a\n<!-- results: one -->\n\n| one |\n\n<!-- /results -->\nb\n", ["one"])
    assert results.update(new, lambda name: f"| {name} |") == (new, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results: first-runs -->\n", "must stand between"),
        ("<!-- results: nothing -->\n<!-- /results -->", "no table of results is called nothing; known: .*first-runs"),
        ("<!-- results: bench/nothing -->\n<!-- /results -->", "is called bench/nothing; known: .*bench/views"),
    ],
)
def test_a_mark_without_end_or_of_no_table_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        results.update(text)


def test_the_documents_are_as_the_command_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main(["--check"]) == 0, capsys.readouterr().err


def test_a_row_that_was_taken_out_is_noticed_and_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").touch()
    page = tmp_path / "docs" / "RESULTS.md"
    page.parent.mkdir()
    shutil.copy(results.ROOT / "docs" / "RESULTS.md", page)
    whole = page.read_text()
    page.write_text(re.sub(r"^\| dpl \|.*\n", "", whole, count=1, flags=re.MULTILINE))
    assert page.read_text() != whole
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.main(["--check"]) == 1
    assert re.search(r"docs/RESULTS.md: .*: policies/digits-2$", capsys.readouterr().err.strip())
    assert results.main([]) == 0
    assert page.read_text() == whole


def test_every_measurement_is_of_code_that_a_commit_has() -> None:
    found = {path.stem: Measurement.load(path.stem).commit for path in FOLDER.glob("*.json")}
    assert len(found) > 20
    assert [name for name, commit in found.items() if not re.fullmatch("[0-9a-f]{7,}", commit)] == []


def test_the_house_is_counted_at_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, lines in {"a.py": 2, "one/b.py": 1000, "one/deep/c.py": 4, "one/d.yaml": 8, "two/e.py": 1}.items():
        (tmp_path / "dpl_ray" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dpl_ray" / name).write_text("pass\n" * lines)
    house.git("init", "--quiet")
    house.git("add", ".")
    house.git("-c", "user.name=A", "-c", "user.email=a@b", "commit", "--quiet", "--message=x")
    (tmp_path / "dpl_ray" / "a.py").unlink()
    row = house.measure("HEAD")
    row[0] = "1234567"  # a commit may look like a number
    assert row[2:] == ["1007", "2", "1000", "1"]
    shown = house.house([dict(zip(house.COLUMNS, row, strict=True))]).splitlines()[-1]
    assert shown == f"| {row[0]} | {row[1]} | 1,007 | 2 | 1,000 | 1 |"


def test_every_measurement_and_every_table_stands_in_a_document() -> None:
    shown = {found["name"] for page in results.documents() for found in results.BLOCK.finditer(page.read_text())}
    assert shown == set(results.known())


def test_ways_to_choose_images_are_set_beside_random_ones_seed_by_seed() -> None:
    accuracies = {
        "random": {"0": ("0.5", "0.6"), "1": ("0.5", "0.8")},
        "suggest": {"0": ("0.5", "0.7"), "1": ("0.5", "0.78")},
    }
    rows = [
        {"data": "digits", "way": way, "seed": seed, "round": str(number), "accuracy": accuracy}
        for way, seeds in accuracies.items()
        for seed, found in seeds.items()
        for number, accuracy in enumerate(found)
    ]
    assert tables.suggestions(rows).splitlines()[2:] == [
        "| digits | random | 50.0 | 70.0 ± 14.1 | - | - |",
        "| digits | suggest | 50.0 | 74.0 ± 5.7 | +4.0 | 1 of 2 |",
    ]


def test_a_policy_that_ends_below_supervised_in_one_setting_is_not_recommended() -> None:
    accuracies = {"supervised": ("0.50", "0.60"), "good": ("0.51", "0.61"), "bad": ("0.90", "0.59")}
    rows = [
        result(policy, 0, accuracy, setting=setting)
        for policy, pair in accuracies.items()
        for setting, accuracy in zip(("one", "two"), pair, strict=True)
    ]
    assert backbones.choice(rows).splitlines()[2:4] == [
        "| bad | +40.00 | -1.00 | below supervised |",
        "| good | +1.00 | +1.00 | recommended |",
    ]
    assert backbones.sentence(rows).endswith(": `good`. Not recommended: `bad` ends below it in two.")


def test_the_command_line_recommends_on_features_what_the_results_do_and_the_default_is_among_it() -> None:
    results = tables.read("frozen")
    good = [policy for policy in backbones.differences(results) if policy not in backbones.below(results)]
    assert f"Recommended policies: {', '.join(good)}." in list_groups()["data"]["features"]
    assert Config().policy.name in good


def test_every_way_has_a_row_with_its_pixels_and_minutes_over_the_subsets_of_all_policies() -> None:
    policies = dict(zip(backbones.POLICIES, ("0.2", "0.3", "0.4", "0.5"), strict=True))
    frozen = [result(policy, 0, accuracy, setting="cifar10-4") for policy, accuracy in policies.items()]
    own = {"way": "fine-tuned", "pixels": "64", "pool": "9000", "core_seconds": "90", "accuracy": "0.6"}
    tuned = [row | own for row in [*frozen, result("dpl", 1, "", setting="cifar10-4")]]
    features = {backbones.EMBEDDING: {"one core": Figure(50)}, backbones.TRAINING: {"one core": Figure(9)}}
    assert backbones.ways(backbones.collect(frozen, tuned, []), features).splitlines()[2:] == [
        "| cifar10-4 | frozen | 96 | 9,960 | 1 | 20 | 0.1, and 3 for all features once | 20.0 | 30.0 | 40.0 | 50.0 |",
        "| cifar10-4 | fine-tuned | 64 | 9,000 | 1 | 20 | 1.5 | 60.0 | 60.0 | 60.0 | 60.0 |",
        "",
        "The most accurate way of each: cifar10-4: fine-tuned, by `supervised` (60.0, labelled subsets: 1).",
    ]
