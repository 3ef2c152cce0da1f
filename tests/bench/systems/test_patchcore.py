"""PatchCore: patches, coreset, search and map, each against the description taken literally."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from destseg_bench.systems.patchcore import search
from destseg_bench.systems.patchcore import system as patchcore
from destseg_bench.systems.patchcore.features import PatchEmbedding, WideResNet50
from destseg_bench.systems.patchcore.search import (
    STARTS,
    Coreset,
    enlarge_and_smooth,
    random_projection,
    squared_distances,
)
from destseg_bench.systems.patchcore.system import PatchCore, PatchCoreResNet18, bank_rows
from destseg_bench.systems.system import Task, detect
from destseg_bench.systems.training import fit
from destseg_deploy.data.images import read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.errors import BackendError, ShapeError

CPU = torch.device("cpu")


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path, task: Task) -> PatchCore:
    """With random weights: none are cached."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    return PatchCoreResNet18(task)


# ------------------------------------------------------------------------------- patches


def literal_patches(features: list[Tensor]) -> Tensor:
    """Patch features as the authors' code computes them, step by step."""
    grid = features[0].shape[2:]
    layers = []
    for layer in features:
        count, channels, height, width = layer.shape
        unfolded = F.unfold(layer, 3, padding=1).view(count, channels * 9, height, width)
        if (height, width) != tuple(grid):
            planes = unfolded.reshape(-1, 1, height, width)  # each channel and kernel position
            planes = F.interpolate(planes, grid, mode="bilinear", align_corners=False)
            unfolded = planes.reshape(count, channels * 9, *grid)
        rows = unfolded.flatten(2).transpose(1, 2).reshape(-1, 1, channels * 9)
        layers.append(F.adaptive_avg_pool1d(rows, 1024).squeeze(1))
    stacked = torch.stack(layers, dim=1).reshape(len(layers[0]), 1, 2048)
    return F.adaptive_avg_pool1d(stacked, 1024).view(len(features[0]), -1, 1024)


@pytest.mark.parametrize("channels", [(512, 1024), (128, 256), (64, 1024)])
def test_patch_features_are_those_of_unfold_and_two_poolings(channels: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    fine = torch.randn(2, channels[0], 6, 8, generator=random)
    coarse = torch.randn(2, channels[1], 3, 4, generator=random)
    embedding = PatchEmbedding(channels)
    found, wanted = embedding([fine, coarse]), literal_patches([fine, coarse])
    assert found.shape == (2, 48, 1024)
    assert found.is_contiguous()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    embedding.fine = F.avg_pool2d(embedding.fine, 3, 1, 1)  # a control: other weights
    assert float((embedding([fine, coarse]) - wanted).abs().max()) > 1e-2


def test_channels_whose_windows_would_straddle_are_refused() -> None:
    with pytest.raises(ShapeError, match="channels 96: expected a divisor of 1024"):
        PatchEmbedding((96, 256))


def test_the_wide_network_has_torchvision_s_names_and_shapes() -> None:
    with torch.device("meta"):
        network = WideResNet50()
    state = network.state_dict()
    assert state["layer1.0.conv2.weight"].shape == (128, 128, 3, 3)
    assert state["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert state["layer3.5.conv3.weight"].shape == (1024, 512, 1, 1)
    assert state["layer3.0.downsample.1.running_var"].shape == (1024,)
    assert "layer3.6.conv1.weight" not in state
    assert "layer2.1.downsample.0.weight" not in state
    assert network.layer2[0].conv1.stride == (1, 1)
    assert network.layer2[0].conv2.stride == (2, 2)  # where torchvision shrinks
    maps = network(torch.zeros(2, 3, 224, 224, device="meta"))
    assert [tuple(m.shape[1:]) for m in maps] == [(256, 56, 56), (512, 28, 28), (1024, 14, 14)]


def test_the_middle_of_a_frame_is_kept(system: PatchCore) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    whole = resize_image(frame, (256, 256)).astype(np.float32) / 255
    wanted = (whole[16:240, 16:240] - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    found = system.prepare(frame)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted.transpose(2, 0, 1), atol=1e-5)
    assert system.window * 256 == 224


# ------------------------------------------------------------------------------- coreset


def literal_coreset(projected: Tensor, starts: Tensor, picks: int) -> list[int]:
    """The greedy loop over the whole matrix of distances."""
    distances = torch.cdist(projected.double(), projected.double())
    nearest_pick = distances[:, starts].mean(dim=1)
    picked = []
    for _ in range(picks):
        row = int(nearest_pick.argmax())
        picked.append(row)
        nearest_pick = torch.minimum(nearest_pick, distances[row])
    return picked


def pick_all(coreset: Coreset, picks: int) -> list[float]:
    coreset.start()
    return [float(coreset.pick(i)) for i in range(picks)]


def test_the_coreset_is_that_of_the_literal_loop() -> None:
    features = torch.randn(300, 40, generator=torch.Generator().manual_seed(1))
    coreset = Coreset(300, 40, 60, device=CPU, seed=5)
    for first in range(0, 300, 64):
        coreset.put(first, features[first : first + 64])
    radii = pick_all(coreset, 60)
    random = torch.Generator().manual_seed(5)
    projected = features @ random_projection(40, random)
    starts = torch.randperm(300, generator=random)[:STARTS]
    assert coreset.picked.tolist() == literal_coreset(projected, starts, 60)
    assert coreset.picked.tolist() != literal_coreset(projected, starts + 1 - starts % 2 * 2, 60)
    assert len(set(coreset.picked.tolist())) == 60
    torch.testing.assert_close(coreset.rows(), features[coreset.picked])
    assert radii[1:] == sorted(radii[1:], reverse=True)


def test_few_and_equal_features_are_picked_from_without_trouble() -> None:
    coreset = Coreset(3, 8, 3, device=CPU, seed=0)
    coreset.put(0, torch.ones(3, 8))
    assert pick_all(coreset, 3) == pytest.approx([0, 0, 0], abs=1e-2)
    assert coreset.rows().shape == (3, 8)


def test_the_projection_is_a_linear_layer_s_initial_one() -> None:
    found = random_projection(1024, torch.Generator().manual_seed(0))
    layer = torch.nn.Linear(1024, 128, bias=False).weight.detach()
    assert found.shape == (1024, 128)
    assert float(found.abs().max()) <= 1 / 32
    assert float(found.std()) == pytest.approx(float(layer.std()), rel=0.02)


# ------------------------------------------------------------------------------- search


def brute_force(queries: Tensor, bank: Tensor) -> Tensor:
    return torch.cdist(queries.double(), bank.double()).square().amin(dim=1).float()


def test_the_search_finds_squared_distances_far_from_the_origin() -> None:
    random = torch.Generator().manual_seed(0)
    bank = torch.randn(500, 32, generator=random) + 100
    queries = torch.randn(70, 32, generator=random) + 100
    wanted = brute_force(queries, bank)
    torch.testing.assert_close(squared_distances(queries, bank), wanted, rtol=1e-5, atol=0)
    expanded = queries.square().sum(1)[:, None] + bank.square().sum(1) - 2 * queries @ bank.T
    assert not torch.allclose(expanded.amin(dim=1), wanted, rtol=1e-5)  # what is avoided
    assert not torch.allclose(wanted.sqrt(), wanted, rtol=0.1)
    assert squared_distances(bank[10:20], bank).tolist() == [0.0] * 10


@pytest.mark.parametrize("chunk", [7 * 4 * 90, 1])
def test_a_search_in_chunks_finds_the_same(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    random = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(90, 16, generator=random), torch.randn(41, 16, generator=random)
    whole = squared_distances(queries, bank)
    monkeypatch.setattr(search, "CHUNK_BYTES", chunk)
    torch.testing.assert_close(squared_distances(queries, bank), whole)


# ------------------------------------------------------------------------------- map and score


def literal_map(grid: Tensor, sigma: float, filtered: Callable[..., np.ndarray]) -> np.ndarray:
    whole = F.interpolate(grid[None, None], (224, 224), mode="bilinear", align_corners=False)
    return filtered(whole[0, 0].double().numpy(), sigma=sigma)


def test_the_map_is_enlarged_bilinearly_and_smoothed_as_by_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    grid = torch.rand(28, 28, generator=torch.Generator().manual_seed(0)).double()
    matrix = torch.from_numpy(enlarge_and_smooth(28, 224, 4.0)).double()
    found = (matrix @ grid @ matrix.T).numpy()
    np.testing.assert_allclose(found, literal_map(grid, 4.0, ndimage.gaussian_filter), atol=1e-6)
    other = literal_map(grid, 3.9, ndimage.gaussian_filter)
    assert np.abs(found - other).max() > 1e-3
    np.testing.assert_allclose(matrix.sum(dim=1), 1, atol=1e-6)


def test_a_kernel_wider_than_the_map_is_mirrored_as_by_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    impulse = np.eye(6)
    wanted = ndimage.gaussian_filter1d(impulse, 4.0, axis=0)
    np.testing.assert_allclose(enlarge_and_smooth(6, 6, 4.0), wanted, atol=1e-6)


def test_the_score_is_the_largest_distance_and_the_map_shows_where(system: PatchCore) -> None:
    bank = system.bank = torch.rand(20, 1024, generator=torch.Generator().manual_seed(0))
    features = bank[torch.arange(2 * 784) % 20].view(2, 784, 1024).clone()
    features[1, 5 * 28 + 20] += 0.5  # row 5, column 20 of the second image
    maps, scores = system.answer((features,))
    assert scores.tolist() == pytest.approx([0.0, 256.0], rel=1e-4)
    assert maps.shape == (2, 224, 224)
    assert float(maps[0].abs().max()) == 0
    top, left = divmod(int(maps[1].argmax()), 224)
    assert (abs(top - 5.5 * 8), abs(left - 20.5 * 8)) < (2, 2)
    assert 0 < float(maps[1].max()) < float(scores[1])  # the score is not smoothed


# ------------------------------------------------------------------------------- the bank


def test_the_bank_of_cable_has_its_real_size(make_task) -> None:
    images = make_task().images[:1] * 224
    cable = make_task(schedule="paper")
    assert bank_rows(Task(cable.category, images, "paper")) == 17_561
    assert bank_rows(Task(cable.category, images, "quick")) == 1_756


def test_without_a_bank_it_does_not_answer(system: PatchCore) -> None:
    with pytest.raises(BackendError, match=r"no memory bank\. Train it, or call stand_in"):
        detect(system, torch.zeros(1, 3, 224, 224))


def test_training_keeps_a_coreset_of_every_image(
    system: PatchCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patchcore, "BATCH", 4)
    stages = {stage.name: stage for stage in system.stages()}
    assert stages["features"].steps == 2  # the last batch has 2 of 6 images
    losses = fit(system)
    assert len(losses["coreset"]) == stages["coreset"].steps == 47
    frames = [read_image(path) for path in system.task.images]
    images = torch.from_numpy(np.stack([system.prepare(frame) for frame in frames]))
    with torch.no_grad():
        patches = system.network(images)[0].flatten(0, 1)
    origins = torch.cdist(system.bank, patches, compute_mode="donot_use_mm_for_euclid_dist")
    assert float(origins.amin(dim=1).max()) < 1e-3
    assert len(set((origins.argmin(dim=1) // 784).tolist())) > 1
    noise = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert float(detect(system, noise)[1]) > float(detect(system, images)[1].max())


def test_a_bank_cut_short_keeps_its_size(system: PatchCore) -> None:
    features, coreset = system.stages()
    features.step(0)
    features.end()
    coreset.step(0)
    coreset.step(0)  # a warm-up repeats
    coreset.step(1)
    coreset.end()
    found = system.bank
    system.stand_in()
    assert found.shape == system.bank.shape == (6 * 784 // 100, 1024)
    assert (found == system.bank).all(dim=1).tolist() == [False] * 2 + [True] * 45
