"""A generator that makes an image healthy by a change inside a mask, and those who judge it.

Images are float (N, 3, H, W) in -1..1, but for `heal`.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from config import Config
from medood.models.network import Normalise, build_model
from weak.arrays import load_weights, on_device
from weak.image_labels import with_classes
from weak.pooled import logits_by, maps_by, pooled
from weak.products import classifier_folder
from weak.settings import TransferConfig

WEIGHTS = "generator.safetensors"
WIDTHS = (3, 16, 32, 64)  # of the judge
SLOPE = 0.2  # of its leaky ReLU
RARE = -3.0  # log-odds of the mask at the start: 5 % of an image


class Healed(NamedTuple):
    """What a generator makes of N images."""

    image: Tensor  # (N, 3, H, W) in -1..1
    mask: Tensor  # (N, 1, H, W) in 0..1: where it may change


class Generator(nn.Module):
    """Images -> Healed, by the trunk's network, whose skip connections keep the anatomy.

    That the network returns a change of the image, and not the image, and goes in one direction is
    what counts (COIN, Shvetsov et al., arXiv 2404.12832).
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        # its channels are the mask, and the change of three colours
        channels = tuple((name, "#000000") for name in ("red", "green", "blue"))
        self.network = build_model(replace(cfg, classes=channels))
        self.normalise = Normalise(cfg.encoder)

    def forward(self, images: Tensor) -> Healed:
        """images: float (N, 3, H, W) in -1..1."""
        out = self.network(self.normalise((images + 1) * 127.5)).float()
        mask, change = (out[:, :1] + RARE).sigmoid(), 2 * out[:, 1:].tanh()
        return Healed((images + mask * change).clamp(-1, 1), mask)


class Judge(nn.Sequential):
    """Images (N, 3, H, W) -> how real each part of them looks, (N, 1, H / 8, W / 8)."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for ins, outs in zip(WIDTHS, WIDTHS[1:], strict=False):
            layers += [spectral_norm(nn.Conv2d(ins, outs, 4, 2, 1)), nn.LeakyReLU(SLOPE)]
        super().__init__(*layers, spectral_norm(nn.Conv2d(WIDTHS[-1], 1, 3, padding=1)))


class Sees(nn.Module):
    """Frozen classifiers: images (N, 3, H, W) in -1..1 -> the logit of the lesion, (N,)."""

    def __init__(self, cfg: TransferConfig, networks: list[nn.Module], channel: int) -> None:
        """channel: of the lesion, among the classes."""
        super().__init__()
        self.networks, self.normalise = nn.ModuleList(networks), Normalise(cfg.encoder)
        self.channel = channel
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        batch = self.normalise((images + 1) * 127.5)
        found = [pooled(maps_by(network, batch)) for network in self.networks]
        return torch.stack(found).mean(0)[:, self.channel]


def least_squares(said: Tensor, truth: float) -> Tensor:
    """Return the mean of (said - truth)^2 (Mao et al. 2017): 1 for real, 0 for made."""
    return (said - truth).square().mean()


def total_variation(values: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels of (N, C, H, W)."""
    down = (values[..., 1:, :] - values[..., :-1, :]).abs().mean()
    return down + (values[..., 1:] - values[..., :-1]).abs().mean()


def scaled(images: Tensor) -> Tensor:
    """Return images of 0..255 in -1..1."""
    return images / 127.5 - 1


def load_generator(cfg: TransferConfig, folder: Path, device: torch.device) -> Generator:
    """Return the generator of a folder, in eval mode."""
    generator = Generator(replace(cfg, encoder_weights="none"))
    load_weights(generator, folder / WEIGHTS)
    return generator.to(device, memory_format=torch.channels_last)


@torch.no_grad()
def heal(generator: Generator, images: Tensor, device: torch.device) -> Healed:
    """Return images made healthy, RGB uint8 (N, P, P, 3), all on the CPU.

    The mask is float32 (N, P, P) in 0..1. images: RGB uint8 (N, P, P, 3).
    """
    found = []
    for part in on_device(images, device, "  making healthy"):
        healed = generator(scaled(part))
        after = ((healed.image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        found.append((after.permute(0, 2, 3, 1).cpu(), healed.mask[:, 0].cpu()))
    return Healed(*(torch.cat(part) for part in zip(*found, strict=True)))


def seen_in(cfg: TransferConfig, fold: int, images: Tensor) -> Tensor:
    """Say in which images, RGB uint8 (N, P, P, 3), the classifiers see the lesion: bool (N,)."""
    of_all = with_classes(cfg)
    logits = logits_by(of_all, classifier_folder(cfg, fold), images)
    return logits[:, of_all.class_names.index(cfg.lesion) - 1] > 0
