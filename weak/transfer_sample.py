"""A small set of synthetic images, with and without a lesion, to watch transfer/ without data.

The lesion is an ellipse of stripes on a cloudy ground. It has, image by image, the mean brightness
of the ground and its spread, so that no threshold on brightness finds it. Scores on these images
say that the steps run, and nothing about any organ.
"""

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from weak.sample import Sample, scaled, stripes, write_sample

CLASSES = ("striped",)
IMAGES, SIDE = 90, 64  # three images a patient
HELD = ((1,), ())
CLOUD = 2.5  # pixels, the blur that makes clouds of noise
# what the sample runs with, unless the command line says otherwise
SETTINGS = {
    **{"encoder": "tu-resnet10t", "encoder_weights": "none", "patch_size": SIDE, "folds": (79,)},
    **{"batch_size": 4, "epochs": 12, "lr": 4e-3},
    **{"images": None, "image_labels": None, "masks": None, "mask_values": ()},
    "trainings": 1,  # three would take three times as long
}


def draw_image(
    rng: np.random.Generator, held: tuple[int, ...], side: int = SIDE
) -> tuple[np.ndarray, np.ndarray]:
    """Return an image, RGB uint8 (side, side, 3), and its mask, uint8, with the classes `held`."""
    grey = scaled(gaussian_filter(rng.standard_normal((side, side)), CLOUD))
    mask = np.zeros((side, side), np.uint8)
    if held:
        mask = _ellipse(rng, side)
        waves = stripes(rng, side)
        inside = mask == 1
        ground = grey[~inside]
        like_ground = (waves - waves[inside].mean()) * ground.std() / waves[inside].std()
        grey[inside] = ground.mean() + like_ground[inside]
    image = np.repeat(grey[..., None], 3, axis=2)
    return np.rint(image).clip(0, 255).astype(np.uint8), mask


def _ellipse(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return a mask with an ellipse, a sixth to a half of the side long."""
    rows, columns = np.mgrid[:side, :side] / side
    long, short = rng.uniform(0.17, 0.27), rng.uniform(0.13, 0.21)
    x, y = rng.uniform(0.25, 0.75, 2)
    angle = rng.uniform(0, np.pi)
    along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
    across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
    return ((along / long) ** 2 + (across / short) ** 2 <= 1).astype(np.uint8)


def draw_sample(workspace: Path) -> dict[str, Path]:
    """Write the sample to <workspace>/drawn, unless it is there; return the settings that name it.

    The workspace is marked, so that nothing made in it passes for the result of real images.
    """
    return write_sample(workspace, Sample(Path(__file__), draw_image, CLASSES, HELD, IMAGES))
