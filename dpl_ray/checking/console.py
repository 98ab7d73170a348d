"""What the console shows of a check in full."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.checking.checked import Checked
from dpl_ray.checking.files import Header, kinds, sizes
from dpl_ray.checking.findings import show_findings
from dpl_ray.checking.timing import Timing
from dpl_ray.page.console import console_table, show

MAX_ROWS = 20  # classes in the table


def show_checked(checked: Checked, console: Console) -> None:
    """Images a class, kinds and sizes of files, what was found, and what the run will take."""
    splits, counts = checked.splits, checked.class_counts
    rows = [[name, *(f"{number:,}" for number in numbers)] for name, *numbers in counts[:MAX_ROWS]]
    if len(counts) > MAX_ROWS:
        rows.append([f"and {len(counts) - MAX_ROWS} more", "", "", ""])
    totals = (len(splits.labeled), len(splits.validation), len(splits.test))
    rows.append(["all", *(f"{number:,}" for number in totals)])
    title = f"Images a class; {checked.pool_size:,} in the pool"
    console.print(console_table(title, ["class", "labelled", "validation", "test"], rows))
    for field, headers in checked.headers.items():
        if headers:
            show(console, f"{field}, {len(headers):,} looked at: {told_files(headers)}", wraps=True)
    show_findings(console, checked.findings)
    if not checked.findings:
        show(console, "nothing is wrong with these data")
    if checked.timing:
        show(console, told_timing(checked.timing), wraps=True)


def told_files(headers: list[Header]) -> str:
    """Formats, modes and sizes, in a line."""
    found, pixels = kinds(headers), sizes(headers)
    what = "; ".join(f"{number:,} {kind}" for kind, number in found.most_common())
    return f"{what}; {pixels['smallest']} to {pixels['largest']} pixels, in the middle {pixels['median']}"


def described_time(seconds: float) -> str:
    """As `40 seconds`, `12 minutes` or `3.5 hours`."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            number = seconds / length
            return f"{number:.1f} {unit}" if number < 10 else f"{number:,.0f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 2 else f"{seconds:.1f} seconds"


def told_timing(timing: Timing) -> str:
    """What the run will take, in a sentence."""
    baseline = (
        f" and {1000 * timing.seconds_per_baseline_step:,.0f} ms of the baseline"
        if timing.seconds_per_baseline_step is not None
        else ""
    )
    return (
        f"{timing.num_steps:,} steps take some {described_time(timing.seconds)}, evaluations not counted: "
        f"{1000 * timing.seconds_per_step:,.0f} ms a step{baseline}, measured by {timing.num_measured} steps in this "
        f"process ({timing.place}); {timing.peak_bytes / 1e9:.1f} GB of memory"
    )
