"""What the subcommands print about artifacts."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from destseg_deploy.console import progress
from destseg_deploy.runtime.engine_record import EngineRecord
from destseg_deploy.spec import ModelSpec

STEPS = 1000
"""Of a builder's progress bar."""


def report(line: str) -> None:
    """Print a line about progress, on stderr."""
    click.echo(line, err=True)


class BuildBar:
    """A builder's stage and share on a terminal: appears with the first, goes with the last."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._shown = ExitStack()
        self._advance: Callable[[int, int, str], None] | None = None
        self._done = False

    def __call__(self, stage: str, share: float) -> None:
        """Show a stage, and the share of the whole that is done, 0 to 1."""
        if self._done:
            return
        if self._advance is None:
            self._advance = self._shown.enter_context(progress("building"))
        self._advance(int(share * STEPS), STEPS, stage)
        if share >= 1:
            self.close()

    def close(self) -> None:
        """Take the bar away; a second call does nothing."""
        self._done = True
        self._shown.close()


def tell(path: Path, spec: ModelSpec) -> None:
    """Print what was written."""
    if spec.kind == "engine":
        _tell_engine(path, spec)
    else:
        height, width = spec.size
        click.echo(f"model    {path}")
        click.echo(f"input    {spec.input.name}: uint8 (N, {height}, {width}, 3) RGB")
        click.echo(f"batch    {spec.input.batch}")
    click.echo(f"parity   {parity_line(spec.parity)}")


def parity_line(parity: dict[str, Any]) -> str:
    """Say in a line what a comparison measured, and of what."""
    largest, score, control = (
        f"{parity.get(name, math.nan):.1e}" for name in ("map_max_abs", "score_max_abs", "control")
    )
    where = f"{parity.get('count')} {parity.get('images')}"
    line = f"map {largest}, score {score} on {where} (another image's map: {control})"
    if "rounding" in parity:
        line += f", {parity['rounding']}"
    if parity.get("engine_run") is False:
        line = f"of {parity.get('compared')}, the engine was not run: {line}"
    return line


def engine_lines(record: EngineRecord) -> dict[str, str]:
    """Say what an engine is and where it runs: name -> line."""
    gpu = f" ({record.gpu})" if record.gpu else ""
    flags = ", ".join(record.flags) or "none"
    return {
        "fits": f"{', '.join(record.targets)}{gpu}, {record.built_by}",
        "half": f"{record.half_convolutions} of {record.convolutions} convolutions, read from the "
        f"{record.precision_source}",
        "flags": f"{flags}; built in {record.build_seconds:.1f} s",
    }


def _tell_engine(path: Path, spec: ModelSpec) -> None:
    lines = engine_lines(EngineRecord.of(spec))
    click.echo(f"engine   {path}")
    for name in ("fits", "half"):
        click.echo(f"{name:<9}{lines[name]}")
