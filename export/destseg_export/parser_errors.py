"""What TensorRT's ONNX parser refuses, said with the node, its operator and what to change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CAUSES: tuple[tuple[Callable[[str, str], bool], str], ...] = (
    (
        lambda operator, said: operator == "Resize" and "ntialias" in said,
        "An antialiased resize must be two matrix products, which is how destseg-export writes it",
    ),
    (
        lambda operator, said: "UInt8" in said or "UINT8" in said,
        "Pixels must be cast before anything else touches them: Cast to float first",
    ),
    (
        lambda operator, said: "must have same" in said and "type" in said,
        "Networks are strongly typed: cast one input, or convert the fp32 graph with --precision",
    ),
    (
        lambda operator, said: "lugin" in said,
        "This TensorRT has no such operator: compute that part on the host, behind the model",
    ),
    (
        lambda operator, said: not operator,
        "The file is no ONNX model that this TensorRT reads: export it again",
    ),
)
"""Whether an error of an operator has a cause, and what to do about it; the first that fits."""
OTHERWISE = "Export with destseg-export, whose graphs every builder takes, or change this node"


def describe_parser_errors(parser: Any) -> str:
    """Say what a parser that failed found wrong first, with what to change.

    Args:
        parser: An ``OnnxParser`` whose ``num_errors`` is above 0, or which gave no reason.
    """
    if not parser.num_errors:
        return f"TensorRT's parser gave no reason. {OTHERWISE}."
    error = parser.get_error(0)
    said, operator = " ".join(error.desc().split("\n[")[0].split()), error.node_operator()
    where = f"node {error.node_name() or error.node()} ({operator}): " if operator else ""
    return f"{where}{said[:300].rstrip('.')}. {advice(operator, said)}."


def advice(operator: str, said: str) -> str:
    """Return what to change about an operator of which the parser said something."""
    return next((what for fits, what in CAUSES if fits(operator, said)), OTHERWISE)
