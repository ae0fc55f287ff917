"""New images, row by row: ordinary files, and whole slides that do not fit into memory."""

from pathlib import Path

import cv2
import numpy as np
import openslide

from config import UserError
from medood.data.headers import read_header
from medood.data.images import IMAGE_ENDINGS, read_image, require_plain, transparent

SLIDE_ENDINGS = (".svs", ".ndpi", ".mrxs", ".scn", ".bif")
ENDINGS = (*IMAGE_ENDINGS, *SLIDE_ENDINGS)
# of OpenSlide's formats: TIFFs whose first page is the image, of any kind that a TIFF may hold
TIFFS = ("generic-tiff", "aperio")
MPP = 0.05, 10  # microns per pixel that a scanner can have; others are a program's default
BLOCK = 4096  # pixels of a row that are read at a time


class File:
    """An ordinary image of `height` x `width` pixels, in memory.

    `mpp`: microns per pixel, down and across, or None if the file has none.
    """

    def __init__(self, path: Path) -> None:
        self.image = read_image(path)
        self.height, self.width = self.image.shape[:2]
        found = read_header(path).mpp
        self.mpp = found if found and all(MPP[0] <= mpp <= MPP[1] for mpp in found) else None

    def rows(self, top: int, bottom: int, height: int, width: int) -> np.ndarray:
        """Return rows top..bottom of the image, resized to height x width, RGB (n, width, 3)."""
        self.image = _resized(self.image, height, width)  # by the first call
        return self.image[top:bottom]


class Slide:
    """A whole slide or tiled TIFF of `height` x `width` pixels, read from the disk row by row.

    `mpp`: microns per pixel, down and across, or None if the file has none. If the scanner recorded
    which part it scanned, that part is the image, as in QuPath.
    """

    def __init__(self, path: Path, has_alpha: bool = False) -> None:
        """has_alpha: pixels may be transparent, not only outside the scanned part."""
        try:
            self.slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise UserError(
                f"{path} is not a complete slide, or of a kind that OpenSlide does not read"
                f" ({error}): copy it again, or convert it"
            ) from None
        known = self.slide.properties
        width, height = self.slide.dimensions
        self.left = int(known.get(openslide.PROPERTY_NAME_BOUNDS_X, 0))
        self.top = int(known.get(openslide.PROPERTY_NAME_BOUNDS_Y, 0))
        self.width = int(known.get(openslide.PROPERTY_NAME_BOUNDS_WIDTH, width))
        self.height = int(known.get(openslide.PROPERTY_NAME_BOUNDS_HEIGHT, height))
        if not (0 < self.width <= width and 0 < self.height <= height):
            raise UserError(
                f"{path} is damaged (it has {width} x {height} pixels, but {self.width} x"
                f" {self.height} scanned ones): copy it again"
            )
        names = openslide.PROPERTY_NAME_MPP_Y, openslide.PROPERTY_NAME_MPP_X
        found = [float(known[name]) for name in names if name in known]
        is_known = found and all(MPP[0] <= mpp <= MPP[1] for mpp in found)
        self.mpp = (found[0], found[-1]) if is_known else None  # one side stands for both
        self.path, self.has_alpha = path, has_alpha

    def rows(self, top: int, bottom: int, height: int, width: int) -> np.ndarray:
        """Return rows top..bottom of the slide, resized to height x width, RGB (n, width, 3)."""
        scale = self.height / height, self.width / width  # pixels of the slide per pixel returned
        # the coarsest level with all details of the result
        level = self.slide.get_best_level_for_downsample(max(1.0, min(scale)))
        shrink = self.slide.level_downsamples[level]
        out = np.empty((bottom - top, width, 3), np.uint8)
        for left in range(0, width, BLOCK):
            right = min(left + BLOCK, width)
            x0, x1 = (round(x * scale[1]) for x in (left, right))
            y0, y1 = (round(y * scale[0]) for y in (top, bottom))
            size = max(1, round((x1 - x0) / shrink)), max(1, round((y1 - y0) / shrink))
            rgb = self._region(x0, y0, level, size)
            out[:, left:right] = _resized(rgb, bottom - top, right - left)
        return out

    def _region(self, x: int, y: int, level: int, size: tuple[int, int]) -> np.ndarray:
        """Return `size` pixels of a level, RGB uint8; x and y are pixels of level 0."""
        try:
            region = self.slide.read_region((self.left + x, self.top + y), level, size)
        except openslide.OpenSlideError as error:
            raise UserError(f"{self.path} is damaged ({error}): copy it again") from None
        rgba = np.asarray(region)
        if self.has_alpha and rgba[..., 3].min() < 255:
            raise transparent(self.path)
        return np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(255))  # not scanned: white


Source = File | Slide


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return an image, (H, W, 3), in another size."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=method)


def open_image(path: Path) -> Source:
    """Return an image, ready to be read row by row; raise UserError if it cannot be read.

    A slide is never in memory as a whole: it may have any size.
    """
    kind = openslide.OpenSlide.detect_format(path)
    if kind in TIFFS:  # OpenSlide would read 8 bits of any others, and the first page of several
        header = read_header(path)
        require_plain(path, header)
        # OpenSlide cuts the last tiles of grey with alpha wrongly
        is_slide = header.bits == 8 and header.channels != 2
        return Slide(path, header.has_alpha) if is_slide else File(path)
    return Slide(path) if kind else File(path)
