"""What the tables of a study were measured with, as its cells say it (`dpl_ray.runs.provenance.describe_run`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

UNKNOWN = "unknown"  # a fact that the version which trained a cell did not keep


def listed_facts(cells: Sequence[Mapping[str, str]]) -> Mapping[str, str]:
    """Fact -> its values in all cells, since a study may go on elsewhere; of any fact that no cell has, unknown.

    The fact `versions` is all of those of packages, and the commit.
    """
    keys = dict.fromkeys(key for facts in cells for key in facts)
    found = defaultdict(
        lambda: UNKNOWN,
        {key: ", ".join(dict.fromkeys(facts.get(key, UNKNOWN) for facts in cells)) for key in keys},
    )
    packages = [f"{key.removeprefix('version.')} {found[key]}" for key in keys if key.startswith("version.")]
    found["versions"] = f"{', '.join(packages)}; commit {found['commit']}"
    return found
