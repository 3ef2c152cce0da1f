"""CutPaste: what is pasted, the density, the map, and the training that uses them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from destseg_bench.systems.cutpaste import augment as cutpaste_augment
from destseg_bench.systems.cutpaste import system as cutpaste
from destseg_bench.systems.cutpaste.augment import (
    Box,
    jitter,
    paste_patch,
    paste_scar,
    patch_size,
    random_box,
    shift_hue,
    turn,
)
from destseg_bench.systems.cutpaste.density import GaussianDensity, ledoit_wolf
from destseg_bench.systems.cutpaste.system import (
    CutPaste,
    cosine_rate,
    embedding,
    grad_cam,
    three_kinds,
)
from destseg_deploy.data.images import read_image
from destseg_deploy.errors import ShapeError
from destseg_deploy.models.resnet import ResNet18


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def image(random: np.random.Generator) -> np.ndarray:
    return random.random((128, 96, 3)).astype(np.float32)


# ------------------------------------------------------------------------------- pasting


def test_a_patch_has_the_area_and_the_aspect_of_the_description(
    random: np.random.Generator,
) -> None:
    sizes = np.array([patch_size(256, 256, random) for _ in range(3000)])
    area, aspect = sizes.prod(axis=1) / 256**2, sizes[:, 0] / sizes[:, 1]
    assert 0.018 < area.min() < 0.022
    assert 0.148 < area.max() < 0.152
    assert area.mean() == pytest.approx(0.085, abs=0.003)  # uniform
    assert 0.29 < aspect.min() < 0.32
    assert 3.1 < aspect.max() < 3.45
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.05)  # uniform in its logarithm
    assert aspect.mean() > 1.2  # which it would not be if uniform in the height's share
    assert patch_size(4, 500, random)[0] <= 4


def test_only_a_rectangle_changes_and_the_image_itself_does_not(
    image: np.ndarray, random: np.random.Generator
) -> None:
    before = image.copy()
    for _ in range(30):
        pasted = paste_patch(image, random)
        changed = (pasted != image).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.mean() > 0.98  # noise: all but chance agreements differ
        assert 0.015 < changed.mean() < 0.155
        assert pasted.dtype == np.float32
        assert pasted.min() >= 0
        assert pasted.max() <= 1
    assert (image == before).all()


def test_what_is_pasted_is_a_piece_of_the_image(
    image: np.ndarray, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutpaste_augment, "JITTER", 0.0)
    boxes: list[Box] = []

    def recorded(*args) -> Box:
        boxes.append(random_box(*args))
        return boxes[-1]

    monkeypatch.setattr(cutpaste_augment, "random_box", recorded)
    pasted = paste_patch(image, random)
    source, target = boxes
    assert source != target
    np.testing.assert_allclose(pasted[target], image[source], atol=1e-5)


def test_a_box_is_anywhere_inside_and_nowhere_else(random: np.random.Generator) -> None:
    image = np.zeros((6, 5, 3), np.float32)
    boxes = [random_box(image, 4, 5, random) for _ in range(100)]
    corners = {(rows.start, columns.start) for rows, columns in boxes}
    assert corners == {(0, 0), (1, 0), (2, 0)}


def test_a_scar_is_thin_and_turned(image: np.ndarray, random: np.random.Generator) -> None:
    areas, leaning = [], 0
    for _ in range(60):
        changed = (paste_scar(image, random) != image).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        extent = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        areas.append(changed.sum())
        leaning += changed.sum() < 0.9 * extent
        assert max(np.ptp(rows), np.ptp(columns)) < np.hypot(16, 25)
    assert min(areas) >= 2 * 10 * 0.7
    assert max(areas) <= 16 * 25 * 1.2
    assert leaning > 30  # a rectangle along the axes fills its extent


@pytest.mark.parametrize("degrees", [0.0, 90.0, -90.0, 180.0])
def test_turning_by_right_angles_is_exact(random: np.random.Generator, degrees: float) -> None:
    piece = random.random((5, 3, 3)).astype(np.float32)
    turned, inside = turn(piece, degrees)
    assert inside.all()
    np.testing.assert_array_equal(turned, np.rot90(piece, round(degrees / 90)))


@pytest.mark.parametrize("degrees", [-45.0, 20.0])
def test_turning_keeps_the_area_and_all_of_the_piece(degrees: float) -> None:
    _, inside = turn(np.zeros((25, 12, 3), np.float32), degrees)
    assert inside.sum() == pytest.approx(25 * 12, rel=0.03)
    height = 25 * math.cos(math.radians(degrees)) + 12 * abs(math.sin(math.radians(degrees)))
    assert inside.shape[0] == math.ceil(height)


def test_jitter_changes_colours_a_little(random: np.random.Generator) -> None:
    piece = random.uniform(0.3, 0.7, (12, 9, 3)).astype(np.float32)
    changes = [np.abs(jitter(piece, random) - piece).max() for _ in range(50)]
    assert all(0 < change < 0.4 for change in changes)
    assert max(changes) > 2 * min(changes)


def test_hue_turns_red_to_green_to_blue() -> None:
    red = np.zeros((1, 1, 3), np.float32)
    red[..., 0] = 0.8
    np.testing.assert_allclose(shift_hue(red, 1 / 3)[0, 0], [0, 0.8, 0], atol=1e-6)
    np.testing.assert_allclose(shift_hue(red, -1 / 3)[0, 0], [0, 0, 0.8], atol=1e-6)
    np.testing.assert_allclose(shift_hue(red, 1.0), red, atol=1e-6)


def test_a_batch_has_each_image_in_three_kinds(random: np.random.Generator) -> None:
    pixels = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    images, kinds = three_kinds(pixels, random)
    assert kinds.tolist() == [0, 0, 1, 1, 2, 2]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(images[:2], (pixels - mean[:, None, None]) / std[:, None, None])
    changed = (images.view(3, 2, 3, 96, 96) != images[:2]).any(dim=2).float().mean(dim=(2, 3))
    assert (changed[0] == 0).all()
    assert (changed[1:] > 0).all()
    assert (changed[1] < 0.16).all()
    assert (changed[2] < 0.06).all()


# ------------------------------------------------------------------------------- density and map


@pytest.mark.parametrize("count", [6, 200])
def test_the_covariance_is_scikit_learn_s(count: int) -> None:
    covariance = pytest.importorskip("sklearn.covariance")
    random = np.random.default_rng(0)
    samples = random.standard_normal((count, 20)) @ random.standard_normal((20, 20)) + 3
    wanted = covariance.LedoitWolf().fit(samples)
    found = ledoit_wolf(torch.from_numpy(samples)).numpy()
    np.testing.assert_allclose(found, wanted.covariance_, atol=1e-7)
    plain = np.cov(samples.T, bias=True)
    assert np.abs(found - plain).max() > 0.02  # it is shrunk


def test_the_distance_is_mahalanobis() -> None:
    covariance = pytest.importorskip("sklearn.covariance")
    random = np.random.default_rng(0)
    samples = random.standard_normal((60, 8)) * np.arange(1, 9)
    density = GaussianDensity(8)
    density.fit(torch.from_numpy(samples).float())
    queries = random.standard_normal((5, 8)).astype(np.float32) * 9
    wanted = np.sqrt(covariance.LedoitWolf().fit(samples).mahalanobis(queries))
    found = density.distance(torch.from_numpy(queries))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert not np.allclose(found, np.linalg.norm(queries - samples.mean(axis=0), axis=1), rtol=0.1)


def test_embeddings_that_are_all_the_same_can_be_fitted_and_one_cannot() -> None:
    density = GaussianDensity(4)
    density.fit(torch.ones(5, 4))
    assert float(density.distance(torch.ones(1, 4))) == 0
    assert math.isfinite(float(density.distance(torch.zeros(1, 4))))
    with pytest.raises(ShapeError, match="samples 1: expected at least 2"):
        density.fit(torch.ones(1, 4))


def test_the_map_is_grad_cam_by_automatic_differentiation() -> None:
    random = torch.Generator().manual_seed(0)
    density = GaussianDensity(16)
    density.fit(F.normalize(torch.rand(40, 16, generator=random), dim=1))
    features = torch.rand(3, 16, 4, 5, generator=random).requires_grad_()
    scores = density.distance(embedding(features))
    (slope,) = torch.autograd.grad(scores.sum(), features)
    weights = slope.mean(dim=(2, 3), keepdim=True)
    wanted = F.relu((weights * features).sum(dim=1))
    distance, cam = grad_cam(density, features.detach())
    torch.testing.assert_close(distance, scores.detach())
    torch.testing.assert_close(cam, wanted.detach(), rtol=1e-4, atol=1e-6)
    assert float(cam.max()) > 1e-2
    blind = F.relu((weights.abs() * features).sum(dim=1)).detach()  # a control
    assert not torch.allclose(cam, blind, rtol=1e-2)


# ------------------------------------------------------------------------------- training


def test_the_learning_rate_falls_by_a_cosine() -> None:
    assert cosine_rate(0, 100) == pytest.approx(0.03)
    assert cosine_rate(50, 100) == pytest.approx(0.015)
    assert cosine_rate(25, 100) == pytest.approx(0.015 * (1 + math.sqrt(0.5)))
    assert 0 < cosine_rate(99, 100) < 1e-5


def test_it_trains_then_fits_every_normal_image(
    make_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    save_file(ResNet18(layers=3).state_dict(), tmp_path / "trunk.safetensors")
    monkeypatch.setattr(CutPaste, "size", (64, 64))
    monkeypatch.setattr(cutpaste, "QUICK_STEPS", 8)
    weights = {"resnet18": tmp_path / "trunk.safetensors"}
    system = CutPaste(make_task(weights=weights))
    classification, density = system.stages()
    losses = [float(classification.step(i)) for i in range(8)]
    assert system.backbone.training
    classification.end()
    assert not system.backbone.training
    assert not system.head.training
    assert min(losses[-4:]) < losses[0]
    assert density.steps == 6
    for i in range(6):
        density.step(i)
    density.step(5)  # a repeated step counts once
    density.end()
    frames = [read_image(path) for path in system.task.images]
    images = torch.from_numpy(np.stack([system.prepare(frame) for frame in frames]))
    with torch.no_grad():
        embeddings = embedding(system.network(images)[0])
    torch.testing.assert_close(system.density.mean, embeddings.mean(dim=0), rtol=1e-4, atol=1e-5)
    wanted = torch.linalg.inv(ledoit_wolf(embeddings)).float()
    torch.testing.assert_close(
        system.density.precision, wanted, rtol=2e-2, atol=float(wanted.max()) * 1e-2
    )
    with torch.no_grad():
        maps, scores = system.answer(system.network(images))
    assert maps.shape == (6, 64, 64)
    assert scores.isfinite().all()
