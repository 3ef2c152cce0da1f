"""The fused half network computes what the half network does, and its stems what float32 does."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from destseg_deploy.models.destseg import ConvNormRelu
from destseg_deploy.models.fused import (
    STEM_CHANNELS,
    Block,
    ConvRelu,
    FusedDeSTSeg,
    PlainLayers,
    split_stem,
)
from destseg_deploy.models.half import HALVES, fold_batch_norms, to_half
from destseg_deploy.models.resnet import BasicBlock

ROUNDING = {"fp16": 5e-6, "bf16": 2e-4}
"""How far a split stem may be from float64; float32's own convolution is 5e-6 away."""


def pixels(count=2, side=64):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2


def fused_network(model, precision):
    return FusedDeSTSeg(to_half(model, precision), PlainLayers(HALVES[precision]))


def run(fused, image):
    return fused.segment(*fused.features(image))


@pytest.fixture
def stem():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 64, 7, 2, 3)
    nn.init.normal_(conv.weight, std=0.2)
    nn.init.normal_(conv.bias)
    return conv.requires_grad_(False)


@pytest.mark.parametrize("precision", ROUNDING)
def test_a_split_stem_gives_the_answers_of_float32(stem, precision):
    kind, image = HALVES[precision], pixels()
    wide, weight = PlainLayers(kind).split(image), split_stem(stem, kind).weight
    assert wide.shape == (2, STEM_CHANNELS, 64, 64)
    assert wide.is_contiguous(memory_format=torch.channels_last)

    def exact(x, weight, bias=None):
        return functional.conv2d(x.double(), weight.double(), bias, 2, 3)

    wanted = exact(image, stem.weight, stem.bias.double())
    assert (exact(wide, weight) - wanted).abs().max() < ROUNDING[precision]
    # The controls: without a low half it is as far away as half precision is.
    for channels in (slice(3, 6), slice(6, 9), slice(10, 11)):
        cut = wide.clone()
        cut[:, channels] = 0
        assert (exact(cut, weight) - wanted).abs().max() > 20 * ROUNDING[precision]


@pytest.mark.parametrize("precision", HALVES)
def test_the_network_answers_as_before(model, precision):
    plain, image = to_half(model, precision), pixels()
    fused = fused_network(model, precision)
    left = [type(one) for one in fused.modules()]
    assert not {BasicBlock, ConvNormRelu, nn.BatchNorm2d} & set(left)
    with torch.inference_mode():
        wanted = model(image)[0]
        rounding = (plain(image)[0] - wanted).abs().mean()
        assert (run(fused, image) - wanted).abs().mean() < 1.5 * rounding


@pytest.mark.parametrize("projected", [True, False])
def test_a_block_adds_its_shortcut_with_both_biases(projected):
    torch.manual_seed(0)
    block = (
        BasicBlock(8, 16 if projected else 8, 2 if projected else 1).eval().requires_grad_(False)
    )
    for norm in (one for one in block.modules() if isinstance(one, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(2, 8, 16, 16)
    wanted = block(x)
    fold_batch_norms(block)
    torch.testing.assert_close(Block(block)(x), wanted, atol=1e-5, rtol=1e-5)


def test_a_convolution_without_a_bias_takes_none(stem):
    conv = split_stem(stem, torch.float16).float()
    x = torch.randn(1, STEM_CHANNELS, 16, 16)
    torch.testing.assert_close(ConvRelu(conv)(x), torch.relu(conv(x)))
