"""DSR: its networks, weights, training samples and answer."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from destseg_bench.systems import frames as frames_module
from destseg_bench.systems.dsr import system as dsr
from destseg_bench.systems.dsr.networks import (
    VqModel,
    anomaly_detection,
    fit_codes,
    image_reconstruction,
    subspace_restriction,
    upsampling,
)
from destseg_bench.systems.dsr.synthesis import Samples, corrupt, draw_samples, smudge
from destseg_bench.systems.frames import BgrFrames
from destseg_bench.systems.system import Task
from destseg_deploy.errors import WeightsError

SIDE = 64


@pytest.fixture(scope="module")
def vq() -> VqModel:
    """A model with random weights and codes around its features of noise, so that many are used."""
    torch.manual_seed(0)
    model = VqModel().eval().requires_grad_(False)
    fit_codes(model, torch.rand(4, 3, SIDE, SIDE), seed=0)
    return model


@pytest.fixture(scope="module")
def system(task: Task) -> dsr.Dsr:
    torch.manual_seed(0)
    made = dsr.Dsr(task)
    made.size = (SIDE, SIDE)
    return made


@pytest.fixture
def samples(task: Task) -> Samples:
    frames = BgrFrames(task, (SIDE, SIDE), 0.4)
    drawn = draw_samples(frames, 3, np.random.default_rng(0))
    masks = torch.zeros(3, 1, SIDE, SIDE)
    masks[:, :, 21:30, 18:37] = 1  # lo codes 2..3 x 2..4, hi codes 5..7 x 4..9
    kinds = {"lo": torch.tensor([True, True, False]), "hi": torch.tensor([True, False, True])}
    return Samples(**{**vars(drawn), "masks": masks, **kinds})


# -------------------------------------------------------------------------------- networks

SUBSPACE = [
    *[(128, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)],
    *[(512, 256), (256, 256), (256, 256), (256, 128), (128, 128), (128, 128), (128, 128)],
]
DETECTION = [
    *[(6, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 256)],
    *[(256, 256), (256, 128), (128, 64)],  # enlargements
    *[(512, 256), (256, 256), (256, 128), (128, 128), (128, 64), (64, 64), (64, 2)],  # joined
]


@pytest.mark.parametrize(
    ("make", "widths"),
    [
        (subspace_restriction, SUBSPACE),
        (anomaly_detection, DETECTION),
        (upsampling, [(8, 64), *DETECTION[1:]]),
    ],
)
def test_networks_have_the_counted_convolutions(make, widths: list) -> None:
    with torch.device("meta"):
        network = make()
    convs = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels) for conv in convs] == widths
    # instance normalisation has no parameters
    counted = sum(9 * i * o + o for i, o in widths)
    assert sum(p.numel() for p in network.parameters()) == counted
    norms = [m for m in network.modules() if isinstance(m, torch.nn.InstanceNorm2d)]
    assert len(norms) == len(widths) - 1


def test_model_of_codes_and_reconstruction_have_the_counted_parameters() -> None:
    with torch.device("meta"):
        model, reconstruction = VqModel(), image_reconstruction()

    def conv(i: int, o: int, k: int) -> int:
        return i * o * k * k + o

    residuals = 2 * (128 * 64 * 9 + 64 * 128)  # without biases
    bottom = conv(3, 64, 4) + conv(64, 128, 4) + conv(128, 128, 3) + residuals
    top = conv(128, 128, 4) + conv(128, 128, 3) + residuals
    decoder = conv(256, 128, 3) + residuals + conv(128, 64, 4) + conv(64, 3, 4)
    between = conv(128, 128, 1) + conv(256, 128, 1) + conv(128, 128, 4)
    counted = bottom + top + decoder + between + 2 * 4096 * 128
    assert sum(p.numel() for p in model.parameters()) == counted
    own = conv(256, 256, 3) + conv(256, 512, 3) + conv(512, 512, 3) + conv(512, 1024, 3)
    own += conv(1024, 64, 1) + 2 * conv(64, 64, 4)
    own += conv(64, 128, 3) + residuals + conv(128, 64, 4) + conv(64, 3, 4)
    assert sum(p.numel() for p in reconstruction.parameters()) == own


def test_codes_have_an_eighth_and_a_quarter_of_the_size(vq: VqModel) -> None:
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    lo, hi = vq.codes(images)
    assert lo.shape == (2, 128, 8, 8)
    assert hi.shape == (2, 128, 16, 16)
    assert vq.decode(lo, hi).shape == images.shape
    assert torch.equal(vq.joined(lo, hi)[:, :128], vq.upsample_t(lo))
    assert torch.equal(vq.joined(lo, hi)[:, 128:], hi)
    for codes, book in ((lo, vq.vq_vae_top.codes), (hi, vq.vq_vae_bot.codes)):
        rows = codes.permute(0, 2, 3, 1).reshape(-1, 128)
        assert torch.cdist(rows, book).amin(dim=1).max() < 1e-3
        assert len(rows.unique(dim=0)) > 40  # one without ``fit_codes``


# --------------------------------------------------------------------------------- weights


def authors_name(name: str) -> str:
    """Put underscores where the authors' file has them."""
    kept = ("upsample_t", "weight", "bias", "block")
    parts = name.split(".")
    parts = [p if p in kept or p.isdigit() else f"_{p}" for p in parts]
    return ".".join("_block" if p == "block" else p for p in parts)


def test_weights_are_read_by_the_authors_names(vq: VqModel, make_task, tmp_path) -> None:
    state = {authors_name(name): tensor for name, tensor in vq.state_dict().items()}
    for name, shape in {
        "_encoder_b._conv_1.weight": (64, 3, 4, 4),
        "_encoder_t._residual_stack._layers.1._block.3.weight": (128, 64, 1, 1),
        "_pre_vq_conv_bot.bias": (128,),
        "_vq_vae_top._embedding.weight": (4096, 128),
        "_decoder_b._conv_trans_2.weight": (64, 3, 4, 4),
        "upsample_t.weight": (128, 128, 4, 4),
    }.items():
        assert state[name].shape == shape
    state["_vq_vae_top._ema_w"] = torch.zeros(4096, 128)  # of their training
    save_file(state, tmp_path / "vq.safetensors")
    model = VqModel()
    task = make_task(weights={"vq": tmp_path / "vq.safetensors"}, pretrained=True)
    assert dsr.load_vq(model, task) == "vq.safetensors"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, vq.state_dict()[name])
    del state["_encoder_t._conv_2.bias"]
    save_file(state, tmp_path / "vq.safetensors")
    with pytest.raises(WeightsError, match=r"encoder_t\.conv_2\.bias is missing"):
        dsr.load_vq(model, task)


# --------------------------------------------------------------------------------- samples


def differ(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Where codes differ, bool (N, H, W)."""
    return (one != two).any(dim=1)


def test_codes_are_replaced_as_drawn(vq: VqModel, samples: Samples) -> None:
    corrupted = corrupt(vq, samples)
    lo, hi = (differ(a, b) for a, b in zip(corrupted.clean, corrupted.codes, strict=True))
    expected_lo, expected_hi = torch.zeros(8, 8), torch.zeros(16, 16)
    expected_lo[2:4, 2:5] = 1
    expected_hi[5:8, 4:10] = 1
    both, lo_alone, hi_alone = range(3)
    assert torch.equal(lo[both], expected_lo.bool())
    assert torch.equal(lo[lo_alone], expected_lo.bool())
    assert not lo[hi_alone].any()
    assert (hi[both] >= expected_hi.bool()).all()
    assert not hi[lo_alone].any()
    assert torch.equal(hi[hi_alone], expected_hi.bool())


def test_hi_anomalies_are_drawn_around_features_of_the_anomalous_lo_codes(
    vq: VqModel, samples: Samples, monkeypatch
) -> None:
    given = []
    features = vq.bottom_features
    monkeypatch.setattr(
        vq, "bottom_features", lambda encoded, lo: given.append(lo) or features(encoded, lo)
    )
    corrupted = corrupt(vq, samples)
    clean, strange = given
    assert torch.equal(clean, corrupted.clean[0])
    assert torch.equal(strange, corrupted.codes[0])
    assert not torch.equal(strange, clean)


def test_masks_have_the_steps_of_the_replaced_codes(vq: VqModel, samples: Samples) -> None:
    masks = corrupt(vq, samples).masks[:, 0]
    coarse, fine = torch.zeros(SIDE, SIDE), torch.zeros(SIDE, SIDE)
    coarse[16:32, 16:40] = 1
    fine[20:32, 16:40] = 1
    assert torch.equal(masks, torch.stack([coarse, coarse, fine]))


def test_normal_samples_keep_their_codes(vq: VqModel, samples: Samples) -> None:
    normal = Samples(**{**vars(samples), "masks": torch.zeros_like(samples.masks)})
    corrupted = corrupt(vq, normal)
    for clean, codes in zip(corrupted.clean, corrupted.codes, strict=True):
        assert torch.equal(clean, codes)
    assert not corrupted.masks.any()


def test_a_smudge_is_one_colour_under_the_mask_alone(samples: Samples) -> None:
    smudged = smudge(samples)
    inside = samples.masks.bool().expand_as(smudged)
    assert torch.equal(smudged[~inside], samples.images[~inside])
    for i in range(3):
        where = samples.masks[i, 0] > 0
        for channel in range(3):
            left = smudged[i, channel][where] - samples.betas[i] * samples.images[i, channel][where]
            expected = (1 - samples.betas[i]) * samples.colours[i, channel]
            assert torch.allclose(left, expected, atol=1e-6)
    assert differ(smudged, samples.images).any()


def test_choices_have_the_stated_shares(task: Task, monkeypatch) -> None:
    full = np.ones((16, 16), np.bool_)
    monkeypatch.setattr(frames_module, "noise_mask", lambda height, width, choices: full)
    frames = BgrFrames(task, (16, 16), 0.4)
    drawn = draw_samples(frames, 2000, np.random.default_rng(0))
    assert float(drawn.masks.amax(dim=(1, 2, 3)).mean()) == pytest.approx(0.5, abs=0.045)
    assert (drawn.lo | drawn.hi).all()
    for share, kind in (
        (0.5, drawn.lo & drawn.hi),
        (0.25, drawn.lo & ~drawn.hi),
        (0.25, drawn.hi & ~drawn.lo),
    ):
        assert float(kind.float().mean()) == pytest.approx(share, abs=0.04)
    assert 0.2 <= float(drawn.strengths.min()) < 0.21
    assert 0.99 < float(drawn.strengths.max()) <= 1.0
    assert 0 <= float(drawn.betas.min()) < float(drawn.betas.max()) < 0.8
    assert drawn.lo_chances.shape == (2000, 2, 2)
    assert drawn.hi_chances.shape == (2000, 4, 4)


def test_the_same_generator_gives_the_same_batch(task: Task) -> None:
    frames = BgrFrames(task, (SIDE, SIDE), 0.4)
    one, same, other = (draw_samples(frames, 2, np.random.default_rng([0, s])) for s in (1, 1, 2))
    for name, part in vars(one).items():
        assert torch.equal(part, getattr(same, name))
    assert not torch.equal(one.hi_chances, other.hi_chances)
    assert not torch.equal(one.images, other.images)


# ------------------------------------------------------------------------ training, answer


def gradients(module: torch.nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


def test_the_map_teaches_the_detection_alone(system, samples, monkeypatch) -> None:
    zero = torch.zeros(())
    monkeypatch.setattr(dsr.F, "mse_loss", lambda one, two: zero)
    system.loss(samples).backward()
    assert gradients(system.detection) > 0
    for module in (*system.modules()[:4], system.upsampling):
        assert gradients(module) == 0
    system.detection.zero_grad()


def test_the_image_teaches_the_subspaces_through_the_quantiser(
    system, samples, monkeypatch
) -> None:
    def of_images(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        return (one - two).square().mean() if one.shape[1] == 3 else torch.zeros(())

    monkeypatch.setattr(dsr.F, "mse_loss", of_images)
    monkeypatch.setattr(dsr, "focal_loss", lambda logits, masks: torch.zeros(()))
    system.loss(samples).backward()
    trained = (system.subspace_lo, system.subspace_hi, system.reconstruction)
    assert all(gradients(module) > 0 for module in trained)
    assert gradients(system.vq) == gradients(system.detection) == 0
    for module in trained:
        module.zero_grad()


def test_parts_of_the_loss_are_weighted_as_described(system, samples, monkeypatch) -> None:
    values = {128: 3.0, 3: 7.0}
    monkeypatch.setattr(
        dsr.F, "mse_loss", lambda one, two: torch.tensor(values[one.shape[1]] + 100 * (one is two))
    )
    monkeypatch.setattr(dsr, "focal_loss", lambda logits, masks: torch.tensor(0.5))
    assert float(system.loss(samples)) == 3 + 3 + 10 * 7 + 0.5


def test_the_last_stage_changes_the_upsampling_module_alone(system, monkeypatch) -> None:
    monkeypatch.setattr(dsr, "QUICK_UPSAMPLING_STEPS", 1)
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in system.modules()]
    stage = system.stages()[1]
    assert stage.steps == 1
    assert float(stage.step(0)) > 0
    stage.end()
    changed = [
        any(not torch.equal(old[name], tensor) for name, tensor in module.state_dict().items())
        for old, module in zip(before, system.modules(), strict=True)
    ]
    assert changed == [False] * 5 + [True]


@pytest.mark.parametrize("way", ["training", "standing in"])
def test_random_weights_alone_get_codes_from_normal_images(system, monkeypatch, way) -> None:
    torch.nn.init.normal_(system.vq.vq_vae_bot.codes)
    before = system.vq.vq_vae_bot.codes.clone()
    begin = system.stages()[0].begin if way == "training" else system.stand_in
    assert torch.equal(system.vq.vq_vae_bot.codes, before)
    monkeypatch.setattr(system, "weights", "vq.safetensors")
    begin()
    assert torch.equal(system.vq.vq_vae_bot.codes, before)
    monkeypatch.setattr(system, "weights", "random")
    begin()
    frames = BgrFrames(system.task, system.size, 0.4)
    _, hi = system.vq.codes(draw_samples(frames, 2, np.random.default_rng(5)).images)
    assert len(hi.permute(0, 2, 3, 1).reshape(-1, 128).unique(dim=0)) > 20


def test_paper_schedule_and_rates(make_task, system, monkeypatch) -> None:
    monkeypatch.setattr(system, "task", make_task(schedule="paper"))
    main, last = system.stages()
    assert (main.steps, main.images) == (100 * 8000 // 8, 8)
    assert (last.steps, last.images) == (50 * 8000 // 8, 8)
    assert dsr.learning_rate(0, 100_000) == dsr.learning_rate(79_999, 100_000) == 2e-4
    assert dsr.learning_rate(80_000, 100_000) == pytest.approx(2e-5)


def test_map_is_the_middle_of_the_fine_one_and_the_score_is_of_the_coarse_one(system) -> None:
    coarse, fine = torch.zeros(2, 2, 256, 256), torch.zeros(2, 2, 256, 256)
    coarse[0, 1, :15, :15] = 1.0  # in the corner, which the map does not show
    fine[:, 1] = torch.arange(256 * 256).view(256, 256) / 65536
    maps, scores = system.answer((coarse, fine))
    assert maps.shape == (2, 224, 224)
    assert system.window * 256 == 224
    expected = torch.sigmoid(fine[:, 1, 16:240, 16:240])
    assert torch.allclose(maps, expected, atol=1e-6)
    assert not torch.allclose(maps, torch.sigmoid(fine[:, 1, 15:239, 16:240]), atol=1e-6)
    assert scores.tolist() == pytest.approx([225 / 441, 0.0])


def test_the_network_sees_both_images_and_their_map(system) -> None:
    images = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    seen = []
    hooks = [
        module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        for module in (system.detection, system.upsampling)
    ]
    with torch.no_grad():
        coarse, fine = system.network(images)
    for hook in hooks:
        hook.remove()
    pair, all_seen = seen
    assert torch.equal(all_seen, torch.cat([pair, coarse], dim=1))
    assert torch.allclose(coarse.sum(dim=1), torch.ones(()), atol=1e-6)
    assert fine.shape == (1, 2, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(pair[:, 3:], system.vq.decode(*system.vq.codes(images)))
