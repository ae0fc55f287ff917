"""IRNet's boundary branch (Ahn, Cho and Kwak, CVPR 2019) on a frozen encoder.

Its other branch, the displacement field, tells two objects of one class apart: no mask here does.

An encoder is any function of images on the device, float (N, 3, P, P) in 0..255, that returns a
list of feature maps, shallow to deep.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from config import Config
from medood.models.network import Normalise
from weak.arrays import on_device
from weak.classifier import Classifier, Level
from weak.maps import placed

Encoder = Callable[[Tensor], Sequence[Tensor]]

WEIGHTS = "model.safetensors"  # the name of its file
STRIDE = 4  # pixels of an image per pixel of the boundary, along each side
BOUNDARY, GROUP = 32, 8  # channels; those that are normalised together


def encoder_of(cfg: Config, classifier: Classifier, device: torch.device) -> Encoder:
    """Return the encoder of a classifier in eval mode, with its normalisation."""
    normalise = Normalise(cfg.encoder).to(device)
    return lambda images: classifier.features(normalise(images))


class IRNet(nn.Module):
    """Feature maps -> logits of the class boundary (N, h, w): projected, enlarged, joined."""

    def __init__(self, levels: Sequence[Level]) -> None:
        """levels: the feature maps, shallow to deep."""
        super().__init__()
        projections = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(ins, BOUNDARY, 1, bias=False), nn.GroupNorm(BOUNDARY // GROUP, BOUNDARY)
            )
            for ins, _ in levels
        )
        self.boundary_levels = nn.ModuleDict({"levels": projections})  # as files name the weights
        self.boundary = nn.Conv2d(BOUNDARY * len(levels), 1, 1)
        self.shifts = [level.grid_shift for level in levels]

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """size: height and width of the result."""
        parts = zip(self.boundary_levels["levels"], features, self.shifts, strict=True)
        enlarged = [
            placed(project(part.float()), size, grid_shift) for project, part, grid_shift in parts
        ]
        return self.boundary(torch.cat(enlarged, 1).relu())[:, 0]


@torch.no_grad()
def boundaries(encoder: Encoder, irnet: IRNet, images: Tensor, device: torch.device) -> Tensor:
    """Return the class boundaries of images in 0..1, float32 (N, P / STRIDE, P / STRIDE).

    It is the mean of the predictions for an image and for its mirror image. images: RGB uint8
    (N, P, P, 3).
    """
    irnet.to(device).eval()
    size = images.shape[1] // STRIDE, images.shape[2] // STRIDE
    found = []
    for part in on_device(images, device, "  boundaries"):
        logits = irnet(encoder(torch.cat([part, part.flip(3)])), size)
        straight, mirrored = logits.sigmoid().chunk(2)
        found.append(((straight + mirrored.flip(2)) / 2).cpu())
    return torch.cat(found)
