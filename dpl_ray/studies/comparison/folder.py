"""The folder of a comparison: whether it may go on, and the tables and the page made of its finished cells.

<run.storage_path>/<run.name>/
  comparison.json  what all cells share, a digest of the data, the command
  <cell>/          dpl_ray/studies/comparison/cells.py
  comparison.csv   a row per cell          comparison.md  a row per policy          comparison.html
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dpl_ray.config.schema import shown
from dpl_ray.report.curves import curve_split
from dpl_ray.runs.folder import COMPARISON_FILE, check_kind, check_same, differences, writable_folder
from dpl_ray.store.storage import Storage
from dpl_ray.studies.comparison.cells import Cell, CellResult, read_cells
from dpl_ray.studies.comparison.page import make_page
from dpl_ray.studies.comparison.table import Row, make_rows, to_csv, to_markdown


@dataclass(frozen=True)
class Outputs:
    """What a comparison has come to."""

    rows: list[Row]
    csv: Storage
    markdown: Storage
    page: Storage


class ComparisonFolder:
    """The folder of a comparison, new or begun before; nothing is written until `begin`."""

    def __init__(self, storage_path: str, name: str, shared: dict[str, Any]) -> None:
        """
        Args:
            shared: what all cells have in common, as config.shared_tree says it.

        Raises:
            ValueError: it cannot be written, or something else of this name exists, or a comparison with another
                configuration.
        """
        self.name, self.storage = name, writable_folder(storage_path, name)
        check_kind(self.storage, COMPARISON_FILE)
        self.info: dict[str, Any] = {
            "command": None,
            "config": shared,
            "data": None,
        }
        self.resumed = (self.storage / COMPARISON_FILE).exists()
        if self.resumed:
            self.info |= json.loads((self.storage / COMPARISON_FILE).read())
            self._check_same(self.info["config"], shared)
            if not read_cells(str(self.storage)):
                self.info["data"] = None  # nothing has been learned from them: they may still be corrected

    def begin(self, command: str | None) -> None:
        """
        Args:
            command: that the table is to name as its origin; None leaves the one that is known.
        """
        self.info["command"] = command or self.info["command"]
        self.save_info()

    def finished(self, cell: Cell) -> CellResult | None:
        """What a cell has left, or None where it has not finished.

        Raises:
            ValueError: it was trained with other parameters of the policy.
        """
        begun = self.storage / cell.name / "config.yaml"
        if begun.exists():
            self._check_same({"policy": yaml.safe_load(begun.read())["policy"]}, {"policy": cell.policy})
        return CellResult.load(self.storage / cell.name)

    def check_policies(self, planned: Iterable[Cell]) -> None:
        """Refuse a label that stands for one policy in the finished cells and for another in those to be run."""
        _check_policies(self.name, [*(found.cell for found in read_cells(str(self.storage))), *planned])

    def check_data(self, seed: int, fingerprint: str, seedless_fingerprint: str) -> None:
        """Refuse to compare what the cells of this seed, or of any other, learned from other data."""
        changed = "trained on other data (the images or labels have changed since); take another run.name"
        for cell in read_cells(str(self.storage)):
            if cell.seed == seed and cell.facts["data.fingerprint"] != fingerprint:
                raise ValueError(f"run.name={self.name}: {cell.label} with seed {seed} was {changed}")
        # Another seed has another labelled subset, and so another fingerprint, of the same data too.
        self.info["data"] = self.info["data"] or seedless_fingerprint
        if self.info["data"] != seedless_fingerprint:
            raise ValueError(f"run.name={self.name}: the cells of other seeds than {seed} were {changed}")

    def write_error(self, cell: Cell, error: Exception) -> None:
        """Say in the folder of a cell why it has not finished."""
        (self.storage / cell.name / "error.txt").write(str(error).encode())

    def remove_error(self, cell: Cell) -> None:
        """The cell has finished since, or had finished when the news of it was lost."""
        (self.storage / cell.name / "error.txt").remove()

    def save_info(self) -> None:
        (self.storage / COMPARISON_FILE).write(json.dumps(self.info, indent=1).encode())

    def _check_same(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        # Nothing is free here: the fields that may differ have been left out of both.
        check_same(self.name, "comparison", old, new, free=())


def write_comparison(folder: str, reference: str, *, missing: Mapping[str, str] | None = None) -> Outputs:
    """Write the tables and the page of the cells that have finished.

    Args:
        folder: of the comparison.
        reference: label of the policy that the others are compared to.
        missing: name of a cell that has not finished -> why.

    Raises:
        ValueError: no cell has finished, or two policies have the same label.
    """
    place, cells = Storage(folder), read_cells(folder)
    if not cells:
        raise ValueError(f"{folder}: no cell of this comparison has finished")
    _check_policies(place.name, [found.cell for found in cells])
    rows = make_rows(cells, reference)
    outputs = Outputs(rows, place / "comparison.csv", place / "comparison.md", place / "comparison.html")
    config = yaml.safe_load((place / cells[0].cell.name / "config.yaml").read())
    missing, described = missing or {}, _describe(place, cells, config)
    curve_of = curve_split(config["train"]["curve_images"], int(cells[0].facts["data.num_test"]))
    outputs.csv.write(to_csv(cells, reference).encode())
    outputs.markdown.write(to_markdown(rows, reference, _header(place.name, described, missing)).encode())
    page = make_page(place.name, cells, rows, reference, described, missing, curve_of)
    outputs.page.write(page.render().encode())
    return outputs


def _check_policies(name: str, cells: Iterable[Cell]) -> None:
    """A label leaves out the defaults of its time: where they have changed since, it names two policies."""
    first: dict[str, Cell] = {}
    for cell in cells:
        other = first.setdefault(cell.label, cell)
        if found := differences(other.policy, cell.policy, free=()):
            key, before, now = min(found, key=lambda difference: difference[0])
            raise ValueError(
                f"run.name={name}: {cell.label} has {key}={shown(before)} with seed {other.seed} and "
                f"{key}={shown(now)} with seed {cell.seed}, which is not one policy (its defaults have changed since); "
                "take another run.name"
            )


def _header(name: str, described: Mapping[str, str], missing: Mapping[str, str]) -> list[str]:
    """The lines above the table in Markdown."""
    lines = [f"# {name}", ""]
    for key, value in described.items():
        lines += [f"    {value}", ""] if key == "command" else [f"- {key}: {value}"]
    return lines + [f"- missing: {cell} ({' '.join(cause.split())})" for cell, cause in missing.items()]


def _describe(place: Storage, cells: Sequence[CellResult], config: dict[str, Any]) -> dict[str, str]:
    """What the table was measured with, as the cells say it; `config` is that of the first one."""
    info = place / COMPARISON_FILE
    command = json.loads(info.read())["command"] if info.exists() else None
    first = cells[0]
    train, data = config["train"], config["data"]["name"]
    facts = {key: _listed(cell.facts[key] for cell in cells) for key in first.facts}
    versions = [f"{key.removeprefix('version.')} {value}" for key, value in facts.items() if key.startswith("version.")]
    return ({"command": command} if command else {}) | {
        "data": f"{data}, {facts['data.num_labeled']} labelled images of {facts['data.num_classes']} classes, "
        f"{facts['data.num_unlabeled']} in the pool, {facts['data.num_test']} test; with a seed all policies have "
        "the same labelled images, initial weights and order of batches",
        "training": f"{first.steps:,} steps of {train['batch_size']} labelled and "
        f"{train['batch_size'] * train['mu']} unlabelled images, {train['precision']}, {config['model']['name']}",
        "seeds": _listed(str(cell.seed) for cell in cells),
        "hardware": f"{facts['hardware']}; a cell on {facts['device']}",
        "versions": f"{', '.join(versions)}; commit {facts['commit']}",
    }


def _listed(values: Any) -> str:
    return ", ".join(dict.fromkeys(values))
