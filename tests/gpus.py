"""A GPU to test on, if there is one, and a small training to run on it or on a stand-in."""

import contextlib
import dataclasses

import torch

from config import Config
from medood.data.dataset import Patches
from medood.training.loop import train_epoch
from medood.training.segmentation import Trainer
from tests.conftest import TINY

CPU = torch.device("cpu")
# Adam turns rounding into whole steps where a gradient is next to nothing: small ones
SMALL = dataclasses.replace(TINY, lr=1e-4)
HERE = torch.cuda.is_available()


class Cuda:
    """A GPU that is there."""

    device = torch.device("cuda", 0)

    @contextlib.contextmanager
    def never_waiting(self):
        """A context in which torch raises where the host would wait for the GPU."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def some_patches(count: int, side: int = 32) -> Patches:
    """Noise, with a class for each shade of red; every third patch is OoD."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(255 * coarse, size=side, mode="bilinear")
    images = images.permute(0, 2, 3, 1).to(torch.uint8)
    masks = images[..., 0] // 37
    is_ood = torch.arange(count) % 3 == 2
    masks[is_ood] = 0
    masks[0, :4] = 255
    return Patches([f"{number}.png" for number in range(count)], images, masks, is_ood)


def trained(cfg: Config, device: torch.device, count: int = 20, epochs: int = 2, kind=Trainer):
    """Return a trainer after some epochs, and its losses with the norms of the gradients."""
    trainer = kind(dataclasses.replace(cfg, epochs=epochs), 1, some_patches(count), device)
    found = [train_epoch(trainer, epoch) for epoch in range(epochs)]
    return trainer, torch.cat([values.cpu() for of_epoch in found for values in of_epoch.values()])
