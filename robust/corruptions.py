"""Corruptions of images without an attacker, at five strengths, by libraries.

Strengths for images are those of ImageNet-C (Hendrycks and Dietterich 2019), except the shift of
stains. Those for volumes are ROOD-MRI's (Boone et al. 2022, arXiv 2203.06060, and the defaults of
its code), except Gibbs and spikes, which it lacks. Its affine and elastic changes are omitted, as
they move the label too, and so are ghosts and motion, which MONAI does not have.
"""

import io
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import (
    AdjustContrast,
    GaussianSmooth,
    GibbsNoise,
    KSpaceSpikeNoise,
    RandBiasField,
    RandRicianNoise,
)
from PIL import Image
from skimage.morphology import disk
from torch import Tensor

from medood.attacks.measuring import CLEAN, Trial
from medood.training.augmentation import restain, stains_of

STRENGTHS = (1, 2, 3, 4, 5)
Corrupt = Callable[[Tensor, float, int], Tensor]  # an image (C, *space) in 0..1, value and seed


class Corruption(NamedTuple):
    """A kind of corruption: its values at the five strengths, and what it does."""

    values: tuple[float, ...]
    apply: Corrupt


def noise(image: Tensor, deviation: float, seed: int) -> Tensor:
    """Return the image with Gaussian noise."""
    drawn = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return image + deviation * drawn


def defocus(image: Tensor, radius: float, _: int) -> Tensor:
    """Return the image out of focus: each point a disc; radius in pixels."""
    kernel = torch.from_numpy(disk(int(radius))).float()
    kernel = (kernel / kernel.sum()).expand(len(image), 1, -1, -1)
    wide = F.pad(image[None], [int(radius)] * 4, mode="reflect")
    return F.conv2d(wide, kernel, groups=len(image))[0]


def jpeg(image: Tensor, quality: float, _: int) -> Tensor:
    """Return the image (3, H, W) after JPEG compression."""
    file = io.BytesIO()
    pixels = (255 * image).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=int(quality))
    with Image.open(file) as kept:
        return torch.from_numpy(np.array(kept)).permute(2, 0, 1) / 255


def pixelate(image: Tensor, factor: float, _: int) -> Tensor:
    """Return the image as a magnified coarser one; factor: of its sides."""
    coarse = F.interpolate(image[None], scale_factor=factor, mode="area")
    return F.interpolate(coarse, image.shape[1:], mode="nearest")[0]


def stain(image: Tensor, change: float, seed: int) -> Tensor:
    """Return the image (3, H, W) with more or less of hematoxylin and of eosin, at random."""
    sign = torch.randint(0, 2, (2,), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    mixed = stains_of(F.pad(change * sign, (0, 4))[None])
    return restain(255 * image[None], mixed)[0] / 255


def rician(image: Tensor, deviation: float, seed: int) -> Tensor:
    """Return the image with Rician noise; its deviation is a share of that of the image."""
    added = RandRicianNoise(1, std=deviation, channel_wise=True, relative=True, sample_std=False)
    return added.set_random_state(seed)(image.clone())  # it changes its input


def bias(image: Tensor, coefficient: float, seed: int) -> Tensor:
    """Return the image times a smooth field, the exponential of polynomials of degree 3."""
    field = RandBiasField(3, (-coefficient, coefficient), prob=1).set_random_state(seed)
    changed = field(image)
    return changed * (image.amax() / changed.amax().clamp_min(1e-6))  # scaled as by a scanner


def thick_slices(image: Tensor, factor: float, seed: int) -> Tensor:
    """Return the image as if resolved by `factor` less along one axis, drawn at random."""
    axis = int(np.random.default_rng(seed).integers(image.dim() - 1))
    size = list(image.shape[1:])
    size[axis] = max(1, round(size[axis] / factor))
    coarse = F.interpolate(image[None], size, mode="area")
    modes = {2: "bilinear", 3: "trilinear"}
    return F.interpolate(coarse, image.shape[1:], mode=modes[image.dim() - 1])[0]


def spikes(image: Tensor, share: float, seed: int) -> Tensor:
    """Return the image with a spike in k-space, whose height is a share of the mean's."""
    space = np.array(image.shape[1:])
    rng = np.random.default_rng(seed)
    place = (space // 2 + rng.integers(1, 4, len(space)) * rng.choice([-1, 1], len(space))) % space
    height = np.log(share * image.abs().sum().item() / len(image) + 1e-10)
    return KSpaceSpikeNoise(tuple(place.tolist()), height)(image)


def of_value(transform: Callable[[float], Callable[[Tensor], Tensor]]) -> Corrupt:
    """Return the corruption by a transform of MONAI that takes the value and draws nothing."""
    return lambda image, value, _: transform(value)(image)


OF_IMAGES = {
    "noise": Corruption((0.08, 0.12, 0.18, 0.26, 0.38), noise),
    "blur": Corruption((1, 2, 3, 4, 6), of_value(GaussianSmooth)),  # sigma in pixels
    "defocus": Corruption((3, 4, 6, 8, 10), defocus),
    "contrast": Corruption(
        (0.4, 0.3, 0.2, 0.1, 0.05),
        lambda image, factor, _: torch.lerp(image.mean((1, 2), keepdim=True), image, factor),
    ),
    "jpeg": Corruption((25, 18, 15, 10, 7), jpeg),
    "pixelate": Corruption((0.6, 0.5, 0.4, 0.3, 0.25), pixelate),
    "stain": Corruption((0.1, 0.2, 0.3, 0.4, 0.5), stain),
}
OF_VOLUMES = {
    "rician": Corruption((0.16, 0.32, 0.48, 0.64, 0.8), rician),
    "smoothing": Corruption((0.8, 1.6, 2.4, 3.2, 4.0), of_value(GaussianSmooth)),
    "bias": Corruption((0.3, 0.6, 0.9, 1.2, 1.5), bias),
    "compression": Corruption((0.86, 0.72, 0.58, 0.44, 0.3), of_value(AdjustContrast)),
    "expansion": Corruption((1.4, 1.8, 2.2, 2.6, 3.0), of_value(AdjustContrast)),
    "thick_slices": Corruption((2.8, 4.6, 6.4, 8.2, 10), thick_slices),
    # ringing: without this share of the frequencies, the highest
    "gibbs": Corruption((0.4, 0.5, 0.6, 0.7, 0.8), of_value(GibbsNoise)),
    "spikes": Corruption((0.05, 0.1, 0.15, 0.2, 0.3), spikes),
}


def corrupt(images: Tensor, corruption: Corruption, strength: int, seed: int) -> Tensor:
    """Return images (N, C, *space) in 0..1 with a corruption, within 0..1; none at strength 0.

    Each image has its own random numbers, the same at all strengths.
    """
    if not strength:
        return images
    value = corruption.values[strength - 1]
    changed = [
        corruption.apply(image, value, seed + number) for number, image in enumerate(images.cpu())
    ]
    changed = [image.as_subclass(Tensor) for image in changed]  # MONAI's carry metadata
    return torch.stack(changed).clamp(0, 1).to(images)


def trial_of(kinds: dict[str, Corruption]) -> Trial:
    """Return the trial of each kind at each strength, which stands for the eps of a condition."""
    conditions = [CLEAN, *((float(strength), kind) for kind in kinds for strength in STRENGTHS)]
    decided_by = {name: kind.values for name, kind in kinds.items()}

    def under(_: object, images: Tensor, __: Tensor, seed: int) -> Iterator[Tensor]:
        for corruption in kinds.values():
            for strength in STRENGTHS:
                yield corrupt(images, corruption, strength, seed % 2**31)

    return Trial(conditions, under, decided_by)
