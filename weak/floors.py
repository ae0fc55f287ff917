"""Floors: masks that need no learning of their own, which any method has to exceed.

Otsu's threshold needs no setting. All other floors are maps, cut so that they cover the share
`size` of the training images with a class, in the images where the classifier predicts one.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu
from torch import Tensor

from config import Config
from medood.data.files import in_threads
from medood.models.network import Normalise, build_model
from weak.arrays import on_device
from weak.maps import threshold_of

BLUR = 1.5 / 64  # of an image's side
FEATURES, STRIDE = 24, 4  # of an encoder, drawn at random; pixels of the image to one of theirs
LEVELS = 4  # of the encoder: those up to a stride of 8
RIDGE = 0.01  # added to the covariance of healthy features


def otsu_masks(images: Tensor, classes: Tensor, inside: bool = False) -> Tensor:
    """Return the smaller side of Otsu's grey threshold as the class of each image.

    images: RGB uint8 (N, H, W, 3). classes: integers (N,), 0 for an image without any. inside:
    threshold only what is brighter than the threshold of the image, the tissue. Returns uint8
    (N, H, W).
    """
    masks = np.zeros(images.shape[:3], np.uint8)
    for mask, image, value in zip(masks, images.numpy(), classes.tolist(), strict=True):
        grey = image.mean(2)
        if not value or np.ptp(grey) == 0:
            continue
        above = grey > threshold_otsu(grey)
        if inside and np.ptp(grey[above]) > 0:
            mask[grey > threshold_otsu(grey[above])] = value
        else:
            mask[above if above.mean() <= 0.5 else ~above] = value
    return torch.from_numpy(masks)


def brightness(images: Tensor) -> Tensor:
    """Return the brightness around each pixel, float32 (N, P, P), of RGB uint8 (N, P, P, 3)."""
    sigma = BLUR * images.shape[1]
    grey = images.float().mean(3).numpy()
    return torch.from_numpy(np.stack(in_threads(lambda one: gaussian_filter(one, sigma), grey)))


@torch.inference_mode()
def strangeness(cfg: Config, images: Tensor, healthy: list[int]) -> Tensor:
    """Return the distance of each pixel from healthy images, float32 (N, P, P).

    It is the Mahalanobis distance from a Gaussian of healthy features at that place (PaDiM, Defard
    et al. 2021), with the initial weights of cfg's encoder. images: RGB uint8
    (N, P, P, 3). healthy: the indices of training images without any class.
    """
    torch.manual_seed(cfg.seed)  # of weights at random, if it has no others
    encoder, normalise = build_model(cfg).encoder.eval(), Normalise(cfg.encoder)
    cpu = torch.device("cpu")
    parts = [encoder(normalise(part)) for part in on_device(images, cpu, "  strangeness")]
    side = images.shape[1] // STRIDE
    levels = [torch.cat(of_level) for of_level in zip(*parts, strict=True)][1:LEVELS]
    found = torch.cat([F.interpolate(x, (side, side), mode="bilinear") for x in levels], 1)
    drawn = torch.randperm(found.shape[1], generator=torch.Generator().manual_seed(cfg.seed))
    found = found[:, drawn[:FEATURES]].flatten(2).permute(2, 0, 1)  # (pixels, N, K)
    mean = found[:, healthy].mean(1, keepdim=True)
    centred = found[:, healthy] - mean
    covariance = centred.transpose(1, 2) @ centred / max(1, len(healthy) - 1)
    precision = torch.linalg.inv(covariance + RIDGE * torch.eye(found.shape[2]))
    off = found - mean
    squared = ((off @ precision) * off).sum(2).clamp_min(0).T.reshape(-1, 1, side, side)
    return F.interpolate(squared.sqrt(), images.shape[1:3], mode="bilinear")[:, 0]


def cut_to(maps: Tensor, training: Tensor, share: float, held: Tensor) -> Tensor:
    """Return masks of maps (N, P, P), uint8, cut where training maps cover a share.

    training: (n, P, P). held: bool (N,), whether an image has the class.
    """
    return ((maps > threshold_of(training, share)) & held[:, None, None]).byte()
