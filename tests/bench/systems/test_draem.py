"""DRAEM: its loss, networks, training samples and answer."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from destseg_bench.systems.draem import synthesis as draem_synthesis
from destseg_bench.systems.draem import system as draem
from destseg_bench.systems.draem.networks import discriminative, reconstructive
from destseg_bench.systems.draem.synthesis import (
    AUGMENTATIONS,
    BgrTextures,
    augment,
    make_batch,
    synthesize,
)
from destseg_bench.systems.draem.system import structural_similarity
from destseg_bench.systems.frames import BgrFrames
from destseg_bench.systems.system import Task
from destseg_bench.systems.two_class import focal_loss, pooled_score

SIDE = 64


@pytest.fixture
def small_networks(monkeypatch) -> None:
    """Stand-ins where networks are made and not looked at: 97 M random numbers take seconds."""
    for name in ("reconstructive", "discriminative"):
        monkeypatch.setattr(draem, name, lambda: torch.nn.Conv2d(1, 1, 1))


# ------------------------------------------------------------------------------------ loss


@pytest.mark.usefixtures("small_networks")
def test_the_loss_compares_the_repaired_image_with_the_clean_one(task: Task) -> None:
    system = draem.Draem(task)
    generator = torch.Generator().manual_seed(0)
    images, clean, repaired = torch.rand(3, 2, 3, 16, 16, generator=generator)
    logits, masks = torch.randn(2, 2, 16, 16, generator=generator), torch.zeros(2, 1, 16, 16)
    seen = []
    system.reconstructive = lambda batch: repaired
    system.discriminative = lambda pair: seen.append(pair) or logits
    similarity = float(structural_similarity(repaired, clean).mean())
    expected = float(((repaired - clean) ** 2).mean()) + 1 - similarity
    expected += float(focal_loss(logits, masks))
    assert float(system.loss(images, clean, masks)) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(seen[0], torch.cat([repaired, images], dim=1))


def test_learning_rate_falls_to_a_fifth_twice() -> None:
    assert draem.learning_rate(0, 1000) == draem.learning_rate(799, 1000) == 1e-4
    assert draem.learning_rate(800, 1000) == draem.learning_rate(899, 1000) == pytest.approx(2e-5)
    assert draem.learning_rate(900, 1000) == draem.learning_rate(999, 1000) == pytest.approx(4e-6)


# -------------------------------------------------------------------------------- networks

RECONSTRUCTIVE = [
    *[(3, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)],
    *[(512, 1024), (1024, 1024), (1024, 1024), (1024, 1024)],
    *[(1024, 1024), (1024, 1024), (1024, 512), (512, 512), (512, 512), (512, 256)],
    *[(256, 256), (256, 256), (256, 128), (128, 128), (128, 128), (128, 128), (128, 3)],
]
DISCRIMINATIVE = [
    *[(6, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)],
    *[(512, 512), (512, 512), (512, 512), (512, 512)],
    *[(512, 512), (512, 256), (256, 128), (128, 64), (64, 64)],  # enlargements
    *[(1024, 512), (512, 512), (768, 256), (256, 256), (384, 128), (128, 128)],  # joined
    *[(192, 64), (64, 64), (128, 64), (64, 64), (64, 2)],
]


@pytest.mark.parametrize(
    ("make", "widths"), [(reconstructive, RECONSTRUCTIVE), (discriminative, DISCRIMINATIVE)]
)
def test_networks_have_the_counted_convolutions(make: Callable, widths: list) -> None:
    with torch.device("meta"):  # no numbers are drawn
        network = make()
    convs = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels) for conv in convs] == widths
    assert {conv.kernel_size for conv in convs} == {(3, 3)}
    weights = sum(9 * i * o + o for i, o in widths)  # with bias
    norms = 2 * sum(o for _, o in widths[:-1])  # all but the last have one
    assert sum(p.numel() for p in network.parameters()) == weights + norms
    assert isinstance(list(network.modules())[-1], torch.nn.Conv2d)  # no output activation
    ups = [m for m in network.modules() if isinstance(m, torch.nn.Upsample)]
    assert ups
    assert all(up.align_corners and up.mode == "bilinear" for up in ups)


def test_kernels_and_scales_are_drawn_as_described() -> None:
    torch.manual_seed(0)
    network = discriminative()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 10_000:
            assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.03)
        if isinstance(module, torch.nn.BatchNorm2d) and module.num_features == 512:
            assert float(module.weight.detach().mean()) == pytest.approx(1, abs=0.005)
            assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.15)


# --------------------------------------------------------------------------------- samples


def test_nothing_changes_outside_the_mask_and_the_texture_shows_inside(monkeypatch) -> None:
    monkeypatch.setattr(draem_synthesis, "augment", lambda texture, rng: texture)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    texture = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    betas = []
    for seed in range(40):
        shown, clean, mask = synthesize(image, texture, np.random.default_rng(seed))
        assert np.array_equal(clean, image / np.float32(255))
        assert np.array_equal(shown[~mask], clean[~mask])
        if mask.any():
            strange = texture[mask] / np.float32(255)
            apart = np.abs(clean[mask] - strange) > 0.1
            beta = (shown[mask] - strange)[apart] / (clean[mask] - strange)[apart]
            assert np.ptp(beta) < 1e-4  # one for all pixels
            betas.append(float(beta.mean()))
    assert len(betas) > 5
    assert 0 <= min(betas) < max(betas) < 0.8


def test_three_different_augmentations_are_applied_in_turn(monkeypatch) -> None:
    marks = [lambda image, rng, i=i: np.append(image, np.uint8(i)) for i in range(10)]
    monkeypatch.setattr(draem_synthesis, "AUGMENTATIONS", marks)
    rng = np.random.default_rng(0)
    chosen = np.array([augment(np.zeros(0, np.uint8), rng) for _ in range(300)])
    assert chosen.shape == (300, 3)
    assert all(len(set(row)) == 3 for row in chosen.tolist())
    counts = np.bincount(chosen.ravel(), minlength=10)
    assert counts.min() > 60  # 90 each on average
    assert len(set(chosen[:, 0].tolist())) == 10  # in any order


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda f: f.__name__)
def test_each_augmentation_changes_a_texture_and_keeps_its_shape(augmentation) -> None:
    texture = np.random.default_rng(0).integers(60, 190, (24, 20, 3), np.uint8)
    kept = texture.copy()
    changed = [augmentation(texture, np.random.default_rng(seed)) for seed in range(12)]
    assert all(image.shape == texture.shape and image.dtype == np.uint8 for image in changed)
    assert any(not np.array_equal(image, texture) for image in changed)
    assert np.array_equal(texture, kept)
    for image in (np.zeros_like(texture), np.full_like(texture, 255)):  # flat ones too
        assert augmentation(image, np.random.default_rng(1)).dtype == np.uint8


def test_augmentations_do_what_their_names_say() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    ramp = np.repeat(ramp, 4, axis=0)
    named = {f.__name__: f for f in AUGMENTATIONS}

    def run(name: str, seed: int = 0, image: np.ndarray = ramp) -> np.ndarray:
        return named[name](image, np.random.default_rng(seed)).astype(int)

    assert np.array_equal(run("invert"), 255 - ramp.astype(int))
    powers = np.random.default_rng(0).uniform(0.5, 2, 3)
    assert np.abs(run("gamma") - 255 * (ramp / 255) ** powers).max() <= 0.51
    levels = {len(np.unique(run("posterize", seed))) for seed in range(60)}
    assert levels == {2, 4, 8, 16, 32, 64, 128, 256}
    solarized = [run("solarize", seed)[0, :, 0] for seed in range(40)]
    inverted = [row for row in solarized if not np.array_equal(row, np.arange(256))]
    assert 10 < len(inverted) < 30
    for row in inverted:
        start = int(np.argmax(row != np.arange(256)))
        assert 32 <= start <= 128
        assert np.array_equal(row[start:], 255 - np.arange(256)[start:])
    narrow = (100 + ramp // 8).astype(np.uint8)
    for name in ("autocontrast", "equalize"):
        assert (run(name, 1, narrow).min(), run(name, 1, narrow).max()) == (0, 255)
    dimmed = run("brightness", 0, np.full_like(ramp, 100))
    assert 50 <= dimmed[0, 0, 0] <= 150
    assert (dimmed == dimmed[0, 0, 0]).all()  # grey stays grey
    flat = np.full_like(ramp, 80)
    assert np.array_equal(run("sharpness", 0, flat), flat)
    red = np.zeros_like(ramp)
    red[:, :, 2] = 200
    assert run("hue_and_saturation", 0, red).max() == 200  # the value is kept


def test_the_same_generator_gives_the_same_batch(task: Task) -> None:
    frames = BgrFrames(task, (SIDE, SIDE), draem.ROTATED)
    textures = BgrTextures(None, (SIDE, SIDE))
    one, same, other = (
        make_batch(frames, textures, 3, np.random.default_rng([0, seed])) for seed in (7, 7, 8)
    )
    assert [part.shape for part in one] == [(3, 3, SIDE, SIDE), (3, 3, SIDE, SIDE), (3, 1, 64, 64)]
    assert all(part.dtype == torch.float32 for part in one)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[1], other[1])


def test_textures_are_bgr_and_read_once(monkeypatch) -> None:
    textures = BgrTextures(None, (SIDE, SIDE))
    source = textures._textures
    reads: list[int] = []
    read = source.read
    monkeypatch.setattr(source, "read", lambda number: reads.append(number) or read(number))
    first = textures.draw(np.random.default_rng(3))
    assert np.array_equal(first[:, :, ::-1], read(reads[0]))
    assert textures.draw(np.random.default_rng(3)) is first
    assert len(reads) == 1


# ----------------------------------------------------------------------------------- score


@pytest.mark.usefixtures("small_networks")
def test_map_is_the_share_of_the_second_class(task: Task) -> None:
    system = draem.Draem(task)
    logits = torch.randn(2, 2, 24, 24, generator=torch.Generator().manual_seed(0))
    maps, scores = system.answer((logits,))
    expected = 1 / (1 + np.exp(logits[:, 0].numpy() - logits[:, 1].numpy()))
    assert np.allclose(maps.numpy(), expected, atol=1e-6)
    assert not np.allclose(maps.numpy(), 1 - expected, atol=0.1)
    assert torch.equal(scores, pooled_score(maps))


@pytest.mark.usefixtures("small_networks")
def test_paper_schedule_is_700_epochs_that_keep_the_last_batch(task: Task) -> None:
    paper = draem.Draem(Task(task.category, (*task.images, *task.images[:3]), "paper"))
    (stage,) = paper.stages()
    assert (stage.steps, stage.images) == (700 * 2, 8)  # 9 images


# ---------------------------------------------------------------------- structural similarity


def window_similarity(
    one: np.ndarray, two: np.ndarray, row: int, column: int, sigma: float = 1.5, border: str = ""
) -> float:
    """SSIM of the 11 x 11 pixels around one pixel, summed one by one."""
    weights, values = [], []
    for down in range(-5, 6):
        for right in range(-5, 6):
            y, x = row + down, column + right
            if border == "clamped":
                y, x = np.clip([y, x], 0, np.array(one.shape) - 1)
            inside = 0 <= y < one.shape[0] and 0 <= x < one.shape[1]
            weights.append(math.exp(-(down**2 + right**2) / (2 * sigma**2)))
            values.append((one[y, x], two[y, x]) if inside else (0.0, 0.0))
    w = np.array(weights) / sum(weights)
    a, b = np.array(values, np.float64).T
    mean_a, mean_b = (w * a).sum(), (w * b).sum()
    var_a, var_b = (w * a * a).sum() - mean_a**2, (w * b * b).sum() - mean_b**2
    covariance = (w * a * b).sum() - mean_a * mean_b
    top = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
    return top / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))


@pytest.mark.parametrize("pixel", [(8, 9), (0, 0), (14, 3)])
def test_similarity_is_that_of_the_gaussian_window_around_each_pixel(pixel) -> None:
    one, two = np.random.default_rng(0).random((2, 15, 17))
    computed = structural_similarity(torch.tensor(one)[None, None], torch.tensor(two)[None, None])
    found = float(computed[0, 0, pixel[0], pixel[1]])
    assert computed.shape == (1, 1, 15, 17)
    assert found == pytest.approx(window_similarity(one, two, *pixel), abs=1e-9)
    assert found != pytest.approx(window_similarity(one, two, *pixel, sigma=1.6), abs=1e-4)
    if pixel != (8, 9):
        clamped = window_similarity(one, two, *pixel, border="clamped")
        assert found != pytest.approx(clamped, abs=1e-4)


def test_an_image_is_like_itself_and_channels_do_not_mix() -> None:
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(structural_similarity(image, image), torch.ones(()), atol=1e-5)
    other = image.clone()
    other[1, 2] = 1 - other[1, 2]
    similarity = structural_similarity(image, other)
    assert similarity[1, 2].mean() < 0.2
    similarity[1, 2] = 1
    assert torch.allclose(similarity, torch.ones(()), atol=1e-5)
