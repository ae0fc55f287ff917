"""A generator that makes an image healthy by a change inside a mask, and the judge of what it made.

Images are float (N, 3, H, W) in -1..1.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from config import Config
from medood.models.network import Normalise, build_model

WIDTHS = (3, 16, 32, 64)  # of the judge
SLOPE = 0.2  # of its leaky ReLU
RARE = -3.0  # log-odds of the mask at the start: 5 % of an image


class Healed(NamedTuple):
    """What a generator makes of N images."""

    image: Tensor  # (N, 3, H, W) in -1..1
    mask: Tensor  # (N, 1, H, W) in 0..1: where it may change


def changed(images: Tensor, mask: Tensor, change: Tensor) -> Tensor:
    """Return images plus a change inside a mask: to the bit the images where either is 0."""
    return (images + mask * change).clamp(-1, 1)


class Generator(nn.Module):
    """Images -> Healed, by the trunk's network, whose skip connections keep the anatomy.

    That the network returns a change of the image, and not the image, and goes in one direction is
    what counts (COIN, Shvetsov et al., arXiv 2404.12832).
    """

    def __init__(self, cfg: Config) -> None:
        """The network of cfg has a channel for background, and each class: four are needed."""
        super().__init__()
        self.network = build_model(cfg)
        self.normalise = Normalise(cfg.encoder)

    def forward(self, images: Tensor) -> Healed:
        """images: float (N, 3, H, W) in -1..1."""
        out = self.network(self.normalise((images + 1) * 127.5)).float()
        mask, change = (out[:, :1] + RARE).sigmoid(), 2 * out[:, 1:].tanh()
        return Healed(changed(images, mask, change), mask)


class Judge(nn.Sequential):
    """Images (N, 3, H, W) -> how real each part of them looks, (N, 1, H / 8, W / 8)."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for ins, outs in zip(WIDTHS, WIDTHS[1:], strict=False):
            layers += [spectral_norm(nn.Conv2d(ins, outs, 4, 2, 1)), nn.LeakyReLU(SLOPE)]
        super().__init__(*layers, spectral_norm(nn.Conv2d(WIDTHS[-1], 1, 3, padding=1)))


# ---------------------------------------------------------------- losses


def least_squares(said: Tensor, truth: float) -> Tensor:
    """Return the mean of (said - truth)^2 (Mao et al. 2017): 1 for real, 0 for made."""
    return (said - truth).square().mean()


def total_variation(values: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels of (N, C, H, W)."""
    down = (values[..., 1:, :] - values[..., :-1, :]).abs().mean()
    return down + (values[..., 1:] - values[..., :-1]).abs().mean()
