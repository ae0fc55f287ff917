"""A generator that changes an image only inside a mask that it finds, and its discriminators.

Images are float (N, 3, H, W) in -1..1, their sides divisible by 4, of 16 pixels or more.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

BLOCKS = 4  # residual blocks, of the encoder and of the decoder each
DEEP, SHALLOW = 4, 2  # how often the global and the local discriminator halve an image
SLOPE = 0.2  # of the discriminators' leaky ReLU
EPS = 1e-5  # added to a variance


class Transferred(NamedTuple):
    """The results of a generator for N images."""

    fake: Tensor  # (N, 3, H, W) in -1..1: an image of the other domain
    mask: Tensor  # (N, 1, H, W) in 0..1: where the image has to change
    composite: Tensor  # (N, 3, H, W): fake inside the mask, the image outside
    reconstruction: Tensor  # (N, 3, H, W) in -1..1: the image, from the features that are kept
    logits: Tensor  # (N, 2): whether the image is from the source domain
    heat: Tensor  # (N, 1, H / 4, W / 4): class activation map, whose mean is logits[:, 0]


def compose(fake: Tensor, mask: Tensor, images: Tensor) -> Tensor:
    """Return fake inside a mask and images outside: bit for bit where the mask is 1, and 0."""
    return fake * mask + images * (1 - mask)


# ---------------------------------------------------------------- parts of both


class Attention(nn.Module):
    """Features, re-weighted by two classifiers, of their means and of their maxima.

    The weights of each show which channels distinguish the domains (U-GAT-IT, Kim et al. 2020).
    """

    def __init__(self, mean: nn.Linear, maximum: nn.Linear, join: nn.Module) -> None:
        """mean, maximum: from C channels to one. join: a convolution from 2 C channels to C."""
        super().__init__()
        self.mean, self.maximum, self.join = mean, maximum, join

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return attended features (N, C, h, w), logits (N, 2), and the map (N, 1, h, w)."""
        # once each: a spectral norm computes its weight at every access
        by_mean, by_maximum = self.mean.weight, self.maximum.weight
        weighted = features * by_mean[..., None, None]
        both = torch.cat([weighted, features * by_maximum[..., None, None]], 1)
        heat = weighted.sum(1, keepdim=True)
        logits = heat.mean((2, 3)), F.linear(features.amax((2, 3)), by_maximum)
        return self.join(both), torch.cat(logits, 1), heat


# ---------------------------------------------------------------- the generator


def convolution(ins: int, outs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the size of its input, or divides it by the stride."""
    return nn.Conv2d(ins, outs, size, stride, size // 2, padding_mode="reflect", bias=False)


def normalised(ins: int, outs: int, size: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution, instance normalisation and ReLU."""
    norm = nn.InstanceNorm2d(outs, affine=True)
    return nn.Sequential(convolution(ins, outs, size, stride), norm, nn.ReLU())


class ResidualBlock(nn.Module):
    """Features (N, C, h, w) -> the same plus two convolutions of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = convolution(channels, channels, 3), nn.InstanceNorm2d(channels, affine=True)
        self.layers = nn.Sequential(normalised(channels, channels, 3), *last)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layers(features)


class InstanceLayerNorm(nn.Module):
    """Normalisation of each channel and of the whole image, mixed by a ratio of each channel.

    With gain and shift from the image it is the AdaILN of U-GAT-IT. The optimiser may take the
    ratio out of 0..1; `clip` brings it back.
    """

    def __init__(self, channels: int, ratio: float) -> None:
        """ratio: at the start, from 0, the whole image, to 1, each channel."""
        super().__init__()
        self.ratio = nn.Parameter(torch.full((channels,), ratio))

    def forward(self, features: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        """Return normalised features (N, C, h, w); gain, shift: (N, C) or (C,)."""
        variance, mean = torch.var_mean(features.float(), (2, 3), correction=0)  # (N, C)
        whole = mean.mean(1, keepdim=True)
        whole_variance = (variance + (mean - whole) ** 2).mean(1, keepdim=True)
        per_channel = self.ratio * (variance + EPS).rsqrt()
        per_image = (1 - self.ratio) * (whole_variance + EPS).rsqrt()
        # both are a multiple of the features and a constant: one pass over the pixels is enough
        scale = gain * (per_channel + per_image)
        offset = shift - gain * (per_channel * mean + per_image * whole)
        return torch.addcmul(offset[..., None, None], features, scale[..., None, None])

    @torch.no_grad()
    def clip(self) -> None:
        """Bring the ratio back to 0..1."""
        self.ratio.clamp_(0, 1)


class AdaptiveBlock(nn.Module):
    """A residual block whose normalisations take gain and shift from the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (convolution(channels, channels, 3) for _ in range(2))
        self.norms = nn.ModuleList(InstanceLayerNorm(channels, 0.9) for _ in range(2))

    def forward(self, features: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        """features: (N, C, h, w). gain, shift: (N, C)."""
        inner = self.norms[0](self.first(features), gain, shift).relu()
        return features + self.norms[1](self.second(inner), gain, shift)


class Enlarge(nn.Module):
    """Features (N, ins, h, w) -> (N, outs, 2 h, 2 w)."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.convolution, self.norm = convolution(ins, outs, 3), InstanceLayerNorm(outs, 0.0)
        self.gain, self.shift = nn.Parameter(torch.ones(outs)), nn.Parameter(torch.zeros(outs))

    def forward(self, features: Tensor) -> Tensor:
        larger = F.interpolate(features, scale_factor=2.0)
        return self.norm(self.convolution(larger), self.gain, self.shift).relu()


class Generator(nn.Module):
    """Images -> Transferred: the images of one domain as images of the other.

    The encoder's features are used twice: they are decoded to the other domain, and kept as they
    are. After every block of the decoder, the features outside the mask are replaced by the kept
    ones, so that the decoder only has to generate the inside.
    """

    def __init__(self, channels: int) -> None:
        """channels: of the full-sized features; those of a quarter of the size have four times."""
        super().__init__()
        wide = 4 * channels
        deepest = normalised(2 * channels, wide, 3, stride=2)
        self.encoder = nn.ModuleList(
            [
                normalised(3, channels, 7),
                normalised(channels, 2 * channels, 3, stride=2),
                nn.Sequential(deepest, *(ResidualBlock(wide) for _ in range(BLOCKS))),
            ]
        )
        self.attention = Attention(
            nn.Linear(wide, 1, bias=False),
            nn.Linear(wide, 1, bias=False),
            nn.Sequential(nn.Conv2d(2 * wide, wide, 1), nn.ReLU()),
        )
        self.mask = nn.Conv2d(wide, 1, 3, padding=1, padding_mode="reflect")
        self.style = nn.Sequential(
            *(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU()),
            nn.Linear(wide, 2 * wide),
        )
        self.blocks = nn.ModuleList(AdaptiveBlock(wide) for _ in range(BLOCKS))
        self.enlarge = nn.ModuleList([Enlarge(wide, 2 * channels), Enlarge(2 * channels, channels)])
        self.last = nn.Sequential(convolution(channels, 3, 7), nn.Tanh())

    def forward(self, images: Tensor) -> Transferred:
        """images: float (N, 3, H, W) in -1..1."""
        whole = self.encoder[0](images)
        half = self.encoder[1](whole)
        quarter = self.encoder[2](half)
        # ReLU: after instance normalisation the mean of a channel is the same in every image
        decoded, logits, heat = self.attention(quarter.relu())
        mask = self.mask(decoded).float().sigmoid()
        gain, shift = self.style(decoded.mean((2, 3))).chunk(2, 1)
        for block in self.blocks:
            decoded = compose(block(decoded, 1 + gain, shift), mask, quarter)
        for enlarge, kept in zip(self.enlarge, (half, whole), strict=True):
            mask = F.interpolate(mask, scale_factor=2.0, mode="bilinear")
            decoded = compose(enlarge(decoded), mask, kept)
        fake, reconstruction = self.last(torch.cat([decoded, whole])).float().chunk(2)
        changed = compose(fake, mask, images)
        return Transferred(fake, mask, changed, reconstruction, logits.float(), heat.float())


# ---------------------------------------------------------------- the discriminators


class Discriminator(nn.Module):
    """Images (N, 3, H, W) -> how real each part looks (N, 1, h, w), and each image (N, 2)."""

    def __init__(self, channels: int, halvings: int) -> None:
        super().__init__()
        widths = [3, *(channels * 2**step for step in range(halvings + 1))]
        layers: list[nn.Module] = []
        for step, (ins, outs) in enumerate(zip(widths, widths[1:], strict=False)):
            size, stride = (4, 2) if step < halvings else (3, 1)
            layers += [spectral_norm(nn.Conv2d(ins, outs, size, stride, 1)), nn.LeakyReLU(SLOPE)]
        self.encoder = nn.Sequential(*layers)
        wide = widths[-1]
        self.attention = Attention(
            spectral_norm(nn.Linear(wide, 1, bias=False)),
            spectral_norm(nn.Linear(wide, 1, bias=False)),
            nn.Sequential(nn.Conv2d(2 * wide, wide, 1), nn.LeakyReLU(SLOPE)),
        )
        self.last = spectral_norm(nn.Conv2d(wide, 1, 3, padding=1, bias=False))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        attended, logits, _ = self.attention(self.encoder(images))
        return self.last(attended).float(), logits.float()


class Judges(nn.Module):
    """The global and the local discriminator of one domain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.judges = nn.ModuleList(Discriminator(channels, depth) for depth in (DEEP, SHALLOW))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return all outputs, (N, ...) each: 1 for real, 0 for generated."""
        return [said for judge in self.judges for said in judge(images)]
