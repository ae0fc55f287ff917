"""From class masks to nuclei: touching ones parted, each with its class, place and outline."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import find_objects
from skimage.feature import peak_local_max
from skimage.measure import find_contours
from skimage.segmentation import watershed

APART = 1.0  # microns at the least between the centres of touching nuclei: bench/nuclei.py
LARGEST = 1024  # pixels: a sheet of touching nuclei that is wider, or that waits longer, is cut
SMOOTHER = 0.4  # pixels by which an outline with fewer corners may differ


@dataclass(frozen=True)
class Nucleus:
    """One nucleus; places in pixels of the mask, 0 at the upper left corner of the first pixel."""

    value: int  # of its class: the one of most of its pixels
    area: int  # pixels
    x: float
    y: float
    probability: float  # mean over its pixels of what the network gave to the class it chose
    outline: np.ndarray  # (K, 2) x and y, the first point again at the end


def part(component: np.ndarray, apart: float) -> np.ndarray:
    """Return touching nuclei, bool (H, W), as integers (H, W): 0 outside, 1.. a nucleus.

    A watershed on the distance to the border, from its peaks at least `apart` pixels apart.
    """
    framed = np.pad(component, 1).astype(np.uint8)  # what lies outside is no nucleus
    distance = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # smoothed: a ragged border would have a peak for each of its teeth
    smooth = cv2.GaussianBlur(distance, (0, 0), 1) * framed
    peaks = peak_local_max(smooth, min_distance=max(1, round(apart)), exclude_border=False)
    if len(peaks) < 2:
        return _pieces(component)
    markers = np.zeros(framed.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    # pixels that touch at a corner belong together, as they do in a component
    return watershed(-smooth, markers, connectivity=2, mask=framed > 0)[1:-1, 1:-1]


def _pieces(mask: np.ndarray) -> np.ndarray:
    """Return the connected pieces of a mask, bool (H, W), as integers (H, W)."""
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1]


def outline(nucleus: np.ndarray) -> np.ndarray:
    """Return the outer border of a nucleus, bool (H, W), as x and y, float (K, 2), closed."""
    borders = find_contours(np.pad(nucleus, 1).astype(float), 0.5, fully_connected="high")
    border = max(borders, key=len)[:, None, ::-1].astype(np.float32)
    corners = cv2.approxPolyDP(border[:-1], SMOOTHER, closed=True)[:, 0]
    if len(corners) < 3:
        corners = border[:-1, 0]
    # less the frame, from a pixel's centre to its corner
    return np.concatenate([corners, corners[:1]]) - 0.5


class NucleusFinder:
    """Finds the nuclei of an image that is given some rows at a time.

    Nuclei that go on in the next rows wait for them, so the result is that of the whole image, but
    for sheets of touching nuclei that are larger than LARGEST.
    """

    def __init__(self, width: int, apart: float | None, smallest: float) -> None:
        """apart: pixels between centres, None leaves touching nuclei whole. smallest: pixels."""
        self.apart, self.smallest = apart, smallest
        self.top = 0  # row of the image at which the waiting rows begin
        self.classes = np.zeros((0, width), np.uint8)
        self.certainty = np.zeros((0, width), np.uint8)

    def add(self, classes: np.ndarray, certainty: np.ndarray, last: bool) -> Iterator[Nucleus]:
        """Take the next rows and yield the nuclei that are complete.

        classes: the class of each pixel, uint8 (n, width). certainty: its probability, uint8 of
        255ths. last: no more rows follow.
        """
        classes = np.concatenate([self.classes, classes])
        certainty = np.concatenate([self.certainty, certainty])
        components = _pieces(classes > 0)
        height, waiting = len(classes), []
        for number, box in enumerate(find_objects(components), start=1):
            if not last and box[0].stop == height and height - box[0].start < LARGEST:
                waiting.append((number, box))
                continue
            for left in range(box[1].start, box[1].stop, LARGEST):
                piece = box[0], slice(left, min(left + LARGEST, box[1].stop))
                mask = components[piece] == number
                yield from self._nuclei(mask, classes[piece], certainty[piece], piece)
        start = min((box[0].start for _, box in waiting), default=height)
        left = np.zeros((height - start, classes.shape[1]), np.uint8)
        for number, box in waiting:
            rows = slice(box[0].start - start, None)
            left[rows, box[1]] |= components[box] == number
        self.classes, self.certainty = classes[start:] * left, certainty[start:]
        self.top += start

    def _nuclei(
        self, component: np.ndarray, classes: np.ndarray, certainty: np.ndarray, box: tuple
    ) -> Iterator[Nucleus]:
        labels = _pieces(component) if self.apart is None else part(component, self.apart)
        for number, inner in enumerate(find_objects(labels), start=1):
            mask = labels[inner] == number
            area = int(mask.sum())
            if area < self.smallest:
                continue
            left = box[1].start + inner[1].start
            top = self.top + box[0].start + inner[0].start
            rows, columns = np.nonzero(mask)
            yield Nucleus(
                int(np.bincount(classes[inner][mask]).argmax()),
                area,
                left + float(columns.mean()) + 0.5,
                top + float(rows.mean()) + 0.5,
                float(certainty[inner][mask].mean()) / 255,
                outline(mask) + (left, top),
            )
