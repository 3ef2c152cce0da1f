"""The networks: names, sizes, initialisation, and the forward pass written out a second time."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from destseg_deploy.models.destseg import (
    ASPP,
    LEVELS,
    DeSTSeg,
    cosine_distances,
    dest_map,
    normalize,
    upsample,
)
from destseg_deploy.models.resnet import BasicBlock, ResNet18, init_residual

State = dict[str, Tensor]

SHAPES = {
    "teacher_net.encoder.conv1.weight": (64, 3, 7, 7),
    "teacher_net.encoder.layer1.0.conv1.weight": (64, 64, 3, 3),
    "teacher_net.encoder.layer3.0.downsample.0.weight": (256, 128, 1, 1),
    "teacher_net.encoder.layer3.1.bn2.running_var": (256,),
    "student_net.encoder.layer4.1.conv2.weight": (512, 512, 3, 3),
    "student_net.decoder_layer4.0.conv1.weight": (512, 512, 3, 3),
    "student_net.decoder_layer3.0.downsample.0.weight": (256, 512, 1, 1),
    "student_net.decoder_layer3.0.downsample.1.num_batches_tracked": (),
    "student_net.decoder_layer1.1.bn2.bias": (64,),
    "segmentation_net.res.0.conv1.weight": (256, 448, 3, 3),
    "segmentation_net.res.0.downsample.0.weight": (256, 448, 1, 1),
    "segmentation_net.head.0.aspp_feature_extractors.0.1.conv.weight": (256, 256, 1, 1),
    "segmentation_net.head.0.aspp_feature_extractors.0.1.norm.weight": (256,),
    "segmentation_net.head.0.aspp_feature_extractors.1.conv.weight": (256, 256, 3, 3),
    "segmentation_net.head.0.aspp_feature_extractors.1.norm.weight": (256,),
    "segmentation_net.head.0.aspp_feature_extractors.3.norm.running_mean": (256,),
    "segmentation_net.head.0.aspp_fusion_layer.conv.weight": (256, 1024, 3, 3),
    "segmentation_net.head.0.aspp_fusion_layer.norm.bias": (256,),
    "segmentation_net.head.1.weight": (256, 256, 3, 3),
    "segmentation_net.head.2.weight": (256,),
    "segmentation_net.head.2.running_var": (256,),
    "segmentation_net.head.4.weight": (1, 256, 1, 1),
    "segmentation_net.head.4.bias": (1,),
}


@pytest.fixture(scope="module")
def fresh() -> DeSTSeg:
    """As it is before training."""
    torch.manual_seed(0)
    return DeSTSeg()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def trained(model: DeSTSeg, images: Tensor) -> DeSTSeg:
    """The shared model with statistics that are not 0 and 1, and a map that fills (0, 1)."""
    net = copy.deepcopy(model)
    random = torch.Generator().manual_seed(1)
    for _, module in norms(net):
        assert module.running_mean is not None
        assert module.running_var is not None
        module.running_mean.normal_(0, 0.1, generator=random)
        module.running_var.uniform_(0.5, 1.5, generator=random)
    last = net.segmentation_net.head[4]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    with torch.no_grad():
        logits = torch.logit(net(images)[0])
        last.weight.div_(logits.std())
        last.bias.sub_(logits.mean()).div_(logits.std())
    return net


def norms(module: nn.Module) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    return (
        (name, child) for name, child in module.named_modules() if isinstance(child, nn.BatchNorm2d)
    )


# ---------------------------------------------------------------------------- names and sizes


def test_names_and_shapes(fresh: DeSTSeg) -> None:
    state = {name: tuple(tensor.shape) for name, tensor in fresh.state_dict().items()}
    assert len(state) == 392
    assert {name: state.get(name) for name in SHAPES} == SHAPES
    assert not any(name.startswith("teacher_net.encoder.layer4") for name in state)
    assert {name.split(".")[0] for name in state} == {
        "teacher_net",
        "student_net",
        "segmentation_net",
    }


def test_names_and_shapes_are_the_official_ones(fresh: DeSTSeg, shared: Path) -> None:
    official = json.loads((shared / "reference/official_state_dict.json").read_text())
    assert {name: list(t.shape) for name, t in fresh.state_dict().items()} == official


@pytest.mark.parametrize(
    ("name", "millions"),
    [("teacher_net", "2.78"), ("student_net", "24.67"), ("segmentation_net", "7.71")],
)
def test_parameter_counts_are_the_papers(name: str, millions: str, fresh: DeSTSeg) -> None:
    count = sum(parameter.numel() for parameter in getattr(fresh, name).parameters())
    assert f"{count / 1e6:.2f}" == millions


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_resnet_gives_the_features_of_its_layers(layers: int) -> None:
    features = ResNet18(layers).eval()(torch.zeros(1, 3, 64, 96))
    shapes = [(1, 64, 16, 24), (1, 128, 8, 12), (1, 256, 4, 6), (1, 512, 2, 3)]
    assert [tuple(feature.shape) for feature in features] == shapes[:layers]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (72, 104), (65, 97)])
def test_any_image_size_fits(height: int, width: int, trained: DeSTSeg) -> None:
    """The decoder meets the teacher's sizes, also where they do not halve evenly."""
    with torch.no_grad():
        teacher, student = trained.features(torch.zeros(1, 3, height, width))
        segmentation = trained.segment(teacher, student)
    shapes = [tuple(t.shape) for t in teacher]
    assert [shape[1] for shape in shapes] == list(LEVELS)
    assert [tuple(s.shape) for s in student] == shapes
    assert segmentation.shape == (1, 1, math.ceil(height / 4), math.ceil(width / 4))


# ---------------------------------------------------------------------------- initialisation


def test_only_the_students_encoder_starts_with_zero_gammas(fresh: DeSTSeg) -> None:
    zero = {name for name, norm in norms(fresh) if (norm.weight == 0).all()}
    assert zero == {
        f"student_net.encoder.layer{layer}.{block}.bn2"
        for layer in (1, 2, 3, 4)
        for block in (0, 1)
    }
    assert all((norm.weight == 1).all() for name, norm in norms(fresh) if name not in zero)
    assert all((norm.bias == 0).all() for _, norm in norms(fresh))


def test_residual_convolutions_start_kaiming_normal_by_fan_out(fresh: DeSTSeg) -> None:
    checked = 0
    for part in (fresh.student_net, fresh.segmentation_net.res):
        for module in part.modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 30_000:
                fan_out = module.out_channels * module.kernel_size[0] ** 2
                std = math.sqrt(2 / fan_out)
                weight = module.weight.detach()
                assert abs(float(weight.std()) / std - 1) < 0.03
                assert float(weight.abs().max()) > 3.2 * std  # normal, not uniform
                checked += 1
    assert checked > 30


def test_the_head_keeps_pytorchs_initialisation(fresh: DeSTSeg) -> None:
    for module in fresh.segmentation_net.head.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * module.kernel_size[0] ** 2
            largest = float(module.weight.detach().abs().max()) * math.sqrt(fan_in)
            assert 0.95 < largest < 1 + 1e-6  # uniform in 1 / sqrt(fan in)


def test_a_block_with_zero_gamma_starts_as_its_shortcut() -> None:
    block = BasicBlock(8, 8).eval()
    init_residual(block, zero_last=True)
    x = torch.rand(1, 8, 5, 5)
    assert torch.equal(block(x), x)
    init_residual(block, zero_last=False)
    assert not torch.allclose(block(x), x, atol=1e-2)


# ---------------------------------------------------------------------------- the teacher


def test_the_teacher_never_trains(fresh: DeSTSeg, images: Tensor) -> None:
    net = copy.deepcopy(fresh).train()
    before = copy.deepcopy(net.teacher_net.state_dict())
    assert not any(module.training for module in net.teacher_net.modules())
    assert all(m.training for m in net.student_net.modules())
    assert not any(parameter.requires_grad for parameter in net.teacher_net.parameters())
    segmentation, distance = net(images)
    (segmentation.mean() + distance.mean()).backward()
    assert all(parameter.grad is None for parameter in net.teacher_net.parameters())
    assert any(parameter.grad is not None for parameter in net.student_net.parameters())
    after = net.teacher_net.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    moved = net.student_net.encoder.bn1.running_mean
    assert moved is not None
    assert (moved != 0).any()


# ---------------------------------------------------------------------------- forward, again


def conv(state: State, name: str, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """A convolution that keeps the size, but for the stride."""
    weight = state[f"{name}.weight"]
    padding = dilation * (weight.shape[-1] // 2)
    return functional.conv2d(x, weight, state.get(f"{name}.bias"), stride, padding, dilation)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, variance, gamma, beta = (
        state[f"{name}.{part}"][:, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * gamma + beta


def blocks(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """Two residual blocks; the first has the stride."""
    for number in (0, 1):
        block, step = f"{name}.{number}", stride if number == 0 else 1
        y = norm(state, f"{block}.bn1", conv(state, f"{block}.conv1", x, step)).relu()
        y = norm(state, f"{block}.bn2", conv(state, f"{block}.conv2", y))
        if f"{block}.downsample.0.weight" in state:
            x = norm(state, f"{block}.downsample.1", conv(state, f"{block}.downsample.0", x, step))
        x = (x + y).relu()
    return x


def bilinear(x: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def encoder(state: State, name: str, x: Tensor, layers: int) -> list[Tensor]:
    x = norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x, 2)).relu()
    x = functional.max_pool2d(x, 3, 2, 1)
    features = []
    for layer in range(1, layers + 1):
        x = blocks(state, f"{name}.layer{layer}", x, 1 if layer == 1 else 2)
        features.append(x)
    return features


def unit(x: Tensor) -> Tensor:
    return x / ((x * x).sum(1, keepdim=True).sqrt() + 1e-12)


def head(state: State, x: Tensor, order: tuple[int, ...]) -> Tensor:
    name, extractors = "segmentation_net.head", "segmentation_net.head.0.aspp_feature_extractors"
    mean = x.mean((2, 3), keepdim=True)
    pooled = conv(state, f"{extractors}.0.1.conv", mean)
    pooled = norm(state, f"{extractors}.0.1.norm", pooled).relu()
    branches = [pooled.expand(-1, -1, *x.shape[-2:])]
    for number, dilation in ((1, 6), (2, 12), (3, 18)):
        branch = conv(state, f"{extractors}.{number}.conv", x, dilation=dilation)
        branches.append(norm(state, f"{extractors}.{number}.norm", branch).relu())
    x = torch.cat([branches[i] for i in order], 1)
    x = conv(state, f"{name}.0.aspp_fusion_layer.conv", x)
    x = norm(state, f"{name}.0.aspp_fusion_layer.norm", x).relu()
    x = norm(state, f"{name}.2", conv(state, f"{name}.1", x)).relu()
    return 1 / (1 + (-conv(state, f"{name}.4", x)).exp())


def written_out(
    state: State,
    student_image: Tensor,
    teacher_image: Tensor,
    *,
    branches: tuple[int, ...] = (0, 1, 2, 3),
    levels: tuple[int, ...] = (0, 1, 2),
    sign: int = -1,
) -> tuple[Tensor, Tensor]:
    """Return segmentation and student-teacher map by the paper's section 3, or with a mistake."""
    seen = [unit(x) for x in encoder(state, "teacher_net.encoder", student_image, 3)]
    clean = [unit(x) for x in encoder(state, "teacher_net.encoder", teacher_image, 3)]
    x1, x2, x3, x4 = encoder(state, "student_net.encoder", student_image, 4)
    y3 = blocks(state, "student_net.decoder_layer4", x4)
    y3 = blocks(state, "student_net.decoder_layer3", bilinear(y3, x3))
    y2 = blocks(state, "student_net.decoder_layer2", bilinear(y3, x2))
    y1 = blocks(state, "student_net.decoder_layer1", bilinear(y2, x1))
    student = [unit(y1), unit(y2), unit(y3)]
    products = [bilinear(sign * seen[i] * student[i], x1) for i in levels]
    segmentation = head(
        state, blocks(state, "segmentation_net.res", torch.cat(products, 1)), branches
    )
    distance = torch.ones_like(segmentation)
    for t, s in zip(clean, student, strict=True):
        distance = distance * bilinear(1 - (t * s).sum(1, keepdim=True), x1)
    return segmentation, distance


def apart(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Return the largest differences of the segmentations and of the student-teacher maps."""
    return float((a[0] - b[0]).abs().max()), float((a[1] - b[1]).abs().max())


@torch.no_grad()
def test_forward_is_the_description_written_out(trained: DeSTSeg, images: Tensor) -> None:
    result = trained(images)
    assert result[0].shape == result[1].shape == (2, 1, 16, 16)
    assert float(result[0].std()) > 0.05  # neither flat nor saturated
    assert float(result[1].std()) > 0.01
    segmentation, distance = apart(result, written_out(dict(trained.state_dict()), images, images))
    assert segmentation < 1e-5
    assert distance < 1e-5


@pytest.mark.parametrize(
    "mistake",
    [
        {"branches": (1, 2, 3, 0)},  # the pooled branch last
        {"branches": (0, 2, 1, 3)},
        {"sign": 1},
    ],
)
@torch.no_grad()
def test_another_order_or_sign_is_noticed(
    mistake: dict[str, object], trained: DeSTSeg, images: Tensor
) -> None:
    wrong = written_out(dict(trained.state_dict()), images, images, **mistake)
    segmentation, distance = apart(trained(images), wrong)
    assert segmentation > 1e-2
    assert distance < 1e-5  # of which the mistake is no part


@torch.no_grad()
def test_teacher_and_student_may_see_two_images(trained: DeSTSeg, images: Tensor) -> None:
    """The segmentation looks at the student's alone; the student-teacher map compares both."""
    other = images.flip(0)
    result = trained(images, other)
    assert max(apart(result, written_out(dict(trained.state_dict()), images, other))) < 1e-5
    same = trained(images)
    assert torch.equal(result[0], same[0])
    assert float((result[1] - same[1]).abs().max()) > 1e-2


@torch.no_grad()
def test_features_of_two_images(trained: DeSTSeg, images: Tensor) -> None:
    other = images.flip(0)
    teacher, student = trained.features(images, other)
    own_teacher, own_student = trained.features(images)
    other_teacher, _ = trained.features(other)
    assert all(torch.equal(a, b) for a, b in zip(student, own_student, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(teacher, other_teacher, strict=True))
    assert not torch.equal(teacher[0], own_teacher[0])
    for level in (*teacher, *student):
        lengths = level.norm(dim=1)
        assert ((lengths - 1).abs() < 1e-5).logical_or(lengths == 0).all()


# ---------------------------------------------------------------------------- pieces


def test_normalize_adds_its_epsilon_to_the_length() -> None:
    x = torch.zeros(1, 2, 1, 3)
    x[0, :, 0, 0] = torch.tensor([3.0, 4.0])
    x[0, 0, 0, 1] = 1e-12
    result = normalize(x)[0, :, 0]
    assert torch.allclose(result[:, 0], torch.tensor([0.6, 0.8]))
    assert abs(float(result[0, 1]) - 0.5) < 1e-4  # F.normalize would give 1
    assert (result[:, 2] == 0).all()


def test_normalize_has_a_finite_gradient_at_zero() -> None:
    for function, finite in ((normalize, True), (unit, False)):
        x = torch.zeros(1, 4, 2, 2, requires_grad=True)
        torch.autograd.backward(function(x).sum())
        assert x.grad is not None
        assert bool(x.grad.isfinite().all()) is finite
    silent = torch.zeros(1, 4, 2, 2, requires_grad=True)
    torch.autograd.backward(normalize(silent.relu()).sum())
    assert silent.grad is not None
    assert (silent.grad == 0).all()


def test_distances_are_one_minus_the_cosine() -> None:
    x = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]).T[None, :, None]
    y = torch.tensor([[6.0, 8.0], [-2.0, 0.0], [5.0, 0.0]]).T[None, :, None]
    (distance,) = cosine_distances([normalize(x)], [normalize(y)])
    assert distance.shape == (1, 1, 1, 3)
    assert torch.allclose(distance.flatten(), torch.tensor([0.0, 2.0, 1.0]), atol=1e-6)


def test_dest_map_is_the_product_at_the_first_levels_size() -> None:
    teacher = [torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2)]
    student = [torch.ones(1, 2, 4, 4), torch.ones(1, 2, 2, 2)]
    teacher[0][:, 0], teacher[1][:, 0, 0, 0] = -1.0, -2.0  # distances 2, and 3 in one corner
    product = dest_map(teacher, student)
    assert product.shape == (1, 1, 4, 4)
    assert product[0, 0, 0, 0] == 6
    assert product[0, 0, 3, 3] == 2
    assert product[0, 0, 1, 1] == 2 * (1 + 2 * 0.75 * 0.75)  # half-pixel centres


def test_upsample_has_half_pixel_centres() -> None:
    x = torch.tensor([[[[0.0, 1.0]]]])
    assert upsample(x, [1, 4]).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]


def test_the_segmentation_is_float_under_autocast(trained: DeSTSeg, images: Tensor) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        teacher, student = trained.features(images)
        segmentation = trained.segment(teacher, student)
    assert {t.dtype for t in (*teacher, *student, segmentation)} == {torch.float32}


def test_aspp_takes_any_number_of_dilations() -> None:
    aspp = ASPP(8, (1, 2)).eval()
    assert aspp.aspp_fusion_layer.conv.in_channels == 24
    assert aspp(torch.zeros(1, 8, 5, 6)).shape == (1, 8, 5, 6)


@pytest.mark.parametrize(
    ("channels", "stride", "there"),
    [((4, 4), 1, False), ((4, 4), 2, True), ((4, 8), 1, True), ((4, 8), 2, True)],
)
def test_a_shortcut_is_projected_only_where_the_shape_changes(
    channels: tuple[int, int], stride: int, there: bool
) -> None:
    block = BasicBlock(*channels, stride)
    assert (block.downsample is not None) is there
    assert block(torch.zeros(1, channels[0], 8, 8)).shape == (
        1,
        channels[1],
        8 // stride,
        8 // stride,
    )
