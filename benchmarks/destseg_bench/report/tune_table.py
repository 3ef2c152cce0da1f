"""The table of a tuning: what was tried, and what was taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from destseg_bench.speed.tune import Trial
from destseg_bench.table import NOTHING, Column, Table, number
from destseg_deploy.tuning import Tuning


def tune_table(artifact: Path, tuning: Tuning, trials: Sequence[Trial]) -> Table:
    """Return what was tried with an artifact; what was taken is marked."""
    last = {one.choice: one for one in trials if not one.skipped}  # the second stage's counts

    def mark(one: Trial) -> str:
        return "taken" if one is last.get(tuning.choice) else ""

    columns: tuple[Column, ...] = (
        ("choice", lambda one: str(one.choice)),
        ("stage", lambda one: one.stage),
        ("ms", lambda one: NOTHING if one.skipped else number(one.milliseconds, 2)),
        ("times the default's", _ratio),
        ("", mark),
    )
    size = tuning.measured
    cameras = f", {size.cameras} cameras" if size.cameras > 1 else ""
    title = f"{artifact.name} on {tuning.machine.cpu}, batch {size.batch}{cameras}: {tuning.choice}"
    notes = [f"{one.choice} skipped: {one.skipped}" for one in trials if one.skipped]
    gain = (
        f"{size.times_faster:.2f} times as fast as without options ({size.milliseconds:.1f} ms "
        f"instead of {size.default_milliseconds:.1f} ms)."
    )
    return Table.of(title, columns, trials, (*dict.fromkeys(notes), gain))


def _ratio(one: Trial) -> str:
    if one.ratio is None:
        return NOTHING
    return f"{one.ratio.median:.2f} ({one.ratio.low:.2f} to {one.ratio.high:.2f})"
