"""The classifier of --method unet: maps of full resolution, whose highest values say the classes.

The generator of --method transfer is trained against it, too.

It is the trunk's own network, trained without a mask (GP-UNet, Chatterjee et al. 2026). Two things
make its maps show where a class is, and not only that it is somewhere:

- An image without a class has no pixel of it: all of them are negatives (NEGEV, Belharbi 2022).
- In an image with it, the mean of the map is taught a share of the image (Fan, Zhang and Boykov,
  arXiv 2503.06954). Without this, an image with a class was painted all over.

A map is the log-odds of a class against background. The evidence of brightness is added, and a mask
ends at a probability of a half. A training image is unsure around it; a test image is not.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from torch import Tensor, nn

from medood.data.files import in_threads
from medood.data.labels import BACKGROUND
from medood.models.network import Normalise, autocast, pick_device
from medood.training.augmentation import RANDOM, parameters_of
from weak.arrays import on_device
from weak.classifier import EMPTY, kinds_of, load_classifiers
from weak.settings import ClassifierConfig

TOP = 0.02  # of a map's pixels, whose mean is the logit of the image
TINY = 1e-6
LEVELS, BLUR = 32, 1.5 / 64  # of brightness; of an image's side
LIGHT, GENTLE = 7, 0.1  # of an augmentation's random numbers: the first of light, and their factor


def maps_by(network: nn.Module, images: Tensor) -> Tensor:
    """Return the map of each class, (N, C, H, W), of normalised images (N, 3, H, W).

    It is the log-odds of the class against background.
    """
    logits = network(images).float()
    return logits[:, BACKGROUND + 1 :] - logits[:, BACKGROUND : BACKGROUND + 1]


def pooled(maps: Tensor) -> Tensor:
    """Return the logits of images, (N, C), from their maps (N, C, H, W).

    It is the mean of the highest TOP of the pixels, one at least.
    """
    flat = maps.flatten(2)
    return flat.topk(max(1, round(TOP * flat.shape[2])), 2).values.mean(2)


def size_loss(maps: Tensor, share: float) -> Tensor:
    """Return the distance of the mean probability of each map from a share in 0..1, (N, C).

    It is the binary cross-entropy of the two: KL divergence and a constant, least where they are
    equal. maps: (N, C, H, W).
    """
    mean = maps.sigmoid().mean((2, 3)).clamp(TINY, 1 - TINY)
    return F.binary_cross_entropy(mean, torch.full_like(mean, share), reduction="none")


def pooled_loss(maps: Tensor, labels: Tensor, size: float) -> Tensor:
    """Return the scalar loss of maps (N, C, H, W), for labels (N, C).

    It is the mean, over images and classes, of the binary cross-entropy of the pooled map and, if
    the image has the class, the size_loss; if not, EMPTY times the mean of the cross-entropies of
    its pixels. labels: float, 0 or 1. size: the share of an image that a class covers.
    """
    of_image = F.binary_cross_entropy_with_logits(pooled(maps), labels, reduction="none")
    of_pixels = F.softplus(maps).mean((2, 3))  # binary cross-entropy of each against 0
    return (of_image + labels * size_loss(maps, size) + EMPTY * (1 - labels) * of_pixels).mean()


def gentle(count: int, seed: int) -> Tensor:
    """Return random parameters of an augmentation that keeps the brightness, (count, K).

    Brightness is half of what distinguishes a lesion from tissue. The warps do not change: with
    angles a tenth as wide, maps of the sample showed a class at the border of the image.
    """
    random = torch.rand(count, RANDOM, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    random[:, LIGHT:] *= GENTLE
    return parameters_of(random)


@torch.inference_mode()
def seen_by(
    cfg: ClassifierConfig, networks: list[nn.Module], images: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return maps, float32 (N, C, P, P), and logits, (N, C), on the CPU, of N images.

    They are the mean over networks, of the image and its mirror image. images: RGB uint8
    (N, P, P, 3).
    """
    normalise, precision = Normalise(cfg.encoder).to(device), autocast(cfg.precision, device)
    maps, logits = [], []
    for part in on_device(images, device, "  classifying"):
        batch, found = normalise(part), []
        for network in networks:
            with precision:
                found += [maps_by(network, batch), maps_by(network, batch.flip(3)).flip(3)]
        logits.append(torch.stack([pooled(each) for each in found]).mean(0).cpu())
        maps.append(torch.stack(found).mean(0).cpu())
    return torch.cat(maps), torch.cat(logits)


@torch.inference_mode()
def logits_by(cfg: ClassifierConfig, folder: Path, images: Tensor) -> Tensor:
    """Return the logits, (N, C) on the CPU, by the classifiers of a method in their folder.

    They are the mean over (plain) classifiers. images: RGB uint8 (N, P, P, 3).
    """
    device = pick_device(cfg.device)
    classifiers = load_classifiers(cfg, folder, kinds_of(cfg)[0], device)
    if cfg.is_pooled:
        return seen_by(cfg, classifiers, images, device)[1]
    batches = map(Normalise(cfg.encoder).to(device), on_device(images, device, "  classifying"))
    found = [torch.stack([one(batch) for one in classifiers]).mean(0) for batch in batches]
    return torch.cat(found).cpu()


def appearance(maps: Tensor, images: Tensor, held: Tensor) -> Tensor:
    """Return the log-ratio of each level of brightness, by class: (C, LEVELS).

    It is log P(level | class) - log P(level | not) over the pixels of the images with the class,
    each of which counts on both sides, by its probability. maps: (N, C, P, P). images: RGB
    uint8 (N, P, P, 3). held: bool (N, C).
    """
    levels, found = levels_of(images), []
    for of_class, has in zip(maps.unbind(1), held.unbind(1), strict=True):
        likely = of_class[has].sigmoid()[..., None].expand(*of_class[has].shape, 3)
        sides = [
            torch.bincount(levels[has].flatten(), part.flatten(), LEVELS).numpy() + 1.0
            for part in (likely, 1 - likely)
        ]
        inside, outside = (gaussian_filter1d(side / side.sum(), 1) for side in sides)
        found.append(torch.from_numpy(np.log(inside / outside)))
    return torch.stack(found).float()


def with_appearance(maps: Tensor, images: Tensor, ratio: Tensor) -> Tensor:
    """Return maps plus the log-ratios of their pixels, as if independent (naive Bayes).

    It is the mean over the three colours. maps, images and ratio: as in `appearance`.
    """
    levels = levels_of(images)
    said = [of_class[levels].mean(3) for of_class in ratio]
    return maps + torch.stack(said, 1)


def levels_of(images: Tensor) -> Tensor:
    """Return the level of brightness around each pixel and colour, int64 (N, P, P, 3)."""
    sigma = BLUR * images.shape[1]

    def levels(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image.astype(np.float32), (sigma, sigma, 0)) * (LEVELS / 256)

    return torch.from_numpy(np.stack(in_threads(levels, images.numpy()))).long()


def probability(maps: Tensor) -> Tensor:
    """Return log-odds as probabilities; float64, in which large ones still differ."""
    return maps.double().sigmoid()
