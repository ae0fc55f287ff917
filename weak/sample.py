"""A small set of synthetic images with image labels, to watch weak/ at work without data.

Ellipses of two classes lie on a cloudy ground: striped ones, and tinted ones. Both have, image by
image, the mean brightness of the ground and its spread, so that no threshold on brightness finds
them; the direction of the stripes and the hue of the tint do not matter to their class. For the
method transfer, which takes images with a lesion and without, striped ellipses alone lie there.
Scores on them say that the steps run, and nothing about any organ.
"""

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from medood.data.files import csv_text, digest, write_text
from medood.data.images import write_png
from medood.data.records import fresh_folder, record_of
from medood.data.workspace import SAMPLE_MARK
from medood.runs.locks import locked

CLASSES = ("striped", "tinted")
IMAGES, PER_PATIENT, SIDE = 60, 3, 64
# the classes of each image, over and over: a third holds none, and every patient has such an image
HELD = ((), (1,), (2,), (), (1, 2), (1,), (), (2,), (1, 2))
LESION_IMAGES = 90  # every second one holds the lesion
CLOUD = 2.5  # pixels, the blur that makes clouds of noise around lesions
LEVEL, SPREAD = 128.0, 22.0  # of the brightness, in the ground and in the ellipses
# what the sample runs with, unless the command line says otherwise
SETTINGS = {
    **{"encoder": "tu-resnet10t", "encoder_weights": "none", "image_size": SIDE, "folds": (79,)},
    **{"stages": 4, "classifiers": 1, "classifier_epochs": 80, "classifier_lr": 1e-3},
    **{"epochs": 8, "lr": 4e-3},
    **{"images": None, "image_labels": None, "masks": None, "mask_values": ()},
}
_POOLED = {"classifier_epochs": 24, "classifier_lr": 3e-3, "size": 0.1}
BY_METHOD = {"unet": _POOLED, "transfer": {**_POOLED, "iterations": 100}}
NOTE = """SAMPLE: synthetic images drawn by weak/sample.py.

Scores made from this folder show that the steps run. They say nothing about any organ or tissue.
"""
LUMA = np.array([0.299, 0.587, 0.114])  # how bright red, green and blue are


Held = tuple[int, ...]  # the classes of an image


def draw_image(rng: np.random.Generator, held: Held) -> tuple[np.ndarray, np.ndarray]:
    """Return an image, RGB uint8 (64, 64, 3), and its mask, uint8, with the classes `held`."""
    mask = _ellipses(rng, held)
    grey = scaled(gaussian_filter(rng.standard_normal(mask.shape), 1.2))
    striped = mask == 1
    if striped.any():
        grey[striped] = stripes(rng, SIDE)[striped]
    ground = grey[mask == 0].mean()
    for value in held:
        grey[mask == value] += ground - grey[mask == value].mean()
    image = np.repeat(grey[..., None], 3, axis=2)
    if 2 in held:  # of a random hue and no brightness
        hue = rng.uniform(0, 2 * np.pi) + np.array([0, 2, 4]) * np.pi / 3
        tint = 45 * np.cos(hue)
        image[mask == 2] += tint - tint @ LUMA
    return np.rint(image).clip(0, 255).astype(np.uint8), mask


def _ellipses(rng: np.random.Generator, held: Held) -> np.ndarray:
    """Return a mask with an ellipse of each class; two of them lie side by side."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    mask = np.zeros((SIDE, SIDE), np.uint8)
    turned = rng.random() < 0.5
    for place, value in enumerate(rng.permutation(held).astype(int)):
        long, short = rng.uniform(12, 15), rng.uniform(10, 12)
        low, high = (0, SIDE) if len(held) == 1 else (place * SIDE / 2, (place + 1) * SIDE / 2)
        x, y = rng.uniform(low + 15, high - 15), rng.uniform(15, SIDE - 15)
        mask[_ellipse(rows - y, columns - x, rng.uniform(0, np.pi), long, short)] = value
    return mask.T.copy() if turned else mask


def _ellipse(
    rows: np.ndarray, columns: np.ndarray, angle: float, long: float, short: float
) -> np.ndarray:
    """Say which pixels, at so many rows and columns from its centre, lie in an ellipse."""
    along = columns * np.cos(angle) + rows * np.sin(angle)
    across = rows * np.cos(angle) - columns * np.sin(angle)
    return (along / long) ** 2 + (across / short) ** 2 <= 1


def scaled(values: np.ndarray) -> np.ndarray:
    """Return values with the mean and the spread of the brightness."""
    return LEVEL + SPREAD * (values - values.mean()) / values.std()


def stripes(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return waves of a random direction, six pixels long, (side, side)."""
    rows, columns = np.mgrid[:side, :side]
    angle, start = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    along = columns * np.cos(angle) + rows * np.sin(angle)
    return scaled(np.sin(2 * np.pi * along / 6 + start))


def draw_lesion(
    rng: np.random.Generator, held: Held, side: int = SIDE
) -> tuple[np.ndarray, np.ndarray]:
    """Return an image, RGB uint8 (side, side, 3), and its mask, uint8, with the classes `held`."""
    grey = scaled(gaussian_filter(rng.standard_normal((side, side)), CLOUD))
    mask = np.zeros((side, side), np.uint8)
    if held:  # an ellipse, a sixth to a half of the side long
        rows, columns = np.mgrid[:side, :side] / side
        long, short = rng.uniform(0.17, 0.27), rng.uniform(0.13, 0.21)
        x, y = rng.uniform(0.25, 0.75, 2)
        inside = _ellipse(rows - y, columns - x, rng.uniform(0, np.pi), long, short)
        mask[inside] = 1
        waves = stripes(rng, side)
        ground = grey[~inside]
        like_ground = (waves - waves[inside].mean()) * ground.std() / waves[inside].std()
        grey[inside] = ground.mean() + like_ground[inside]
    image = np.repeat(grey[..., None], 3, axis=2)
    return np.rint(image).clip(0, 255).astype(np.uint8), mask


def draw_sample(workspace: Path, method: str = "cam") -> dict[str, Path]:
    """Write the sample to <workspace>/drawn, unless it is there; return the settings that name it.

    The workspace is marked, so that nothing made in it passes for the result of real images.
    """
    folder = workspace / "drawn"
    draw, classes, held_by, count = draw_image, CLASSES, HELD, IMAGES
    if method == "transfer":
        draw, classes, held_by, count = draw_lesion, CLASSES[:1], ((1,), ()), LESION_IMAGES
    named = {
        "images": folder / "images",
        "masks": folder / "masks",
        "image_labels": folder / "image_labels.csv",
    }
    write_text(workspace / SAMPLE_MARK, NOTE)  # first: no kill leaves a sample unmarked
    record = {"drawn_by": digest(Path(__file__).read_bytes()), "classes": list(classes)}
    found = record_of(folder)
    if found.is_there and not found.out_of_date(record):
        print(f"{folder}: kept, drawn before")
        return named
    with locked(workspace, [SAMPLE_MARK]), fresh_folder(folder, record) as out:
        for side in ("images", "masks"):
            (out / side).mkdir()
        rows = []
        for number in range(count):
            name, held = f"sample_{number:02}.png", held_by[number % len(held_by)]
            image, mask = draw(np.random.default_rng(number), held)
            write_png(out / "images" / name, image)
            write_png(out / "masks" / name, mask)
            labels = (int(value in held) for value, _ in enumerate(classes, 1))
            rows.append((name, f"patient_{number // PER_PATIENT:02}", *labels))
        header = ["img_name", "patient", *classes]
        write_text(out / "image_labels.csv", csv_text(header, rows))
    print(f"{folder}: SAMPLE, {count} synthetic images drawn")
    return named
