"""New images, row by row: ordinary files, and whole slides that do not fit into memory."""

from abc import ABC, abstractmethod
from pathlib import Path

import cv2
import numpy as np
import openslide

from config import Config, UserError
from medood.data.images import IMAGE_ENDINGS, read_image

SLIDE_ENDINGS = (".svs", ".ndpi", ".mrxs", ".scn", ".bif")
ENDINGS = (*IMAGE_ENDINGS, *SLIDE_ENDINGS)
MPP = 0.05, 10  # microns per pixel that a scanner can have; others are a file's default
BLOCK = 4096  # pixels of a row that are read at a time


class Source(ABC):
    """An image of `height` x `width` pixels at `mpp` microns per pixel; None: unknown."""

    height: int
    width: int
    mpp: float | None

    @abstractmethod
    def rows(self, top: int, bottom: int, height: int, width: int) -> np.ndarray:
        """Return rows top..bottom of the image, resized to height x width, RGB (n, width, 3)."""


class File(Source):
    """An ordinary image, held in memory."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.image = read_image(path, max_pixels)
        self.height, self.width = self.image.shape[:2]
        self.mpp = None

    def rows(self, top: int, bottom: int, height: int, width: int) -> np.ndarray:
        if self.image.shape[:2] != (height, width):
            shrink = height < self.image.shape[0]
            way = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
            self.image = cv2.resize(self.image, (width, height), interpolation=way)
        return self.image[top:bottom]


class Slide(Source):
    """A whole slide or tiled TIFF, of which only the rows asked for are in memory.

    Where a scanner says which part it scanned, that part is the image, as in QuPath.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise UserError(f"{path} is not a whole slide ({error}): copy it again") from None
        known = self.slide.properties
        width, height = self.slide.dimensions
        self.left = int(known.get(openslide.PROPERTY_NAME_BOUNDS_X, 0))
        self.top = int(known.get(openslide.PROPERTY_NAME_BOUNDS_Y, 0))
        self.width = int(known.get(openslide.PROPERTY_NAME_BOUNDS_WIDTH, width))
        self.height = int(known.get(openslide.PROPERTY_NAME_BOUNDS_HEIGHT, height))
        mpp = float(known.get(openslide.PROPERTY_NAME_MPP_X, 0))
        self.path, self.mpp = path, mpp if MPP[0] <= mpp <= MPP[1] else None

    def rows(self, top: int, bottom: int, height: int, width: int) -> np.ndarray:
        scale = self.height / height, self.width / width  # pixels of the slide per pixel asked for
        # one that is finer than asked for, so that nothing is made up
        level = self.slide.get_best_level_for_downsample(max(1.0, min(scale)))
        shrink = self.slide.level_downsamples[level]
        out = np.empty((bottom - top, width, 3), np.uint8)
        for left in range(0, width, BLOCK):
            right = min(left + BLOCK, width)
            x0, x1 = (round(x * scale[1]) for x in (left, right))
            y0, y1 = (round(y * scale[0]) for y in (top, bottom))
            size = max(1, round((x1 - x0) / shrink)), max(1, round((y1 - y0) / shrink))
            try:
                region = self.slide.read_region((self.left + x0, self.top + y0), level, size)
            except openslide.OpenSlideError as error:
                raise UserError(f"{self.path} is damaged ({error}): copy it again") from None
            rgba = np.asarray(region)
            rgb = np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(255))  # not scanned: white
            if size != (right - left, bottom - top):
                way = cv2.INTER_AREA if size[0] > right - left else cv2.INTER_CUBIC
                rgb = cv2.resize(rgb, (right - left, bottom - top), interpolation=way)
            out[:, left:right] = rgb
        return out


def open_image(path: Path, max_pixels: int = Config.max_pixels) -> Source:
    """Return an image, ready to be read row by row; raise UserError where it cannot be read.

    max_pixels: of an ordinary file; a slide is never in memory as a whole.
    """
    return Slide(path) if openslide.OpenSlide.detect_format(path) else File(path, max_pixels)
