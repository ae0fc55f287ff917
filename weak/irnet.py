"""IRNet's boundary branch (Ahn, Cho and Kwak, CVPR 2019) on a frozen encoder: training, inference.

Its other branch, the displacement field, tells two objects of one class apart: no mask here does.

An encoder is any function of images on the device, RGB uint8 (N, P, P, 3), that returns a list of
feature maps, shallow to deep.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from config import Config
from medood.models.inference import batch_size as inference_batch
from medood.models.network import Normalise
from medood.training.batches import ORDER, stream_seed
from medood.training.protocol import Losses, Training
from weak.affinity import TRAINING_RADIUS, affinity_loss, pairs
from weak.classifier import Classifier, Level
from weak.maps import placed
from weak.settings import IRNetConfig

Encoder = Callable[[Tensor], Sequence[Tensor]]

WEIGHTS = "model.safetensors"  # the name of its file
STRIDE = 4  # pixels of an image per pixel of the boundary, along each side
BOUNDARY, GROUP = 32, 8  # channels; those that are normalised together
MOMENTUM, WEIGHT_DECAY, POWER = 0.9, 1e-4, 0.9  # of SGD; of the learning rate's decline


def encoder_of(cfg: Config, classifier: Classifier, device: torch.device) -> Encoder:
    """Return the encoder of a classifier in eval mode, which takes images as they are."""
    normalise = Normalise(cfg.encoder).to(device)
    return lambda images: classifier.features(normalise(images.permute(0, 3, 1, 2).float()))


class Projections(nn.Module):
    """Feature maps of any size -> (N, BOUNDARY * maps, *size): projected, enlarged, joined."""

    def __init__(self, levels: Sequence[Level]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(ins, BOUNDARY, 1, bias=False), nn.GroupNorm(BOUNDARY // GROUP, BOUNDARY)
            )
            for ins, _ in levels
        )
        self.shifts = [level.grid_shift for level in levels]

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        enlarged = [
            placed(level(part.float()), size, grid_shift)
            for level, part, grid_shift in zip(self.levels, features, self.shifts, strict=True)
        ]
        return torch.cat(enlarged, 1).relu()


class IRNet(nn.Module):
    """Feature maps -> logits of the class boundary (N, h, w)."""

    def __init__(self, levels: Sequence[Level]) -> None:
        """levels: the feature maps, shallow to deep."""
        super().__init__()
        self.boundary_levels = Projections(levels)
        self.boundary = nn.Conv2d(BOUNDARY * len(levels), 1, 1)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """size: height and width of the result."""
        return self.boundary(self.boundary_levels(features, size))[:, 0]


class IRNetTraining(Training):
    """An IRNet in training, in place, on images and their mirror images.

    The encoder stays as it is. All random numbers come from seed and fold.
    """

    rate = "irnet_lr"

    def __init__(
        self,
        cfg: IRNetConfig,
        fold: int,
        encoder: Encoder,
        irnet: IRNet,
        images: Tensor,
        labels: Tensor,
        device: torch.device,
    ) -> None:
        """images: RGB uint8 (N, P, P, 3). labels: uint8 (N, P / STRIDE, P / STRIDE)."""
        super().__init__(
            cfg, f"fold {fold}, IRNet", irnet.to(device).train(), cfg.irnet_epochs, device
        )
        self.encoder, self.images, self.labels = encoder, images, labels
        self.optimiser = torch.optim.SGD(
            irnet.parameters(), cfg.irnet_lr, MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        steps = cfg.irnet_epochs * -(-len(images) // cfg.batch_size)
        self.schedule = torch.optim.lr_scheduler.PolynomialLR(self.optimiser, steps, POWER)
        self.generator = torch.Generator().manual_seed(stream_seed(cfg, fold, ORDER))

    def begin_epoch(self, epoch: int) -> list[tuple[Tensor, Tensor]]:
        """Return the indices of the images of each batch, and which of them are mirrored."""
        order = torch.randperm(len(self.images), generator=self.generator)
        is_mirrored = torch.rand(len(self.images), generator=self.generator) < 0.5
        return [(batch, is_mirrored[batch]) for batch in order.split(self.cfg.batch_size)]

    def step(self, batch: Tensor, flips: Tensor) -> Losses:
        """Take a step on some of the images."""
        inputs = _mirrored(self.images[batch], flips, 2).to(self.device)
        with torch.no_grad():
            features = self.encoder(inputs)
        labels = _mirrored(self.labels[batch], flips, 2).to(self.device)
        logits = self.model(features, labels.shape[1:])
        loss = affinity_loss(logits, pairs(labels, TRAINING_RADIUS), TRAINING_RADIUS)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        return {"loss": loss.detach()}


@torch.no_grad()
def boundaries(encoder: Encoder, irnet: IRNet, images: Tensor, device: torch.device) -> Tensor:
    """Return the class boundaries of images in 0..1, float32 (N, P / STRIDE, P / STRIDE).

    It is the mean of the predictions for an image and for its mirror image. images: RGB uint8
    (N, P, P, 3).
    """
    irnet.to(device).eval()
    size = images.shape[1] // STRIDE, images.shape[2] // STRIDE
    found = []
    parts = images.split(inference_batch(device))
    for part in tqdm(parts, "  boundaries", leave=False, disable=None):
        inputs = part.to(device)
        logits = irnet(encoder(torch.cat([inputs, inputs.flip(2)])), size)
        straight, mirrored = logits.sigmoid().chunk(2)
        found.append(((straight + mirrored.flip(2)) / 2).cpu())
    return torch.cat(found)


def _mirrored(values: Tensor, flips: Tensor, axis: int) -> Tensor:
    """Return values (N, ...) with those that `flips`, bool (N,), names mirrored along an axis."""
    flips = flips.view(-1, *[1] * (values.dim() - 1)).to(values.device)
    return torch.where(flips, values.flip(axis), values)
