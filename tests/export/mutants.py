"""Wrong graphs of the shared 64 x 64 network: mistakes that an exporter or a hand could make."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

Mutant = Callable[[onnx.ModelProto], None]


def _weights(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the weights of the convolutions, in the order of the graph."""
    named = {tensor.name: tensor for tensor in proto.graph.initializer}
    convs = [node for node in proto.graph.node if node.op_type == "Conv"]
    return [named[node.input[1]] for node in convs if node.input[1] in named]


def _change(tensor: onnx.TensorProto, change: Callable) -> None:
    value = numpy_helper.to_array(tensor)
    changed = change(np.array(value, np.float32)).astype(value.dtype)  # half stays half
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))


def _layer(place: float, change: Callable) -> Mutant:
    """Return a mutant that changes one convolution; ``place`` is its share of the depth."""

    def mutate(proto: onnx.ModelProto) -> None:
        weights = _weights(proto)
        _change(weights[round(place * (len(weights) - 1))], change)

    return mutate


def _without_channel(value: np.ndarray) -> np.ndarray:
    value[np.abs(value).sum(axis=(1, 2, 3)).argmax()] = 0
    return value


def _int8(value: np.ndarray) -> np.ndarray:
    step = np.abs(value).max() / 127
    return np.round(value / step) * step


def _int8_everywhere(proto: onnx.ModelProto) -> None:
    for tensor in _weights(proto):
        _change(tensor, _int8)


def _channels(order: list[int], *, invert: bool = False) -> Mutant:
    def mutate(proto: onnx.ModelProto) -> None:
        proto.graph.initializer.append(numpy_helper.from_array(np.array(order), "order"))
        name = proto.graph.input[0].name
        for node in proto.graph.node:
            node.input[:] = ["swapped" if value == name else value for value in node.input]
        proto.graph.node.insert(0, helper.make_node("Gather", [name, "order"], ["swapped"], axis=3))

    return mutate


def _on_map(operator: str, value: np.ndarray) -> Mutant:
    """Return a mutant whose map goes through Mul, Add, Min or Max with a constant (1, H, W)."""

    def mutate(proto: onnx.ModelProto) -> None:
        proto.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), "wrong"))
        name = proto.graph.output[0].name
        for node in proto.graph.node:
            node.output[:] = ["right" if value == name else value for value in node.output]
            node.input[:] = ["right" if value == name else value for value in node.input]
        proto.graph.node.append(helper.make_node(operator, ["right", "wrong"], [name]))

    return mutate


def _hole(row: int, column: int, side: int = 4) -> Mutant:
    mask = np.ones((1, 64, 64))
    mask[:, row : row + side, column : column + side] = 0
    return _on_map("Mul", mask)


def _edge(rows: slice, columns: slice) -> Mutant:
    mask = np.ones((1, 64, 64))
    mask[:, rows, columns] = 0
    return _on_map("Mul", mask)


def _stuck(value: float, row: int, column: int) -> Mutant:
    """Return a mutant of which a region of 4 x 4 cannot fall below a value."""
    floor = np.zeros((1, 64, 64))
    floor[:, row : row + 4, column : column + 4] = value
    return _on_map("Max", floor)


def _moved(axis: int, order: Sequence[int]) -> Mutant:
    """Return a mutant whose map has its rows (axis 1) or columns (axis 2) in another order."""

    def mutate(proto: onnx.ModelProto) -> None:
        proto.graph.initializer.append(numpy_helper.from_array(np.array(order), "wrong"))
        name = proto.graph.output[0].name
        for node in proto.graph.node:
            node.output[:] = ["right" if value == name else value for value in node.output]
            node.input[:] = ["right" if value == name else value for value in node.input]
        proto.graph.node.append(helper.make_node("Gather", ["right", "wrong"], [name], axis=axis))

    return mutate


def _resize(**changed: str) -> Mutant:
    def mutate(proto: onnx.ModelProto) -> None:
        for node in proto.graph.node:
            if node.op_type == "Resize":
                kept = [a for a in node.attribute if a.name not in changed]
                del node.attribute[:]
                node.attribute.extend(kept)
                node.attribute.extend(helper.make_attribute(k, v) for k, v in changed.items())

    return mutate


PLACES = (0.0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
MUTANTS: dict[str, Mutant] = {
    **{f"layer {p} x 1.02": _layer(p, lambda value: value * 1.02) for p in PLACES},
    **{f"layer {p} x 0.9": _layer(p, lambda value: value * 0.9) for p in PLACES},
    **{f"layer {p} without a channel": _layer(p, _without_channel) for p in PLACES[:-1]},
    **{f"layer {p} in int8": _layer(p, _int8) for p in PLACES},
    "all layers in int8": _int8_everywhere,
    "BGR": _channels([2, 1, 0]),
    "GRB": _channels([1, 0, 2]),
    "RBG": _channels([0, 2, 1]),
    "red for all": _channels([0, 0, 0]),
    "no blue": _channels([0, 1, 1]),
    **{f"a hole at {r}, {c}": _hole(r, c) for r in (0, 29, 60) for c in (0, 31, 60)},
    "a pixel": _hole(17, 42, side=1),
    "no top": _edge(slice(0, 1), slice(None)),
    "no bottom": _edge(slice(63, 64), slice(None)),
    "no left": _edge(slice(None), slice(0, 1)),
    "no right": _edge(slice(None), slice(63, 64)),
    "stuck at 0.43": _stuck(0.43, 8, 50),
    "stuck at 0.1": _stuck(0.1, 40, 8),
    "map x 1.02": _on_map("Mul", np.full((1, 1, 1), 1.02)),
    "map x 0.98": _on_map("Mul", np.full((1, 1, 1), 0.98)),
    "map mirrored": _moved(2, range(63, -1, -1)),
    "map one pixel to the right": _moved(2, [0, *range(63)]),
    "saturated": _on_map("Min", np.full((1, 1, 1), 0.9)),
    "nearest": _resize(
        mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    ),
    "corners aligned": _resize(coordinate_transformation_mode="align_corners"),
    "asymmetric": _resize(coordinate_transformation_mode="asymmetric"),
}
"""What is wrong -> how it is made."""
