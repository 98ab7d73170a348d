"""What a comparison writes: the tables and the page made of its finished cells.

<run.storage_path>/<run.name>/
  comparison.json  what all cells share, a digest of the data, the command
  <cell>/          dpl_ray/studies/comparison/cells.py
  comparison.csv   a row per cell          comparison.md  a row per policy          comparison.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dpl_ray.config.section import shown
from dpl_ray.page.markdown import markdown, markdown_facts
from dpl_ray.report.curves import curve_split
from dpl_ray.runs.folder import COMPARISON_FILE, default_tree, differences
from dpl_ray.runs.kept_config import read_kept
from dpl_ray.store.records import read_tree
from dpl_ray.store.storage import Storage
from dpl_ray.studies.comparison.cells import Cell, CellResult, read_cells
from dpl_ray.studies.comparison.page import make_page
from dpl_ray.studies.comparison.table import Row, make_rows, to_csv, to_markdown
from dpl_ray.studies.facts import listed_facts


def write_comparison(folder: str, reference: str, *, missing: Mapping[str, str] | None = None) -> list[Row]:
    """Write comparison.csv, .md and .html of the cells that have finished; returns a row per policy, the best first.

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
    check_policies(place.name, [found.cell for found in cells])
    rows = make_rows(cells, reference)
    config = read_kept(place / cells[0].cell.name)
    config["train"] = default_tree("")["train"] | config["train"]  # where an older version did not know a field
    missing, described = missing or {}, _describe(place, cells, config)
    num_test = cells[0].facts.get("data.num_test")
    curve_of = curve_split(config["train"]["curve_images"], int(num_test)) if num_test else "the test split"
    page = make_page(place.name, cells, rows, reference, described, missing, curve_of)
    page.write(place / "comparison.html")
    (place / "comparison.csv").write(to_csv(cells, reference).encode())
    markdown_text = to_markdown(rows, reference, _header(place.name, described, missing))
    (place / "comparison.md").write(markdown_text.encode())
    return rows


def check_policies(name: str, cells: Iterable[Cell]) -> None:
    """Refuse a label that stands for two policies: it leaves out the defaults of its time, which may have changed."""
    first: dict[str, Cell] = {}
    for cell in cells:
        other = first.setdefault(cell.label, cell)
        defaults = default_tree(cell.policy["name"])["policy"]
        if found := differences(defaults | other.policy, defaults | cell.policy, (), {}):
            key, before, now = min(found, key=lambda difference: difference[0])
            raise ValueError(
                f"run.name={name}: {cell.label} has {key}={shown(before)} with seed {other.seed} and "
                f"{key}={shown(now)} with seed {cell.seed}, which is not one policy (its defaults have changed since); "
                "take another run.name"
            )


def _header(name: str, described: Mapping[str, str], missing: Mapping[str, str]) -> list[str]:
    """The lines above the table in Markdown."""
    lost = [f"- missing: {markdown(cell)} ({markdown(' '.join(cause.split()))})" for cell, cause in missing.items()]
    return [f"# {markdown(name)}", "", *markdown_facts(described), *lost]


def _describe(place: Storage, cells: Sequence[CellResult], config: dict[str, Any]) -> dict[str, str]:
    """What the table was measured with, as the cells say it; `config` is that of the first one."""
    info = place / COMPARISON_FILE
    command = read_tree(info)["command"] if info.exists() else None
    first = cells[0]
    train, data = config["train"], config["data"]["name"]
    facts = listed_facts([cell.facts for cell in cells])
    pools = ", ".join(dict.fromkeys(cell.facts["data.pool"] for cell in cells if "data.pool" in cell.facts))
    described = {
        "data": f"{data}, {facts['data.num_labeled']} labelled images of {facts['data.num_classes']} classes, "
        f"{facts['data.num_unlabeled']} in the pool, {facts['data.num_test']} test; of a subset all policies have "
        "the same labelled images, and with a seed the same initial weights and order of batches",
        "training": f"{first.steps:,} steps of {train['batch_size']} labelled and "
        f"{train['batch_size'] * train['mu']} unlabelled images, {train['precision']}, {config['model']['name']}",
        "subsets": ", ".join(dict.fromkeys(str(cell.subset) for cell in cells)),
        "seeds": ", ".join(dict.fromkeys(str(cell.seed) for cell in cells)),
        "hardware": f"{facts['hardware']}; a cell on {facts['device']}",
        "versions": facts["versions"],
    }
    benchmark = {"pool made for a benchmark": pools} if pools else {}
    return ({"command": command} if command else {}) | described | benchmark
