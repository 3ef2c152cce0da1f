"""Table S4's result as lines of text, each number beside the paper's."""

from __future__ import annotations

from typing import Any

BASE = "destseg-reference"
"""What the ratios are to: DeSTSeg as the paper measured it."""

PAPER_MINUTES, PAPER_MS = 51.2, 9.4


def s4_rows(systems: dict[str, Any]) -> list[list[str]]:
    """Return a row of cells for each system.

    Args:
        systems: As ``table_s4.measure_table`` returns.

    Returns:
        Name, parameters, GMAC, minutes, their ratio, the paper's, its ratio; milliseconds at
        batch 1, their ratio, the paper's, its ratio; milliseconds end to end. ``-`` where nothing
        was measured or the paper has nothing.
    """
    base = systems.get(BASE, systems.get("destseg", {}))
    return [_row(row, base) for row in systems.values() if "skipped" not in row]


HEADS = [
    "system",
    "M params",
    "GMAC",
    "train min",
    "ratio",
    "paper",
    "ratio",
    "ms",
    "ratio",
    "paper",
    "ratio",
    "file to answer ms",
]


def _row(row: dict[str, Any], base: dict[str, Any]) -> list[str]:
    paper = row["paper"] or {"training_minutes": "-", "inference_ms": "-"}
    random = ", random weights" if row["weights"] == "random" else ""
    return [
        f"{row['name']}{random}",
        f"{row['parameters_counted']:.1f}",
        f"{row['gmacs_counted']:.1f}",
        _number(minutes(row), 1),
        _ratio(minutes(row), minutes(base)),
        paper["training_minutes"],
        _paper_ratio(paper["training_minutes"], PAPER_MINUTES),
        _number(milliseconds(row, "model"), 1),
        _ratio(milliseconds(row, "model"), milliseconds(base, "model")),
        paper["inference_ms"],
        _paper_ratio(paper["inference_ms"], PAPER_MS),
        _number(milliseconds(row, "end to end"), 1),
    ]


def minutes(row: dict[str, Any]) -> float | None:
    """Return a system's training time in minutes; None if it was not timed."""
    training = row.get("training")
    return None if training is None else float(training["minutes"])


def milliseconds(row: dict[str, Any], stage: str, batch: int = 1) -> float | None:
    """Return the median of a stage by the host's clock; None if it was not timed."""
    timed = row.get("inference", {}).get(str(batch))
    return None if timed is None else float(timed["wall"][stage]["median"])


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _ratio(value: float | None, base: float | None) -> str:
    return "-" if value is None or not base else f"{value / base:.2f}x"


def _paper_ratio(text: str, base: float) -> str:
    """Return the ratio of a printed number, which may be a bound such as ``> 11.3``."""
    bound, _, number = text.rpartition(" ")
    return "-" if text == "-" else f"{bound} {float(number) / base:.2f}x".strip()


def artifact_rows(artifacts: list[dict[str, Any]]) -> list[str]:
    """Return a line for each artifact and batch size, compared with the first contender."""
    return [
        f"{row['name']}, batch {row['batch']}: skipped: {row['skipped']}"
        if "skipped" in row
        else f"{row['name']}, batch {row['batch']}: {row['median'] / row['batch']:.1f} ms per "
        f"image, {row['times_faster']:.2f}x the first"
        for row in artifacts
    ]
