"""Convolutions of upsampled planes, computed on the small planes. The algebra of three rewrites.

Upsampling acts on planes, a convolution's tap on channels, so they commute. With the matrices U and
V of the interpolation (``interpolation``), zero padding, and S_k, which shifts rows by tap k's
offset and leaves zeros where it falls outside::

    W * (U x V.T) = sum over k, l of (S_k U) (W_kl x) (S_l V).T

W_kl x for all taps is one 1x1 convolution of the small x; the sums over k and l are two products
with constant matrices, [S_0 U, S_1 U, S_2 U] and the same of V. A bias passes through the middle
tap, whose matrix is U itself with rows that sum to 1. Several inputs of a concatenation have each
their term; what is not upsampled stays in the convolution.

Rounding: sums of the same products in another order, so the answers differ by what float32 sums of
that length differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from destseg_export.fusions.graph import Floats, Graph, Outcome, Refusal, attribute
from destseg_export.fusions.interpolation import linear_matrix, why_not_linear
from destseg_export.fusions.resizes import exact_scales


@dataclass(frozen=True, eq=False)
class Source:
    """One input of a convolution, or of the concatenation before it.

    Attributes:
        tensor: What the convolution sees.
        channels: Its place among the convolution's input channels.
        small: What was upsampled to it, and its height and width; None when nothing was.
    """

    tensor: str
    channels: slice
    small: tuple[str, tuple[int, int]] | None


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution that keeps the size of its planes.

    Attributes:
        node: The node.
        weight: float64 (O, C, K, K).
        bias: float64 (O,).
        dilation: Distance of taps.
        size: Height and width of its planes.
    """

    node: onnx.NodeProto
    weight: Floats
    bias: Floats
    dilation: int
    size: tuple[int, int]

    @property
    def kernel(self) -> int:
        """Taps of an axis."""
        return int(self.weight.shape[-1])


Wanted = Callable[[int, tuple[int, int], tuple[int, int]], bool]
"""Given the taps of an axis, the small plane and the large one: whether to move."""


def move_below(graph: Graph, wanted: Wanted) -> Outcome:
    """Compute convolutions of upsampled planes on the small planes, where that costs less.

    Args:
        graph: The graph, rewritten in place.
        wanted: Whether a source is this rewrite's affair.
    """
    changed: list[str] = []
    refused: list[Refusal] = []
    for node in graph.nodes("Conv"):
        sources = _sources(graph, node)
        taps, plane = (graph.shape(node.input[1]) or [""])[-1], graph.plane(node.output[0])
        if not isinstance(taps, int) or plane is None:
            continue
        chosen = [s for s in sources if s.small and wanted(taps, s.small[1], plane[1:])]
        if not chosen:
            continue
        convolution, reason = _read(graph, node)
        if convolution is not None:
            reason = _too_costly(convolution, chosen)
        if convolution is None or reason:
            refused.append(Refusal(node.name, reason))
            continue
        changed.append(node.name)
        _rewrite(graph, convolution, sources, chosen)
    graph.sort()
    graph.prune()
    return Outcome(tuple(changed), tuple(refused))


def tap_matrix(source: int, target: int, kernel: int, dilation: int) -> Floats:
    """Return [S_0 U, S_1 U, ...], float64 (target, kernel * source).

    Args:
        source: Samples of the small axis.
        target: Samples of the upsampled axis, and of the result.
        kernel: Taps of the convolution along the axis, odd.
        dilation: Their distance.
    """
    upsampled = linear_matrix(source, target)
    blocks = []
    for tap in range(kernel):
        rows = np.arange(target) + dilation * (tap - kernel // 2)
        inside = (rows >= 0) & (rows < target)
        blocks.append(np.where(inside[:, None], upsampled[np.clip(rows, 0, target - 1)], 0.0))
    return np.concatenate(blocks, axis=1)


def _sources(graph: Graph, node: onnx.NodeProto) -> list[Source]:
    joined = graph.maker(node.input[0], "Concat")
    if joined is not None and attribute(joined, "axis", None) != 1:
        joined = None
    found, first = [], 0
    for tensor in joined.input if joined is not None else [node.input[0]]:
        plane = graph.plane(tensor)
        if plane is None:
            return []
        channels = slice(first, first := first + plane[0])
        found.append(Source(tensor, channels, _small(graph, tensor)))
    return found


def _small(graph: Graph, tensor: str) -> tuple[str, tuple[int, int]] | None:
    """Return what a tensor was upsampled from, if it was and by a rule known here."""
    resize = graph.maker(tensor, "Resize")
    if resize is None or why_not_linear(graph, resize):
        return None
    plane = graph.plane(resize.input[0])
    return None if plane is None else (resize.input[0], plane[1:])


def _read(graph: Graph, node: onnx.NodeProto) -> tuple[Convolution | None, str]:
    """Return the convolution, or why it is of no use here."""
    weight, plane = graph.floats(node.input[1]), graph.plane(node.output[0])
    if weight is None or weight.ndim != 4 or plane is None:
        return None, "its weights or its size are not constant"
    bias = graph.floats(node.input[2]) if len(node.input) > 2 else np.zeros(len(weight))
    kernel, dilations = weight.shape[-1], attribute(node, "dilations", [1, 1])
    if bias is None or weight.shape[-2] != kernel or kernel % 2 == 0:
        return None, f"kernel {weight.shape[-2:]}, expected square and odd, with a constant bias"
    if attribute(node, "group", 1) != 1 or attribute(node, "strides", [1, 1]) != [1, 1]:
        return None, "it has groups or strides"
    if not isinstance(dilations, list) or len(set(dilations)) > 1:
        return None, f"dilations {dilations}, expected the same in both directions"
    pad = dilations[0] * (kernel // 2)
    if attribute(node, "pads", [0] * 4) != [pad] * 4:
        return None, f"padded by {attribute(node, 'pads', [0] * 4)}, expected {pad} all around"
    return Convolution(node, weight, bias, dilations[0], plane[1:]), ""


def _too_costly(convolution: Convolution, chosen: Sequence[Source]) -> str:
    """Return a reason when the small planes cost as much as the large ones, else nothing."""
    out, kernel = len(convolution.weight), convolution.kernel
    height, width = convolution.size
    above = below = 0
    for source in chosen:
        channels = source.channels.stop - source.channels.start
        _, (h, w) = source.small or ("", (0, 0))
        above += channels * out * kernel**2 * height * width
        below += channels * out * kernel**2 * h * w
        if kernel > 1:
            below += out * kernel * height * (kernel * h * w + w * width)
    return "" if below < above else f"{below} MACs on the small planes, {above} on the large ones"


def _rewrite(
    graph: Graph, convolution: Convolution, sources: list[Source], chosen: list[Source]
) -> None:
    node = convolution.node
    kept = [source for source in sources if source not in chosen]
    biased = not kept
    terms = []
    if convolution.kernel == 1:
        for source in chosen:
            terms.append(_pointwise(graph, convolution, source, biased))
            biased = False
    else:
        terms.append(_spread(graph, convolution, chosen, biased))
    if kept:
        terms.insert(0, _remaining(graph, convolution, kept))
    output = node.output[0]
    graph.remove([node])
    while len(terms) > 2:
        last = terms.pop()
        terms[-1] = graph.add_node("Add", [terms[-1], last], f"{last}_sum")
    if len(terms) == 2:
        graph.add_node("Add", terms, output)
    else:
        graph.rename(terms[0], output)


def _remaining(graph: Graph, convolution: Convolution, kept: list[Source]) -> str:
    """Add the convolution of what is not upsampled, with the bias; return its output."""
    node = convolution.node
    output = f"{node.output[0]}_rest"
    tensor = kept[0].tensor
    if len(kept) > 1:
        tensor = graph.add_node("Concat", [s.tensor for s in kept], f"{output}_joined", axis=1)
    weight = np.concatenate([convolution.weight[:, s.channels] for s in kept], axis=1)
    names = [
        graph.add_constant(f"{node.input[1]}_rest{kept[0].channels.start}", weight),
        graph.add_constant(f"{output}_bias", convolution.bias),
    ]
    graph.add_node("Conv", [tensor, *names], output)
    graph.graph.node[-1].attribute.extend(node.attribute)
    return output


def _small_convolution(graph: Graph, convolution: Convolution, source: Source, biased: bool) -> str:
    """Add the 1x1 convolution of the small plane: W_kl x, channels ordered (O, l, k)."""
    node, kernel = convolution.node, convolution.kernel
    small, _ = source.small or ("", None)
    taps = convolution.weight[:, source.channels].transpose(0, 3, 2, 1)  # (O, l, k, C)
    inputs = [
        small,
        graph.add_constant(
            f"{node.input[1]}_small{source.channels.start}",
            taps.reshape(-1, taps.shape[-1], 1, 1),
        ),
    ]
    output = f"{node.output[0]}_small{source.channels.start}"
    if biased:
        bias = np.zeros(taps.shape[:3])
        bias[:, kernel // 2, kernel // 2] = convolution.bias
        inputs.append(graph.add_constant(f"{output}_bias", bias.reshape(-1)))
    return graph.add_node("Conv", inputs, output)


def _pointwise(graph: Graph, convolution: Convolution, source: Source, biased: bool) -> str:
    """Add convolution, then upsampling, of a 1x1 kernel; return the output."""
    small = _small_convolution(graph, convolution, source, biased)
    resize = graph.maker(source.tensor, "Resize")
    scales = exact_scales((source.small or ("", ()))[1], convolution.size)
    if resize is None or scales is None:  # _small looked; move_below takes exact scales only
        return _spread(graph, convolution, [source], biased)
    name = graph.add_constant(f"{small}_scales", scales)
    output = graph.add_node("Resize", [small, "", name], f"{small}_large")
    graph.graph.node[-1].attribute.extend(resize.attribute)
    return output


def _spread(graph: Graph, convolution: Convolution, chosen: Sequence[Source], biased: bool) -> str:
    """Add the small convolutions and the two products; return the output."""
    out, kernel, dilation = len(convolution.weight), convolution.kernel, convolution.dilation
    height, width = convolution.size
    terms, columns = [], []
    for source in chosen:
        tensor = _small_convolution(graph, convolution, source, biased and source is chosen[0])
        _, (h, w) = source.small or ("", (0, 0))
        rows = graph.add_constant(f"{tensor}_rows", tap_matrix(h, height, kernel, dilation))
        tensor = _reshape(graph, tensor, f"{tensor}_taps", (out * kernel, kernel * h, w))
        tensor = graph.add_node("MatMul", [rows, tensor], f"{tensor}_high")
        tensor = _reshape(graph, tensor, f"{tensor}_split", (out, kernel, height, w))
        tensor = graph.add_node("Transpose", [tensor], f"{tensor}_turned", perm=[0, 1, 3, 2, 4])
        terms.append(_reshape(graph, tensor, f"{tensor}_joined", (out, height, kernel * w)))
        columns.append(tap_matrix(w, width, kernel, dilation).T)
    output = f"{convolution.node.output[0]}_spread{chosen[0].channels.start}"
    joined = terms[0]
    if len(terms) > 1:
        joined = graph.add_node("Concat", terms, f"{output}_joined", axis=3)
    matrix = graph.add_constant(f"{output}_columns", np.concatenate(columns))
    return graph.add_node("MatMul", [joined, matrix], output)


def _reshape(graph: Graph, tensor: str, output: str, shape: tuple[int, ...]) -> str:
    """Add a reshape that keeps the batch."""
    sizes = graph.add_constant(f"{output}_shape", np.array([0, *shape], np.int64))
    return graph.add_node("Reshape", [tensor, sizes], output)
