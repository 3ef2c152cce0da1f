"""Uninformed Students: dense descriptors, distillation, statistics and scores."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from destseg_bench.systems.system import Task
from destseg_bench.systems.training import fit
from destseg_bench.systems.uninformed_students import system as uninformed_students
from destseg_bench.systems.uninformed_students.distillation import (
    Moments,
    compactness,
    cut,
    distillation_loss,
    random_windows,
)
from destseg_bench.systems.uninformed_students.patches import (
    PLANS,
    PatchNetwork,
)
from destseg_bench.systems.uninformed_students.system import (
    UninformedStudents,
    predictive_variance,
    regression_error,
)
from destseg_deploy.data.finding import list_images
from destseg_deploy.data.images import read_image
from destseg_deploy.errors import BackendError
from destseg_deploy.models.resnet import ResNet18


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a ResNet18 that ends at layer3."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "trunk.safetensors"
    save_file(ResNet18(layers=3).state_dict(), path)
    return path


# ------------------------------------------------------------------------------- descriptors


def per_patch(network: PatchNetwork, image: torch.Tensor, rows: range) -> torch.Tensor:
    """The descriptor of the patch about every pixel of some rows, each cut out by itself."""
    side = network.patch
    padded = F.pad(image, [side // 2] * 4)
    patches = [
        padded[0, :, y : y + side, x : x + side] for y in rows for x in range(image.shape[3])
    ]
    described = network(torch.stack(patches))
    return described.T.reshape(1, network.width, len(rows), image.shape[3])


@pytest.mark.parametrize("patch", PLANS)
@pytest.mark.parametrize("size", [(21, 18), (16, 24)])
@torch.no_grad()
def test_dense_descriptors_are_those_of_each_patch(patch: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = PatchNetwork(patch, narrow=16).double()
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    dense = network.describe(image)
    assert dense.shape == (1, 128 // 16, *size)
    for rows in (range(3), range(size[0] - 3, size[0])):  # the border is where it may go wrong
        torch.testing.assert_close(
            dense[:, :, rows.start : rows.stop], per_patch(network, image, rows)
        )
    shifted = per_patch(network, image.roll(1, dims=3), range(3))  # a control
    assert float((dense[:, :, :3] - shifted).abs().max()) > 1e-2 * float(dense.std())


@pytest.mark.parametrize("patch", PLANS)
def test_a_patch_is_one_descriptor_of_128(patch: int) -> None:
    network = PatchNetwork(patch)
    assert network(torch.zeros(2, 3, patch, patch)).shape == (2, 128)
    assert network.width == 128


@torch.no_grad()
def test_descriptors_may_be_negative_and_hidden_layers_leak() -> None:
    torch.manual_seed(0)
    network = PatchNetwork(17, narrow=16).double()
    found = network.describe(torch.randn(1, 3, 9, 9, dtype=torch.float64))
    assert float(found.min()) < -0.1 * float(found.max())  # no ReLU at the end
    x = torch.randn(1, 3, 17, 17, dtype=torch.float64)
    wanted = x
    for i, layer in enumerate(network.layers[::2]):  # the convolutions
        wanted = layer(wanted)
        wanted = torch.where(wanted > 0, wanted, 0.005 * wanted) if i < 3 else wanted
    torch.testing.assert_close(network(x), wanted.flatten(1))


def test_other_patches_are_refused() -> None:
    with pytest.raises(BackendError, match="patch 9: expected one of 17, 33, 65"):
        PatchNetwork(9)


# ------------------------------------------------------------------------------- distillation


def test_compactness_is_the_sum_of_squared_correlations() -> None:
    descriptors = np.random.default_rng(0).standard_normal((50, 6)) @ np.ones((6, 6)) * 0.2
    descriptors += np.random.default_rng(1).standard_normal((50, 6))
    correlations = np.corrcoef(descriptors.T)
    wanted = (correlations**2).sum() - 6
    found = float(compactness(torch.from_numpy(descriptors)))
    assert found == pytest.approx(wanted)
    assert wanted > 0.5  # they are correlated


def test_windows_are_inside_and_of_the_sizes_said() -> None:
    windows = random_windows(torch.zeros(500, 3, 8, 8), torch.Generator().manual_seed(0))
    share = windows[:, 0, 0]
    assert (windows[:, 0, 0] == windows[:, 1, 1]).all()
    assert 1 / 16 <= float(share.min()) < 0.07
    assert 0.23 < float(share.max()) <= 1 / 4
    reach = windows[:, :, 2].abs() + share[:, None]
    assert 0.95 < float(reach.max()) <= 1 + 1e-6


def test_a_window_is_cut_where_it_is() -> None:
    images = torch.arange(64.0).view(1, 1, 8, 8)
    window = torch.tensor([[[0.25, 0, -0.25], [0, 0.25, 0.75]]])  # columns 2-3, rows 6-7
    torch.testing.assert_close(cut(images, window, 2)[0, 0], images[0, 0, 6:8, 2:4])


@torch.no_grad()
def test_the_loss_is_zero_only_for_the_source_s_features() -> None:
    torch.manual_seed(0)
    source = ResNet18(layers=1).eval()
    network = PatchNetwork(17, narrow=8)
    patches = torch.randn(4, 3, 17, 17)
    enlarged = F.interpolate(patches, (64, 64), mode="bilinear", align_corners=False)
    wanted = source(enlarged)[0].mean(dim=(2, 3)).detach()
    spread = float(compactness(network(patches)))
    loss = distillation_loss(network, lambda d: wanted, source, patches)
    assert float(loss) == pytest.approx(spread, rel=1e-4)
    loss = distillation_loss(network, lambda d: wanted + 0.5, source, patches)
    assert float(loss) == pytest.approx(spread + 64 * 0.25, rel=1e-4)


# ------------------------------------------------------------------------------- statistics


def test_moments_are_those_of_all_values_at_once() -> None:
    random = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 3, 4, 5, generator=random) * n + 1000 for n in (1, 2, 3)]
    moments = Moments(3)
    for part in parts:
        moments.add(part)
    values = torch.cat(parts).transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(moments.mean, values.mean(dim=1))
    torch.testing.assert_close(moments.deviation, values.std(dim=1, correction=0))
    each = torch.stack([p.transpose(0, 1).flatten(1).std(dim=1).double() for p in parts])
    assert not torch.allclose(each.mean(dim=0), moments.deviation, rtol=1e-2)  # a control


def test_empty_and_constant_moments_can_be_divided_by() -> None:
    moments, values = Moments(2), torch.full((1, 2, 3, 3), 5.0)
    torch.testing.assert_close(moments.standardize(values), values)
    moments.add(values)
    torch.testing.assert_close(moments.standardize(values), torch.zeros_like(values))


def test_error_and_variance_are_those_of_the_description() -> None:
    random = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 6, 4, 4, generator=random).double()
    students = torch.randn(2, 3, 6, 4, 4, generator=random).double()
    mean = students.mean(dim=1)
    wanted = students.square().sum(dim=2).mean(dim=1) - mean.square().sum(dim=1)
    torch.testing.assert_close(predictive_variance(students), wanted)
    torch.testing.assert_close(
        regression_error(teacher, students), (mean - teacher).norm(dim=1) ** 2
    )
    agreeing = students[:, :1].expand(-1, 3, -1, -1, -1)
    assert float(predictive_variance(agreeing).max()) < 1e-12
    assert float(regression_error(agreeing[:, 0], agreeing).max()) < 1e-12


# ------------------------------------------------------------------------------- the system


@pytest.fixture(scope="module")
def trained(make_task, weights: Path) -> UninformedStudents:
    """A system trained for some steps on images of 32 x 32."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uninformed_students, "QUICK_DISTILLATION_STEPS", 4)
        patch.setattr(uninformed_students, "QUICK_STEPS", 24)
        patch.setattr(uninformed_students, "PATCHES", 8)
        system = UninformedStudents(make_task(weights={"resnet18": weights}))
        system.size = (32, 32)
        system.losses = fit(system)
    return system


def normal_images(system: UninformedStudents) -> torch.Tensor:
    frames = [read_image(path) for path in system.task.images]
    return torch.from_numpy(np.stack([system.prepare(frame) for frame in frames]))


def test_all_stages_run_in_order_and_students_learn(trained: UninformedStudents) -> None:
    losses = trained.losses
    assert list(losses) == ["teachers", "teacher statistics", "students", "score statistics"]
    assert losses["teachers"][-1] < losses["teachers"][0]
    assert np.mean(losses["students"][-6:]) < 0.99 * np.mean(
        losses["students"][:6]
    )  # the same images
    assert all(p.grad is not None for p in trained.scales[2].students[2].parameters())


@torch.no_grad()
def test_normal_images_have_standardised_descriptors_and_scores(
    trained: UninformedStudents,
) -> None:
    outputs = trained.network(normal_images(trained))
    for i, scale in enumerate(trained.scales):
        teacher, students = outputs[2 * i : 2 * i + 2]
        assert students.shape[1] == 3
        rows = teacher.transpose(0, 1).flatten(1)
        torch.testing.assert_close(rows.mean(dim=1), torch.zeros(len(rows)), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            rows.std(dim=1, correction=0), torch.ones(len(rows)), atol=1e-4, rtol=0
        )
        raw = torch.stack([regression_error(teacher, students), predictive_variance(students)], 1)
        scores = scale.scores.standardize(raw).transpose(0, 1).flatten(1)
        torch.testing.assert_close(scores.mean(dim=1), torch.zeros(2), atol=1e-3, rtol=0)
        torch.testing.assert_close(scores.var(dim=1), torch.ones(2), atol=1e-2, rtol=0)
        assert abs(float(raw.mean()) - 0) > 0.05  # before, they were not


@torch.no_grad()
def test_the_map_averages_the_scales_and_the_score_is_its_maximum(
    trained: UninformedStudents,
) -> None:
    outputs = trained.network(normal_images(trained)[:2])
    maps, scores = trained.answer(outputs)
    assert maps.shape == (2, 32, 32)
    torch.testing.assert_close(scores, maps.flatten(1).max(dim=1).values)
    total = torch.zeros(2, 32, 32)
    for i, scale in enumerate(trained.scales):
        parts = (
            regression_error(*outputs[2 * i : 2 * i + 2]),
            predictive_variance(outputs[2 * i + 1]),
        )
        for part, mean, spread in zip(
            parts, scale.scores.mean, scale.scores.deviation, strict=True
        ):
            total += (part - float(mean)) / float(spread)
    torch.testing.assert_close(maps, total / 3, rtol=1e-3, atol=1e-3)


def test_textures_are_among_what_teachers_see(
    make_task, category: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[Path, ...]] = []

    class Recorded(uninformed_students.TrainingFrames):
        def __init__(self, task: Task, *args) -> None:
            opened.append(task.images)
            super().__init__(task, *args)

    monkeypatch.setattr(uninformed_students, "TrainingFrames", Recorded)
    monkeypatch.setattr(uninformed_students, "TEXTURES", 2)
    textures = category / "test" / "good"
    task = make_task(weights={"resnet18": weights}, textures=textures)
    UninformedStudents(task).stages()
    assert opened[0] == task.images
    assert opened[1][: len(task.images)] == task.images
    assert set(opened[1][len(task.images) :]) < set(list_images(textures))
    assert len(opened[1]) == len(task.images) + 2
