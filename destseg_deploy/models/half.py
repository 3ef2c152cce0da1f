"""DeSTSeg in half precision, in PyTorch: weights rounded once, islands in float32.

BatchNorm is folded before, in float32. The parts that stay float32 are those of the exporter's
``half.ISLANDS``, for the same reasons: the two stems, the pooled mean, the unit lengths and their
products, the last convolution, and all behind it. Autocast instead would round all weights in every
call and keep every BatchNorm.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from destseg_deploy.errors import WeightsError
from destseg_deploy.models.destseg import ConvNormRelu, DeSTSeg
from destseg_deploy.models.inference import InferenceGraph, served_graph
from destseg_deploy.models.resnet import BasicBlock, ResNet18
from destseg_deploy.spec import ModelSpec

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision -> its type."""

_PAIRS: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    ResNet18: (("conv1", "bn1"),),
    BasicBlock: (("conv1", "bn1"), ("conv2", "bn2")),
    ConvNormRelu: (("conv", "norm"),),
}
"""Module -> names of its convolutions, each with the BatchNorm behind it."""


class Cast(nn.Module):
    """A border between half and float32."""

    def __init__(self, kind: torch.dtype) -> None:
        """Change to a type."""
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Return the values in the type."""
        return x.to(self.kind)


def half_graph(model: DeSTSeg, spec: ModelSpec, precision: str) -> InferenceGraph:
    """Return the served graph in half precision with channels last, where half is fastest.

    Raises:
        WeightsError: If half cannot hold a weight.
    """
    half = to_half(model, precision)
    graph = served_graph(half, spec)
    graph.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares no overload with memory_format
    return graph


def to_half(model: DeSTSeg, precision: str) -> DeSTSeg:
    """Return a copy for inference whose convolutions compute in half, but for its islands.

    Args:
        model: Trained, in float32; it stays as it is.
        precision: ``fp16`` or ``bf16``.

    Raises:
        WeightsError: If half cannot hold a weight.
    """
    kind = HALVES[precision]
    half = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norms(half)
    stems: list[Any] = [half.teacher_net.encoder, half.student_net.encoder]
    head: Any = half.segmentation_net.head
    aspp = head[0]
    floats = {id(stem.conv1) for stem in stems} | {id(head[4])}
    for name, module in half.named_modules():
        if isinstance(module, nn.Conv2d) and id(module) not in floats:
            module.to(kind)
            _check_range(name, module, precision)
    for stem in stems:  # in float32 up to the pooling, which only chooses among its values
        stem.maxpool = nn.Sequential(stem.maxpool, Cast(kind))
    # The products come in float32, since features() and normalize() make them so.
    half.segmentation_net.res = nn.Sequential(Cast(kind), *half.segmentation_net.res)
    pooled = aspp.aspp_feature_extractors[0]
    pooled[0] = nn.Sequential(Cast(torch.float32), pooled[0], Cast(kind))
    head[4] = nn.Sequential(Cast(torch.float32), head[4])
    return half


def fold_batch_norms(model: nn.Module) -> None:
    """Fold every BatchNorm into the convolution before it, in place.

    y = gamma (w * x + b - mean) / sqrt(variance + epsilon) + beta is one convolution, with
    s = gamma / sqrt(variance + epsilon)::

        w' = s w        b' = s (b - mean) + beta

    In float32 and in this order, as torch's ONNX exporter folds it, so that both give equal bits.

    Raises:
        TypeError: If one is left, which is a fault of this module.
    """
    for module in model.modules():
        for conv, norm in _PAIRS.get(type(module), ()):
            _fold(module, conv, norm)
        if isinstance(module, nn.Sequential):
            kinds = [type(child) for child in module]
            for i, pair in enumerate(itertools.pairwise(kinds)):
                if pair == (nn.Conv2d, nn.BatchNorm2d):
                    _fold(module, str(i), str(i + 1))
    if left := [name for name, one in model.named_modules() if isinstance(one, nn.BatchNorm2d)]:
        raise TypeError(f"{left[0]}: a BatchNorm is not folded. Add its pair to half._PAIRS.")


def _fold(module: nn.Module, conv: str, norm: str) -> None:
    convolution: Any = module.get_submodule(conv)
    batch_norm: Any = module.get_submodule(norm)
    variance = (batch_norm.running_var + batch_norm.eps).double()  # float32's root may be 1 ulp off
    scale = batch_norm.weight / torch.sqrt(variance).float()
    bias = torch.zeros_like(scale) if convolution.bias is None else convolution.bias
    bias = (bias - batch_norm.running_mean) * scale + batch_norm.bias
    convolution.weight = nn.Parameter(convolution.weight * scale.view(-1, 1, 1, 1), False)
    convolution.bias = nn.Parameter(bias, False)
    setattr(module, norm, nn.Identity())


def _check_range(name: str, module: nn.Conv2d, precision: str) -> None:
    for part, tensor in module.named_parameters():
        if beyond := int((~torch.isfinite(tensor)).sum()):
            raise WeightsError(
                f"{name}.{part}: {beyond} of {tensor.numel()} weights are beyond {precision}'s "
                f"{torch.finfo(tensor.dtype).max:.5g}. Use precision 'bf16', which has float32's "
                "range, or 'fp32'."
            )
