"""The tensors of a server's answer, whatever carried them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def add_tensor(
    found: dict[str, NDArray[np.float32]], name: str, values: NDArray[Any], shape: Sequence[int]
) -> None:
    """Add an output to those that were read, as float32.

    Raises:
        ValueError: If it was read before, holds anything but numbers, or does not fill its shape.
    """
    if name in found:
        raise ValueError(f"output {name!r} is there twice")
    if values.dtype.kind not in "fiu":  # NumPy makes a number of true, and of "0.2"
        raise ValueError(f"output {name!r} holds what is no number")
    if math.prod(shape) != values.size:
        raise ValueError(f"output {name!r} has {values.size} values for the shape {shape}")
    # A copy: the bytes are read-only, and their order is the server's.
    found[name] = np.array(values.reshape(tuple(shape)), np.float32)
