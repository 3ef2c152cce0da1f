"""Result files that are valid at any moment: written anew after each part, with what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from destseg_deploy.atomic import replacing
from destseg_deploy.errors import DataError


def result_writer(
    output: Path | None, head: dict[str, Any], *, planned: int
) -> Callable[[dict[str, Any]], None]:
    """Return a function that writes the rows so far.

    Args:
        output: JSON file; None to write nothing.
        head: What the file says before its ``systems``.
        planned: Rows that it has when ``complete``.
    """

    def write(systems: dict[str, Any]) -> None:
        if output is not None:
            write_result(output, {**head, "complete": len(systems) == planned, "systems": systems})

    return write


def write_result(output: Path, result: dict[str, Any]) -> None:
    """Write a result under a temporary name and rename it.

    Raises:
        OSError: If it cannot be written.
    """
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        DataError: If it is not there, is no JSON, or says nothing of where it comes from.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Expected JSON that destseg-bench wrote.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON ({error}). Measure again with destseg-bench.") from error
    if not isinstance(found, dict) or "environment" not in found:
        raise DataError(f"{path}: no result of destseg-bench: it has no 'environment'.")
    return found


def require_rows(systems: dict[str, Any]) -> None:
    """Refuse a result in which every system was skipped.

    Raises:
        DataError: With each system's reason.
    """
    if all("skipped" in row for row in systems.values()):
        reasons = "; ".join(f"{name}: {row['skipped']}" for name, row in systems.items())
        raise DataError(f"nothing was measured. {reasons}")
