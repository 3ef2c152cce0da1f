"""Convolutions of upsampled planes, computed on the small planes: four fusions, one algebra.

Upsampling acts on planes, a convolution's tap on channels, so they commute. With the matrices U and
V of the interpolation (``upsampling.linear_matrix``), zero padding, and S_k, which shifts rows by
tap k's offset and leaves zeros where it falls outside::

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
import onnx_ir as ir

from destseg_export.fusions.resizes import exact_scales, linear_matrix, resized
from destseg_export.graph import edit

FOURFOLD = 16
"""Pixels of the large plane for one of the small: four along each axis."""

Size = tuple[int, int]
"""Height and width of a plane."""


def take_out_pooled_branch(model: ir.Model) -> edit.Outcome:
    """Replace what a plane of one pixel adds to a convolution by its border variants.

    The pooled ASPP branch is one vector v per image, repeated over the plane: bilinear upsampling
    of a 1x1 plane. Inside of the plane a 3x3 convolution of it is the same at every pixel; at the
    borders the taps that fall into the padding are missing. So it adds one vector in nine variants,
    corners, edges and inside::

        y[i, j] = sum over the taps k, l inside of the plane at (i, j) of W_kl v

    The convolution keeps the three dilated branches: 768 instead of 1024 channels, 2.4 of 38.4
    GMAC less.
    """
    return move_below(model, lambda kernel, small, large: kernel > 1 and small == (1, 1))


def move_shortcuts(model: ir.Model) -> edit.Outcome:
    """Move each 1x1 convolution of upsampled planes below the upsampling.

    The weights of an interpolation sum to 1, so that a bias passes, too::

        W up(x) + b = up(W x + b)

    The shortcuts of the decoder's blocks and of the segmentation network's first block then work on
    a quarter or a sixteenth of the pixels.
    """
    return move_below(model, lambda kernel, small, large: kernel == 1)


def move_kernels(model: ir.Model) -> edit.Outcome:
    """Move larger kernels over planes upsampled at least fourfold below the upsampling.

    Beside the pooled branch this saves most: the first convolutions of the decoder's blocks and of
    the segmentation network read planes that were upsampled two- or fourfold. On the small planes
    their taps need a quarter or a sixteenth of the MACs. Fourfold upsampling saves nine tenths of
    such a convolution, twofold about half, and the two products stay in float32 where the
    convolution may be in 8 bit. So these are two fusions: ``quantize`` wants the fourfold ones
    alone.
    """
    return move_below(
        model, lambda kernel, small, large: kernel > 1 and _growth(small, large) >= FOURFOLD
    )


def move_twofold_kernels(model: ir.Model) -> edit.Outcome:
    """Move the remaining larger kernels, where that saves MACs; see ``move_kernels``."""
    return move_below(
        model, lambda kernel, small, large: kernel > 1 and _growth(small, large) < FOURFOLD
    )


def _growth(small: Size, large: Size) -> float:
    """Return the pixels of the large plane for each of the small one."""
    return large[0] * large[1] / (small[0] * small[1])


Wanted = Callable[[int, Size, Size], bool]
"""Given the taps of an axis, the small plane and the large one: whether to move."""


@dataclass(frozen=True, eq=False)
class Source:
    """One input of a convolution, or of the concatenation before it.

    Attributes:
        value: What the convolution sees.
        channels: Its place among the convolution's input channels.
        small: What was upsampled to it; ``value`` itself when nothing was.
        size: Height and width of ``small``.
    """

    value: ir.Value
    channels: slice
    small: ir.Value
    size: Size


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

    node: ir.Node
    weight: edit.Floats
    bias: edit.Floats
    dilation: int
    size: Size

    @property
    def kernel(self) -> int:
        """Taps of an axis."""
        return int(self.weight.shape[-1])

    @property
    def name(self) -> str:
        """Name of its output, with which those of the new nodes begin."""
        return str(self.node.outputs[0].name)

    @property
    def weight_name(self) -> str:
        """Name of its weights."""
        return str(edit.required(self.node, 1).name)


def move_below(model: ir.Model, wanted: Wanted) -> edit.Outcome:
    """Compute convolutions of upsampled planes on the small planes, where that costs less.

    Args:
        model: The graph, changed in place.
        wanted: Says which of the upsampled sources this fusion takes.
    """
    return edit.together(_move(model, node, wanted) for node in edit.nodes(model, "Conv"))


def _move(model: ir.Model, node: ir.Node, wanted: Wanted) -> edit.Outcome:
    weight, large = edit.floats(node.inputs[1]), edit.plane(node.outputs[0])
    if weight is None or large is None:
        return edit.Outcome()
    sources, taps = _sources(node), weight.shape[-1]
    upsampled = (source for source in sources if source.small is not source.value)
    chosen = [source for source in upsampled if wanted(taps, source.size, large[1:])]
    if not chosen:
        return edit.Outcome()
    convolution = _read(node, weight, large[1:], chosen)
    if isinstance(convolution, str):
        return edit.refused(node, convolution)
    kept = [source for source in sources if source not in chosen]
    edit.substitute(node.outputs[0], _moved(model, convolution, chosen, kept))
    return edit.changed(node)


def _sources(node: ir.Node) -> list[Source]:
    """Return what a convolution reads, in the order of its channels; nothing if that is unknown."""
    joined = edit.producer(node.inputs[0], "Concat")
    if joined is not None and joined.attributes.get_int("axis") != 1:
        joined = None
    found, first = [], 0
    for value in node.inputs[:1] if joined is None else joined.inputs:
        shape = edit.plane(value)
        if value is None or shape is None:
            return []
        resize = edit.producer(value, "Resize")
        sizes = "not resized" if resize is None else resized(resize)
        small, size = value, shape[1:]
        if resize is not None and not isinstance(sizes, str):
            small, size = edit.required(resize, 0), sizes[0]
        found.append(Source(value, slice(first, first := first + shape[0]), small, size))
    return found


def _read(
    node: ir.Node, weight: edit.Floats, size: Size, chosen: Sequence[Source]
) -> Convolution | str:
    """Return the convolution, or why it is not moved."""
    bias = edit.floats(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(len(weight))
    if weight.ndim != 4 or bias is None or weight.shape[-2] != weight.shape[-1]:
        return f"kernel {weight.shape[2:]}, expected a square one with a constant bias"
    kernel = weight.shape[-1]
    if kernel % 2 == 0:
        return f"kernel {weight.shape[2:]}, expected an odd one, which has a middle tap"
    attributes = node.attributes
    strides = list(attributes.get_ints("strides", [1, 1]))
    dilations = list(attributes.get_ints("dilations", [1, 1]))
    pads, pad = list(attributes.get_ints("pads", [0] * 4)), dilations[0] * (kernel // 2)
    if attributes.get_int("group", 1) != 1 or strides != [1, 1]:
        return "it has groups or strides"
    if len(set(dilations)) > 1:
        return f"dilations {dilations}, expected the same in both directions"
    if pads != [pad] * 4:
        return f"padded by {pads}, expected {pad} all around"
    convolution = Convolution(node, weight, bias, dilations[0], size)
    return _too_costly(convolution, chosen) or convolution


def _too_costly(convolution: Convolution, chosen: Sequence[Source]) -> str:
    """Return a reason when the small planes cost as much as the large ones, else nothing."""
    out, kernel = len(convolution.weight), convolution.kernel
    height, width = convolution.size
    above = below = 0
    for source in chosen:
        taps = (source.channels.stop - source.channels.start) * out * kernel**2
        h, w = source.size
        above += taps * height * width
        below += taps * h * w
        if kernel > 1:  # the two products with the matrices
            below += out * kernel * height * (kernel * h * w + w * width)
    return "" if below < above else f"{below} MACs on the small planes, {above} on the large ones"


def _moved(
    model: ir.Model, convolution: Convolution, chosen: Sequence[Source], kept: Sequence[Source]
) -> ir.Value:
    """Add what gives the convolution's output; return that.

    The bias is added once: by the convolution of what is kept, or, where nothing is kept, by the
    first of the small ones.
    """
    terms = [_remaining(model, convolution, kept)] if kept else []
    if convolution.kernel > 1:
        terms.append(_spread(model, convolution, chosen, biased=not terms))
    else:
        for source in chosen:
            terms.append(_pointwise(model, convolution, source, biased=not terms))
    total = terms[0]
    for term in terms[1:]:
        total = edit.add_node(model, "Add", [total, term], f"{term.name}_sum")
    return total


def _remaining(model: ir.Model, convolution: Convolution, kept: Sequence[Source]) -> ir.Value:
    """Add the convolution of what is not upsampled, with the bias; return its output."""
    output = f"{convolution.name}_rest"
    value = kept[0].value
    if len(kept) > 1:
        value = edit.add_node(
            model, "Concat", [source.value for source in kept], f"{output}_joined", {"axis": 1}
        )
    part = np.concatenate([convolution.weight[:, source.channels] for source in kept], axis=1)
    weight = edit.add_constant(
        model, f"{convolution.weight_name}_rest{kept[0].channels.start}", part
    )
    bias = edit.add_constant(model, f"{output}_bias", convolution.bias)
    attributes = convolution.node.attributes
    return edit.add_node(model, "Conv", [value, weight, bias], output, attributes)


def _small_convolution(
    model: ir.Model, convolution: Convolution, source: Source, *, biased: bool
) -> ir.Value:
    """Add the 1x1 convolution of the small plane: W_kl x, channels ordered (O, l, k)."""
    middle, first = convolution.kernel // 2, source.channels.start
    taps = convolution.weight[:, source.channels].transpose(0, 3, 2, 1)  # (O, l, k, C)
    weight = taps.reshape(-1, taps.shape[-1], 1, 1)
    inputs = [
        source.small,
        edit.add_constant(model, f"{convolution.weight_name}_small{first}", weight),
    ]
    output = f"{convolution.name}_small{first}"
    if biased:
        bias = np.zeros(taps.shape[:3])
        bias[:, middle, middle] = convolution.bias
        inputs.append(edit.add_constant(model, f"{output}_bias", bias.reshape(-1)))
    return edit.add_node(model, "Conv", inputs, output)


def _pointwise(
    model: ir.Model, convolution: Convolution, source: Source, *, biased: bool
) -> ir.Value:
    """Add convolution, then upsampling, of a 1x1 kernel; return the output."""
    resize, scales = source.value.producer(), exact_scales(source.size, convolution.size)
    if resize is None or scales is None:
        # A Resize by scales that float32 does not hold would read other places; matrices do not.
        return _spread(model, convolution, [source], biased=biased)
    small = _small_convolution(model, convolution, source, biased=biased)
    constant = edit.add_constant(model, f"{small.name}_scales", scales)
    inputs = [small, None, constant]
    return edit.add_node(model, "Resize", inputs, f"{small.name}_large", resize.attributes)


def _spread(
    model: ir.Model, convolution: Convolution, chosen: Sequence[Source], *, biased: bool
) -> ir.Value:
    """Add the small convolutions and the two products; return the output.

    The rows of each source are spread for themselves. The columns are all spread by one product
    over the concatenated axis, which also adds the sources up.
    """
    out, kernel, dilation = len(convolution.weight), convolution.kernel, convolution.dilation
    height, width = convolution.size
    terms, columns = [], []
    for source in chosen:
        first = biased and source is chosen[0]
        value = _small_convolution(model, convolution, source, biased=first)
        name, (h, w) = value.name, source.size
        rows = edit.add_constant(model, f"{name}_rows", tap_matrix(h, height, kernel, dilation))
        value = _reshape(model, value, f"{name}_taps", (out * kernel, kernel * h, w))
        value = edit.add_node(model, "MatMul", [rows, value], f"{name}_high")
        value = _reshape(model, value, f"{name}_split", (out, kernel, height, w))
        value = edit.add_node(
            model, "Transpose", [value], f"{name}_turned", {"perm": [0, 1, 3, 2, 4]}
        )
        terms.append(_reshape(model, value, f"{name}_joined", (out, height, kernel * w)))
        columns.append(tap_matrix(w, width, kernel, dilation).T)
    output = f"{convolution.name}_spread{chosen[0].channels.start}"
    joined = terms[0]
    if len(terms) > 1:
        joined = edit.add_node(model, "Concat", terms, f"{output}_joined", {"axis": 3})
    matrix = edit.add_constant(model, f"{output}_columns", np.concatenate(columns))
    return edit.add_node(model, "MatMul", [joined, matrix], output)


def tap_matrix(source: int, target: int, kernel: int, dilation: int) -> edit.Floats:
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


def _reshape(model: ir.Model, value: ir.Value, output: str, shape: Sequence[int]) -> ir.Value:
    """Add a reshape to (N, *shape); return its output."""
    # In ONNX's Reshape a size of 0 takes that of the input, so the batch may be known at run time.
    sizes = edit.add_constant(model, f"{output}_shape", np.array([0, *shape], np.int64))
    return edit.add_node(model, "Reshape", [value, sizes], output)
