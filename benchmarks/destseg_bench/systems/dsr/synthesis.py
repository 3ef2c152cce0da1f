"""DSR's training samples: anomalies among the codes of an image, then smudges on it.

Zavrtanik et al., ECCV 2022, Section 3. Masks are Perlin noise above one half as for DRAEM, empty
for half of the samples. Choices are drawn on the host and applied on the training device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from destseg_bench.systems.dsr.codes import anomalous_codes, nearest_codes
from destseg_bench.systems.dsr.networks import VqModel
from destseg_bench.systems.frames import BgrFrames, as_floats, draw_mask

STRENGTHS = (0.2, 1.0)
LO, HI = 8, 4
"""How many times smaller lo and hi codes are than the image."""


@dataclass(frozen=True, eq=False)
class Samples:
    """A batch and its random choices.

    Attributes:
        images: float32 (N, 3, H, W), normal, BGR in [0, 1].
        masks: float32 (N, 1, H, W): 1 where the anomaly will be.
        betas: float32 (N,): share of the image that shows through a smudge.
        colours: float32 (N, 3) in [0, 1]: of the smudge.
        lo: bool (N,): whether lo codes are replaced.
        hi: bool (N,): whether hi codes are; at least one of both.
        strengths: float32 (N, 2) in [0.2, 1): of the lo and the hi anomalies.
        lo_chances: float32 (N, H / 8, W / 8) in [0, 1): which code is taken.
        hi_chances: float32 (N, H / 4, W / 4) in [0, 1): likewise.
    """

    images: Tensor
    masks: Tensor
    betas: Tensor
    colours: Tensor
    lo: Tensor
    hi: Tensor
    strengths: Tensor
    lo_chances: Tensor
    hi_chances: Tensor

    def to(self, device: torch.device) -> Samples:
        """Return them on a device."""
        return replace(self, **{name: part.to(device) for name, part in vars(self).items()})


def draw_samples(frames: BgrFrames, size: int, rng: np.random.Generator) -> Samples:
    """Draw a batch on the host; the same generator gives the same.

    Half of the anomalies are in both codes, a quarter each in lo or hi codes alone.
    """
    images = np.stack([as_floats(frames.draw(rng)) for _ in range(size)]).transpose(0, 3, 1, 2)
    height, width = images.shape[2:]
    drawn = [draw_mask(height, width, rng) for _ in range(size)]
    alone, which = rng.random(size) < 0.5, rng.random(size) < 0.5
    return Samples(
        images=torch.from_numpy(np.ascontiguousarray(images)),
        masks=torch.from_numpy(np.stack([mask for mask, _ in drawn])[:, None].astype(np.float32)),
        betas=torch.from_numpy(np.array([beta for _, beta in drawn])),
        colours=torch.from_numpy(rng.random((size, 3), np.float32)),
        lo=torch.from_numpy(~(alone & which)),
        hi=torch.from_numpy(~(alone & ~which)),
        strengths=torch.from_numpy(rng.uniform(*STRENGTHS, (size, 2)).astype(np.float32)),
        lo_chances=torch.from_numpy(rng.random((size, height // LO, width // LO), np.float32)),
        hi_chances=torch.from_numpy(rng.random((size, height // HI, width // HI), np.float32)),
    )


def smudge(samples: Samples) -> Tensor:
    """Return the images with a plain colour blended in under the masks, (N, 3, H, W)."""
    beta = samples.betas.view(-1, 1, 1, 1)
    blended = beta * samples.images + (1 - beta) * samples.colours[:, :, None, None]
    return torch.where(samples.masks > 0, blended, samples.images)


@dataclass(frozen=True, eq=False)
class Corrupted:
    """Codes of a batch, as they are and with anomalies.

    Attributes:
        clean: Lo codes (N, 128, H / 8, W / 8) and hi codes (N, 128, H / 4, W / 4).
        codes: The same with anomalies.
        masks: float32 (N, 1, H, W): the masks in steps of the coarsest codes that were replaced.
    """

    clean: tuple[Tensor, Tensor]
    codes: tuple[Tensor, Tensor]
    masks: Tensor


@torch.no_grad()
def corrupt(vq: VqModel, samples: Samples) -> Corrupted:
    """Replace codes under the masks; hi codes follow anomalous lo ones if both are replaced."""
    encoded = vq.encoder_b(samples.images)
    lo_features = vq.top_features(encoded)
    lo = nearest_codes(lo_features, vq.vq_vae_top.codes)
    hi = nearest_codes(vq.bottom_features(encoded, lo), vq.vq_vae_bot.codes)
    lo_mask, hi_mask = F.max_pool2d(samples.masks, LO), F.max_pool2d(samples.masks, HI)
    strange_lo = anomalous_codes(
        lo,
        lo_features,
        vq.vq_vae_top.codes,
        (lo_mask > 0) & _each(samples.lo),
        samples.strengths[:, 0],
        samples.lo_chances,
    )
    hi_features = vq.bottom_features(encoded, strange_lo)
    strange_hi = anomalous_codes(
        nearest_codes(hi_features, vq.vq_vae_bot.codes),
        hi_features,
        vq.vq_vae_bot.codes,
        hi_mask > 0,
        samples.strengths[:, 1],
        samples.hi_chances,
    )
    return Corrupted(
        (lo, hi),
        (strange_lo, torch.where(_each(samples.hi), strange_hi, hi)),
        torch.where(
            _each(samples.lo),
            F.interpolate(lo_mask, scale_factor=LO),
            F.interpolate(hi_mask, scale_factor=HI),
        ),
    )


def _each(flags: Tensor) -> Tensor:
    return flags.view(-1, 1, 1, 1)
