"""Free adversarial training: noise that persists, and a trainer that replays every batch."""

import torch
from torch import Tensor, nn

from medood.training.batches import Loader
from medood.training.protocol import Losses
from medood.training.segmentation import Trainer
from robust.settings import FreeConfig


class Noise(nn.Module):
    """Noise on the input of a network, which raises the loss with every backward pass.

    images: floats (n, C, *space) within [low, high]; n is at most the N of the noise's shape
    (N, C, *space). Shafahi et al. 2019, Alg. 1; `ascend` is its last line.
    """

    def __init__(self, shape: tuple[int, ...], eps: float, low: float, high: float) -> None:
        super().__init__()
        self.noise = nn.Parameter(torch.zeros(shape))
        self.eps, self.low, self.high = eps, low, high

    def forward(self, images: Tensor) -> Tensor:
        noisy = images + self.noise[: len(images)]
        # the gradient is that of the clipped image: at a black pixel, clamp would remove it
        return noisy.clamp(self.low, self.high).detach() + (noisy - noisy.detach())

    def start(self) -> None:
        """Start again, as in each epoch: an interrupted training continues after whole epochs."""
        nn.init.zeros_(self.noise)

    @torch.no_grad()
    def ascend(self) -> None:
        """Take a step of eps along the sign of the gradient, and stay within eps."""
        self.noise.add_(self.noise.grad.sign(), alpha=self.eps).clamp_(-self.eps, self.eps)
        self.noise.grad = None


class FreeTrainer(Trainer):
    """A trainer that takes m optimiser steps on each batch, each with noise of a higher loss."""

    def __init__(self, cfg: FreeConfig, *given: object) -> None:
        super().__init__(cfg, *given)
        shape = cfg.batch_size, 3, cfg.patch_size, cfg.patch_size
        self.noise = Noise(shape, cfg.eps, 0, 255).to(self.device)
        self.normalise = nn.Sequential(self.noise, self.normalise)

    def begin_epoch(self, epoch: int) -> Loader:
        """Return the batches of an epoch, which begins with noise 0."""
        self.noise.start()
        return super().begin_epoch(epoch)

    def step(self, *batch: Tensor) -> Losses:
        """Take m steps on a batch, each on the noise after the last; return their mean results."""
        results = []
        for _ in range(self.cfg.replays):
            losses = super().step(*batch)
            results.append(torch.stack(list(losses.values())))
            self.noise.ascend()
        return dict(zip(losses, torch.stack(results).mean(0), strict=True))
