"""What a mask must beat: a grey threshold, and a prior of place."""

import numpy as np
import torch
from skimage.filters import threshold_otsu
from torch import Tensor


def otsu_masks(images: Tensor, classes: Tensor) -> Tensor:
    """Return the smaller side of Otsu's grey threshold as the class of each image.

    images: RGB uint8 (N, H, W, 3). classes: integers (N,), 0 for an image that holds none. Returns
    uint8 (N, H, W).
    """
    masks = np.zeros(images.shape[:3], np.uint8)
    for mask, image, value in zip(masks, images.numpy(), classes.tolist(), strict=True):
        grey = image.mean(2)
        if value and np.ptp(grey) > 0:
            above = grey > threshold_otsu(grey)
            mask[above if above.mean() <= 0.5 else ~above] = value
    return torch.from_numpy(masks)


def likeliest(logits: Tensor) -> Tensor:
    """Return the class, from 1, with the highest logit of each image, 0 where none is above 0.

    logits: (N, C).
    """
    top, best = logits.max(1)
    return torch.where(top > 0, best + 1, 0)


def centre_prior(maps: Tensor, held: Tensor) -> Tensor:
    """Return the mean map of each class over the images that hold it, (C, h, w).

    maps: (N, C, h, w). held: bool (N, C).
    """
    weight = held.float()[:, :, None, None]
    return (maps * weight).sum(0) / weight.sum(0).clamp_min(1)
