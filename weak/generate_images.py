"""Scale every image that the image labels name to the side of a patch.

Reads   images, image_labels        PNG, JPEG, TIFF, BMP or DICOM, of any size; no mask
Writes  weak/Images/<stem>.png      RGB (P, P, 3), the whole image in the middle of black
        weak/Images/sizes.json      original height and width of each

An image is scaled to a longer side of image_size: one label is for all of it, so it stays whole.
With `normalise`, its grey values, or those of all images of a patient together, are z-scored inside
the tissue: scanners of magnetic resonance have no unit of brightness.
"""

import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from skimage.filters import threshold_otsu

from config import UserError
from medood.data import records
from medood.data.files import in_threads, write_json
from medood.data.images import read_image, write_png
from medood.data.names import name_of
from medood.processes import on_main
from medood.runs.command_line import run
from medood.runs.jobs import for_each
from medood.runs.provenance import making
from weak.image_labels import labels_of
from weak.products import IMAGES, SIZES, images_folder, png_of
from weak.read_images import list_inputs, read_any, squared
from weak.settings import ImagesConfig

MEAN, DEVIATION = 128, 24  # of the brightness of tissue: five deviations either way fit in a byte


def convert(path: Path, name: str, cfg: ImagesConfig, out: Path) -> tuple[int, ...]:
    """Write one image to `out`; return its entry in sizes.json."""
    pixels = read_any(path)
    write_png(out / name, squared(pixels, cfg.image_size))
    return pixels.shape[:2]


def standardised(images: np.ndarray) -> np.ndarray:
    """Return images of one scale of brightness, uint8, in units of the spread of their tissue.

    Tissue is what is brighter than Otsu's threshold of all of them. Its mean becomes MEAN and its
    standard deviation DEVIATION; images of one brightness stay as they are. images: RGB uint8
    (N, P, P, 3).
    """
    grey = images.mean(3)
    if not np.ptp(grey):
        return images
    tissue = images[grey > threshold_otsu(grey)].astype(float)
    scaled = MEAN + DEVIATION * (images - tissue.mean()) / max(tissue.std(), 1)
    return scaled.round().clip(0, 255).astype(np.uint8)


def standardise(paths: list[Path]) -> None:
    """Write images again, of one scale of brightness."""
    images = standardised(np.stack([read_image(path) for path in paths]))
    for path, image in zip(paths, images, strict=True):
        write_png(path, image)


@on_main
def generate_images(cfg: ImagesConfig) -> None:
    """Write weak/Images, unless it exists and is current.

    Raises UserError at the end if images are bad, unless they are to be skipped.
    """
    if cfg.images is None:
        raise UserError("images = None: name the folder of images with --images")
    made_with = (records.record_of(cfg.images).content or {}).get("made_from") or {}
    if "ood_fill" in made_with.get("settings", {}):
        raise UserError(
            f"{cfg.images} contains patches that were cut with pixel masks, which nothing here may"
            " use: name the original images"
        )
    labels = labels_of(cfg)
    inputs, names = list_inputs(cfg.images, labels.names), [*map(png_of, labels.names)]
    bad: records.BadFiles = {}
    with making(cfg, IMAGES, bad=bad) as folders:
        if not folders:
            return
        (out,) = folders
        jobs = [(path, name, cfg, out) for path, name in zip(inputs, names, strict=True)]
        sizes = for_each(convert, jobs, cfg, "images", bad)
        good = [name for path, name in zip(inputs, names, strict=True) if name_of(path) not in bad]
        write_json(out / SIZES, dict(zip(good, sizes, strict=True)))
        if cfg.normalise != "none":
            owners = names if cfg.normalise == "image" else labels.patients
            groups: dict[str, list[Path]] = defaultdict(list)
            for path, name, owner in zip(inputs, names, owners, strict=True):
                if name_of(path) not in bad:
                    groups[owner].append(out / name)
            in_threads(standardise, list(groups.values()), "brightness")
    without = f" (bad files skipped: {len(bad)})" if bad else ""
    print(f"{images_folder(cfg)}: {len(good)} images{without}")
    records.refuse_bad(bad, cfg.skip_bad_files)


if __name__ == "__main__":
    run(generate_images, ImagesConfig())
