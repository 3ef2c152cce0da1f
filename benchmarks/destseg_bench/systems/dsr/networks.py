"""DSR's networks (Zavrtanik et al., ECCV 2022, Section 3).

The model of codes, which is not trained here, encodes an image twice: ``b`` (bottom) at a quarter
of its size and ``t`` (top) at an eighth; the paper calls them hi and lo. Its layers are named as in
the authors' file, without the leading underscores, so that the file can be read.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from destseg_bench.systems.dsr.codes import nearest_codes
from destseg_bench.systems.two_class import UNet, convolutions, enlargement

WIDTH = 128
RESIDUAL_WIDTH = 64
CODES = 4096
LEVELS = (64, 128, 256, 256)
NARROWED = (256, 128, 64)


class Residual(nn.Module):
    """The features plus what ReLU and two convolutions make of them."""

    def __init__(self) -> None:
        """Make the layers, 128 -> 64 -> 128, without biases."""
        super().__init__()
        self.block = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(WIDTH, RESIDUAL_WIDTH, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(RESIDUAL_WIDTH, WIDTH, 1, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, 128, H, W) to the same shape."""
        changed: Tensor = features + self.block(features)
        return changed


def named(**layers: nn.Module) -> nn.Sequential:
    """Return layers that run one after another under the names of the authors' file."""
    return nn.Sequential(OrderedDict(layers))


def residuals() -> nn.Sequential:
    """Return two residual blocks and a ReLU, (N, 128, H, W) to the same shape."""
    return named(layers=nn.Sequential(Residual(), Residual()), relu=nn.ReLU())


def bottom_encoder() -> nn.Sequential:
    """Return the encoder of an image (N, 3, H, W) to features (N, 128, H / 4, W / 4)."""
    return named(
        conv_1=nn.Conv2d(3, WIDTH // 2, 4, stride=2, padding=1),
        relu_1=nn.ReLU(),
        conv_2=nn.Conv2d(WIDTH // 2, WIDTH, 4, stride=2, padding=1),
        relu_2=nn.ReLU(),
        conv_3=nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        residual_stack=residuals(),
    )


def top_encoder() -> nn.Sequential:
    """Return the encoder of bottom features (N, 128, H, W) to (N, 128, H / 2, W / 2)."""
    return named(
        conv_1=nn.Conv2d(WIDTH, WIDTH, 4, stride=2, padding=1),
        relu_1=nn.ReLU(),
        conv_2=nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        relu_2=nn.ReLU(),
        residual_stack=residuals(),
    )


def decoder(channels: int) -> nn.Sequential:
    """Return the decoder of (N, channels, H, W) to an image (N, 3, 4 H, 4 W), not bounded."""
    return named(
        conv_1=nn.Conv2d(channels, WIDTH, 3, padding=1),
        residual_stack=residuals(),
        conv_trans_1=nn.ConvTranspose2d(WIDTH, WIDTH // 2, 4, stride=2, padding=1),
        relu=nn.ReLU(),
        conv_trans_2=nn.ConvTranspose2d(WIDTH // 2, 3, 4, stride=2, padding=1),
    )


class Codebook(nn.Module):
    """4096 codes of 128 values."""

    def __init__(self) -> None:
        """Draw the codes from N(0, 1)."""
        super().__init__()
        self.embedding = nn.Embedding(CODES, WIDTH)

    @property
    def codes(self) -> Tensor:
        """The codes, (4096, 128)."""
        return self.embedding.weight


class VqModel(nn.Module):
    """Encodes any image in codes of two sizes and decodes it; pretrained on ImageNet."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.encoder_b = bottom_encoder()
        self.encoder_t = top_encoder()
        self.pre_vq_conv_bot = nn.Conv2d(2 * WIDTH, WIDTH, 1)
        self.pre_vq_conv_top = nn.Conv2d(WIDTH, WIDTH, 1)
        self.vq_vae_top = Codebook()
        self.vq_vae_bot = Codebook()
        self.decoder_b = decoder(2 * WIDTH)
        self.upsample_t = nn.ConvTranspose2d(WIDTH, WIDTH, 4, stride=2, padding=1)

    def top_features(self, encoded: Tensor) -> Tensor:
        """Map what ``encoder_b`` made to lo features at half its size, not yet codes."""
        features: Tensor = self.pre_vq_conv_top(self.encoder_t(encoded))
        return features

    def bottom_features(self, encoded: Tensor, lo: Tensor) -> Tensor:
        """Map what ``encoder_b`` made, and lo codes, to hi features of its size."""
        both = torch.cat([encoded, self.upsample_t(lo)], dim=1)
        features: Tensor = self.pre_vq_conv_bot(both)
        return features

    def codes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode (N, 3, H, W) in lo codes at an eighth and hi codes at a quarter of the size."""
        encoded = self.encoder_b(images)
        lo = nearest_codes(self.top_features(encoded), self.vq_vae_top.codes)
        return lo, nearest_codes(self.bottom_features(encoded, lo), self.vq_vae_bot.codes)

    def joined(self, lo: Tensor, hi: Tensor) -> Tensor:
        """Return both codes at the size of the hi ones, (N, 256, H, W)."""
        return torch.cat([self.upsample_t(lo), hi], dim=1)

    def decode(self, lo: Tensor, hi: Tensor) -> Tensor:
        """Return the image that codes stand for, whatever it shows."""
        image: Tensor = self.decoder_b(self.joined(lo, hi))
        return image


@torch.no_grad()
def fit_codes(model: VqModel, images: Tensor, seed: int) -> None:
    """Draw the codes of a model with random weights around its features of images.

    They get the mean and the spread of the features, channel by channel. Codes from N(0, 1) would
    be so far away that all features had the same nearest code, and nothing could be learnt.

    Args:
        model: Changed in place.
        images: float32 (N, 3, H, W), normal ones.
        seed: Of the codes.
    """
    generator = torch.Generator().manual_seed(seed)
    encoded = model.encoder_b(images)
    features = model.top_features(encoded)
    _draw_codes(model.vq_vae_top, features, generator)
    lo = nearest_codes(features, model.vq_vae_top.codes)
    _draw_codes(model.vq_vae_bot, model.bottom_features(encoded, lo), generator)


def _draw_codes(book: Codebook, features: Tensor, generator: torch.Generator) -> None:
    spread, mean = torch.std_mean(features, dim=(0, 2, 3))
    drawn = torch.randn(CODES, WIDTH, generator=generator).to(features.device)
    book.codes.copy_(mean + spread * drawn)


def image_reconstruction() -> nn.Sequential:
    """Return the network from joined codes (N, 256, H, W) to an own image, (N, 3, 4 H, 4 W).

    It goes two levels down, to 64 channels at a quarter of the size, and up again.
    """
    norm, width = nn.InstanceNorm2d, 2 * WIDTH
    return nn.Sequential(
        convolutions((width, width, 2 * width), norm),
        nn.MaxPool2d(2),
        convolutions((2 * width, 2 * width, 4 * width), norm),
        nn.MaxPool2d(2),
        nn.Conv2d(4 * width, 64, 1),
        nn.ConvTranspose2d(64, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        decoder(64),
    )


def subspace_restriction() -> nn.Sequential:
    """Return the autoencoder from codes (N, 128, H, W) to features of normal codes; no skips."""
    norm = nn.InstanceNorm2d
    return nn.Sequential(
        convolutions((WIDTH, WIDTH, WIDTH), norm),
        nn.MaxPool2d(2),
        convolutions((WIDTH, 2 * WIDTH, 2 * WIDTH), norm),
        nn.MaxPool2d(2),
        convolutions((2 * WIDTH, 4 * WIDTH, 4 * WIDTH), norm),
        enlargement(4 * WIDTH, 2 * WIDTH, norm),
        convolutions((2 * WIDTH, 2 * WIDTH, 2 * WIDTH), norm),
        enlargement(2 * WIDTH, WIDTH, norm),
        convolutions((WIDTH, WIDTH, WIDTH), norm),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
    )


def anomaly_detection() -> UNet:
    """Return the U-Net from an image of the category and a general one to 2 logits."""
    return UNet(6, LEVELS, NARROWED, nn.InstanceNorm2d)


def upsampling() -> UNet:
    """Return the U-Net from both images and their coarse map, 8 channels, to 2 logits."""
    return UNet(8, LEVELS, NARROWED, nn.InstanceNorm2d)
