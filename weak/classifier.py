"""The classifier: the classes of an image, from maps whose spatial mean is the logit.

There are three kinds. A plain one separates the images with a class from all others. It may use
what distinguishes two classes but belongs to neither: for parts of one organ, the tissue around
them. A contrast one continues from it: it separates them only from the images without any class,
and learns that these have no class at any pixel. It cannot say which of two classes an image has,
but where. For the third, pooled, see weak/pooled.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from scipy.stats import mannwhitneyu
from torch import Tensor, nn

from config import UserError
from medood.models.foreign import reason_of
from medood.models.network import build_model
from weak.arrays import load_weights
from weak.output_stride import OUTPUT_STRIDE, PROBE, grid_shifts, set_output_stride
from weak.settings import ClassifierConfig

EMPTY = 4  # weight of the pixels of images without a class, in the contrast loss; an image has 1

Kind = Literal["plain", "contrast", "pooled"]


def kinds_of(cfg: ClassifierConfig) -> list[Kind]:
    """Return the kinds of classifier that are trained, in this order."""
    if cfg.is_pooled:
        return ["pooled"]
    return ["plain", "contrast"] if cfg.method == "contrast" else ["plain"]


class Level(NamedTuple):
    """One of the feature maps of a classifier."""

    channels: int
    grid_shift: float  # in pixels of the map, see grid_shifts


class Classifier(nn.Module):
    """An encoder, a 1 x 1 convolution without bias, and the mean over all pixels.

    The mean of the map of a class *is* the logit of the class: the maps show where it comes from
    (class activation maps, Zhou et al. 2016).
    """

    def __init__(self, encoder: nn.Module, shifts: list[float], classes: int) -> None:
        """shifts: of the encoder's maps, as grid_shifts returns them."""
        super().__init__()
        self.encoder = encoder
        self.head = nn.Conv2d(encoder.out_channels[-1], classes, 1, bias=False)
        sizes = zip(encoder.out_channels[1:], shifts, strict=True)
        self.levels = [Level(channels, grid_shift) for channels, grid_shift in sizes if channels]

    @property
    def grid_shift(self) -> float:
        """How far the maps of the classes are shifted up and left, in their pixels."""
        return self.levels[-1].grid_shift

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of normalised images (N, 3, H, W), shallow to deep."""
        found = self.encoder(images)[1:]
        return [part for part in found if part.shape[1]]  # a transformer has none at stride 2

    def maps(self, images: Tensor) -> Tensor:
        """Return the maps of the classes, (N, C, h, w), of normalised images (N, 3, H, W)."""
        return self.head(self.features(images)[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the classes, (N, C)."""
        return self.maps(images).mean((2, 3))


def build_classifier(cfg: ClassifierConfig, to_train: bool = True) -> Classifier:
    """Return the classifier of cfg; to_train: with the initial weights of its encoder.

    Raises UserError for an unknown encoder, one without such weights, and one that cannot keep the
    output stride.
    """
    # the trunk loads the weights; batch_norm is a setting of the segmentation network
    weights = build_model(replace(cfg, batch_norm=True)).encoder.state_dict() if to_train else {}
    try:
        encoder = smp.encoders.get_encoder(cfg.encoder, depth=cfg.stages, weights=None)
        if to_train:
            encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
        shifts = grid_shifts(encoder)
        set_output_stride(encoder)
        with torch.no_grad():
            side = encoder(torch.zeros(2, 3, PROBE, PROBE))[-1].shape[-1]
        if side * OUTPUT_STRIDE != PROBE:
            raise ValueError(f"its maps have {side} pixels of {PROBE}")
    except Exception as error:  # of smp and of every model of timm: each has its own kind
        raise UserError(
            f"encoder = {cfg.encoder!r} cannot keep an output stride of {OUTPUT_STRIDE} with"
            f" {cfg.stages} stages ({reason_of(error)}): set stages to 5, or choose another"
            " encoder, such as resnet18 or mobilenet_v2"
        ) from None
    return Classifier(encoder, shifts, len(cfg.classes))


def plain_loss(maps: Tensor, labels: Tensor) -> Tensor:
    """Return the scalar loss of maps (N, C, h, w), for labels, float (N, C), 0 or 1.

    It is the binary cross-entropy of their means.
    """
    return F.binary_cross_entropy_with_logits(maps.mean((2, 3)), labels)


def contrast_loss(maps: Tensor, labels: Tensor) -> Tensor:
    """Return the scalar loss of maps (N, C, h, w), for labels, float (N, C), 0 or 1.

    It is the mean, over pairs of an image and a class where the image has the class, or none at
    all, of the binary cross-entropy of a map's mean and, for an image without any class, EMPTY
    times the mean of that of its pixels.
    """
    empty = (labels.amax(1, keepdim=True) == 0).expand_as(labels)
    known = empty | (labels == 1)
    of_image = F.binary_cross_entropy_with_logits(maps.mean((2, 3)), labels, reduction="none")
    of_pixels = F.softplus(maps).mean((2, 3))  # binary cross-entropy of each against 0
    return (known * of_image + EMPTY * empty * of_pixels).sum() / known.sum()


def image_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, list[float | None]]:
    """Return AUC and F1 of each class on images: logits (N, C), labels 0 or 1 (N, C).

    AUC is the share of pairs, one image with and one without the class, whose logits are in the
    right order (a tie is half a pair); None if all are of one kind. For F1, a class is predicted if
    the logit is above 0; None if no image has the class and none is predicted to.
    """
    auc, f1 = [], []
    for logit, held in zip(logits.T, labels.T == 1, strict=True):
        called = logit > 0
        auc.append(auc_of(logit, held))
        both = held.sum() + called.sum()
        f1.append(float(2 * (called & held).sum() / both) if both else None)
    return {"auc": auc, "f1": f1}


def auc_of(values: np.ndarray, held: np.ndarray) -> float | None:
    """Return the share of pairs in the right order, as image_scores says; values, held: (N,)."""
    pairs = held.sum() * (~held).sum()
    ranks = mannwhitneyu(values[held], values[~held], method="asymptotic") if pairs else None
    return float(ranks.statistic / pairs) if pairs else None


def load_classifiers(
    cfg: ClassifierConfig, folder: Path, kind: Kind, device: torch.device
) -> list[nn.Module]:
    """Return the classifiers of a kind in a folder, in eval mode."""
    found = []
    for number in range(cfg.classifiers):
        network = (
            build_model(replace(cfg, encoder_weights="none"))
            if kind == "pooled"
            else build_classifier(cfg, to_train=False)
        )
        load_weights(network, weights_file(folder, kind, number))
        found.append(network.to(device, memory_format=torch.channels_last))
    return found


def weights_file(folder: Path, kind: Kind, number: int) -> Path:
    """Return where a folder has the weights of a classifier. number: from 0."""
    name = f"{kind}_{number + 1}".removeprefix("pooled_")
    return folder / f"{name}.safetensors"
