"""Checks of single values; ``where`` is the file and the entry, for the error.

Each raises ``SpecError`` in one line with the value and what was expected. The C++ library has the
same checks in ``cpp/src/spec.cpp``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import SpecError
from destseg_deploy.spec.reading import show

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
"""Characters that move a terminal's cursor or end a line."""

RESTORE = "Restore it or export again."
SET_AGAIN = (
    'Write "threshold": null into the file, then set it again: destseg-threshold ARTIFACT '
    "--good FOLDER"
)


ROUNDING = 1e-5
"""How far outside of [0, 1] rounding may leave an answer: interpolation's weights in float32 sum
to 1 within 1e-6."""


def are_answers(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which values are in [0, 1], within ``ROUNDING``; NaN is not."""
    # NaN is neither above nor below anything, so the comparison asks for what is right.
    return np.asarray((values >= -ROUNDING) & (values <= 1 + ROUNDING))


def check_count(value: int, least: int, most: int, where: str) -> None:
    """Refuse a whole number out of a range."""
    if not least <= value <= most:
        raise SpecError(f"{where} is {show(value)}, expected {least} to {most}. {RESTORE}")


def check_share(value: float, where: str) -> None:
    """Refuse a number outside of [0, 1], where scores and map values lie."""
    if not 0 <= value <= 1:
        raise SpecError(
            f"{where} is {show(value)}, expected a number from 0 to 1, as scores are. {SET_AGAIN}"
        )


def check_choice(value: str, choices: Sequence[str], where: str) -> None:
    """Refuse a word that means nothing here."""
    if value not in choices:
        raise SpecError(f"{where} is {show(value)}, expected {' or '.join(choices)}. Export again.")


def check_text(value: str, where: str) -> None:
    """Refuse text that is empty or does not stay on its line."""
    if not value or CONTROL.search(value):
        raise SpecError(
            f"{where} is {show(value)}, expected text without control characters. {RESTORE}"
        )


def check_name(value: str, where: str, action: str = RESTORE) -> None:
    """Refuse what is not the plain name of a file: a path could lead out of the spec's folder."""
    if not value or value in (".", "..") or re.search(r"[/\\:]", value) or CONTROL.search(value):
        raise SpecError(f"{where} is {show(value)}, expected a plain file name. {action}")
