"""Floors: masks that need no learning of their own, which any method has to exceed.

Otsu's threshold needs no setting. All other floors are maps, cut so that they cover the share
`size` of the training images with a class, in the images where the classifier predicts one.
"""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu
from torch import Tensor

from medood.data.files import in_threads

BLUR = 1.5 / 64  # of an image's side


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
