"""What the subcommands print: progress on stderr, artifacts on stdout, and results to a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from destseg_deploy.cli.console import progress, say
from destseg_deploy.cli.result_option import is_result
from destseg_deploy.environment import describe_environment
from destseg_deploy.files import refuse_others, replacing
from destseg_deploy.runtime.trt.record import built_by
from destseg_deploy.spec import EngineRecord, ModelSpec, QuantizationRecord

STEPS = 1000
"""Of a builder's progress bar."""


def report(line: str) -> None:
    """Print a line about progress, on stderr."""
    say(line, err=True)


class Bar:
    """A progress bar that appears with the first step and goes with the last one.

    Lines may be printed before and after it, which a bar that is always there would break.
    """

    def __init__(self, label: str) -> None:
        """Show nothing yet."""
        self._label = label
        self._shown = ExitStack()
        self._advance: Callable[[int, int, str], None] | None = None
        self._closed = False

    def steps(self, done: int, total: int, text: str) -> None:
        """Show the steps done, all of them, and a remark."""
        if self._closed:
            return
        if self._advance is None:
            self._advance = self._shown.enter_context(progress(self._label))
        self._advance(done, total, text)
        if done >= total:
            self.close()

    def share(self, stage: str, share: float) -> None:
        """Show a stage, and the share of the whole that is done, 0 to 1."""
        self.steps(int(share * STEPS), STEPS, stage)

    def close(self) -> None:
        """Take the bar away for good; a second call does nothing."""
        self._closed = True
        self._shown.close()


def write_result(output: Path | None, result: Mapping[str, Any]) -> None:
    """Write a study's result with the environment that made it, as JSON, where a file is named."""
    if output is not None:
        text = json.dumps({"environment": describe_environment(), **result}, indent=2)
        refuse_others([output], is_result)
        with replacing(output) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def tell(path: Path, spec: ModelSpec) -> None:
    """Print what was written."""
    if spec.engine is not None:
        lines = engine_lines(spec.engine)
        say(f"engine   {path}")
        say(f"fits     {lines['fits']}")
        say(f"half     {lines['half']}")
    else:
        height, width = spec.size
        say(f"model    {path}")
        say(f"input    {spec.input.name}: uint8 (N, {height}, {width}, 3) RGB")
        say(f"batch    {spec.input.batch}")
    say(f"parity   {parity_line(spec)}")


def parity_line(spec: ModelSpec) -> str:
    """Say in a line what was measured, and on which file."""
    parity, made = spec.parity, spec.quantization
    if parity is None:
        return "not an export" if made is None else _accuracy_line(made)
    line = (
        f"map {parity.map_max_abs:.1e}, score {parity.score_max_abs:.1e} on {parity.count} "
        f"{parity.images} (another image's map: {parity.control:.1e})"
    )
    if parity.rounding is not None:
        line += f", {parity.rounding}"
    if spec.kind == "engine" and parity.compared != spec.artifact.file:
        line = f"of {parity.compared}, the engine was not run: {line}"
    return line


def _accuracy_line(made: QuantizationRecord) -> str:
    line = f"{len(made.layers)} layers in int8"
    if made.drop is None:
        return line
    return f"{line}, {made.drop:.2f} points of accuracy lost on {made.count} {made.images}"


def engine_lines(record: EngineRecord) -> dict[str, str]:
    """Say what an engine is and where it runs: name -> line."""
    gpu = f" ({record.gpu})" if record.gpu else ""
    flags = ", ".join(record.flags) or "none"
    return {
        "fits": f"{', '.join(record.targets)}{gpu}, {built_by(record)}",
        "half": f"{record.half_convolutions} of {record.convolutions} convolutions, read from the "
        f"{record.precision_source}",
        "flags": f"{flags}; built in {record.build_seconds:.1f} s",
    }
