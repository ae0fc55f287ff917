"""From class masks to nuclei: touching ones separated, each with class, position and outline."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects
from skimage.feature import peak_local_max
from skimage.measure import find_contours
from skimage.segmentation import watershed

MIN_DISTANCE = 1.0  # microns between the centres of touching nuclei, see docs/new_images.md
MIN_AREA = 4.0  # square microns; anything smaller is not a nucleus
LARGEST = 1024  # pixels: a larger sheet of touching nuclei is cut
TOLERANCE = 0.4  # pixels by which an outline with fewer corners may differ

Nuclei = tuple[np.ndarray, np.ndarray]  # integers (H, W), 0 outside, 1..; the class of each number


@dataclass(frozen=True)
class Nucleus:
    """One nucleus; positions in pixels of the mask, from the upper left corner of the first one."""

    value: int  # the class of most of its pixels
    area: int  # pixels
    x: float
    y: float
    probability: float  # of the predicted class, mean over the pixels
    pixels: np.ndarray  # bool (h, w), those of it in the smallest box around it
    top: int  # row and column of that box
    left: int

    @cached_property
    def outline(self) -> np.ndarray:
        """Its closed outline, float (K, 2), x and y, the first point again at the end."""
        return outline(self.pixels) + (self.left, self.top)

    @cached_property
    def border(self) -> np.ndarray:
        """Column and row of each of its outermost pixels, int (K, 2)."""
        pixels = self.pixels.astype(np.uint8)
        contours, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        return np.concatenate(contours)[:, 0] + (self.left, self.top)


def separate(component: np.ndarray, min_distance: float) -> np.ndarray:
    """Return touching nuclei, bool (H, W), as integers (H, W): 0 outside, 1.. a nucleus.

    A watershed on the distance to the border, from its peaks at least `min_distance` pixels apart.
    """
    framed = np.pad(component, 1).astype(np.uint8)  # outside there is no nucleus
    # not OpenCV's, whose last bits differ from call to call and decide between equal peaks
    distance = distance_transform_edt(framed).astype(np.float32)
    # smoothed: a ragged border would have a peak for each of its teeth
    smooth = cv2.GaussianBlur(distance, (0, 0), 1) * framed
    peaks = peak_local_max(smooth, min_distance=max(1, round(min_distance)), exclude_border=False)
    if len(peaks) < 2:
        return _components(component)
    markers = np.zeros(framed.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    # pixels that touch at a corner belong together, as in a component
    return watershed(-smooth, markers, connectivity=2, mask=framed > 0)[1:-1, 1:-1]


def _components(mask: np.ndarray) -> np.ndarray:
    """Return the connected components of a mask, bool (H, W), as integers (H, W)."""
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1]


def outline(nucleus: np.ndarray) -> np.ndarray:
    """Return the closed line around a nucleus, bool (H, W), as x and y, float (K, 2)."""
    lines = find_contours(np.pad(nucleus, 1).astype(float), 0.5, fully_connected="high")
    line = max(lines, key=len)[:-1, None, ::-1].astype(np.float32)
    corners = cv2.approxPolyDP(line, TOLERANCE, closed=True)
    if len(corners) < 3:
        corners = line
    # minus the frame, from a pixel's centre to its corner
    return np.concatenate([corners, corners[:1]])[:, 0] - 0.5


class NucleusFinder:
    """Finds the nuclei of an image that is given some rows at a time.

    Nuclei that continue in the next rows wait for them, so the result is that of the whole image,
    except for sheets of touching nuclei that are larger than LARGEST.
    """

    def __init__(self, shape: tuple[int, int], min_distance: float | None, min_area: float) -> None:
        """shape: height and width of the image. min_distance: pixels between centres; None does
        not separate. min_area: pixels.
        """
        self.height, width = shape
        self.min_distance, self.min_area = min_distance, min_area
        self.top = 0  # row of the image at which the waiting rows begin
        self.classes = np.zeros((0, width), np.uint8)
        self.certainty = np.zeros((0, width), np.uint8)

    def add(self, classes: np.ndarray, certainty: np.ndarray) -> Iterator[Nucleus]:
        """Take the next rows and yield the nuclei that are complete.

        classes: the class of each pixel, uint8 (n, width). certainty: its probability, uint8 of
        255ths.
        """
        classes = np.concatenate([self.classes, classes])
        certainty = np.concatenate([self.certainty, certainty])
        components = _components(classes > 0)
        height, waiting = len(classes), []
        start, is_last = height, self.top + height == self.height
        for number, box in enumerate(find_objects(components), start=1):
            if not is_last and box[0].stop == height and height - box[0].start < LARGEST:
                waiting.append(number)
                start = min(start, box[0].start)
                continue
            for left in range(box[1].start, box[1].stop, LARGEST):
                piece = box[0], slice(left, min(left + LARGEST, box[1].stop))
                mask = components[piece] == number
                yield from self._nuclei(mask, classes[piece], certainty[piece], piece)
        self.classes = classes[start:] * np.isin(components[start:], waiting)
        self.certainty = certainty[start:]
        self.top += start

    def _nuclei(
        self, component: np.ndarray, classes: np.ndarray, certainty: np.ndarray, box: tuple
    ) -> Iterator[Nucleus]:
        """Yield the nuclei of a component, bool (H, W), that fills `box` of the waiting rows."""
        whole = self.min_distance is None
        labels = _components(component) if whole else separate(component, self.min_distance)
        for number, inner in enumerate(find_objects(labels), start=1):
            mask = labels[inner] == number
            rows, columns = np.nonzero(mask)
            if len(rows) < self.min_area:
                continue
            left = box[1].start + inner[1].start
            top = self.top + box[0].start + inner[0].start
            yield Nucleus(
                value=int(np.bincount(classes[inner][mask]).argmax()),
                area=len(rows),
                x=left + float(columns.mean()) + 0.5,
                y=top + float(rows.mean()) + 0.5,
                probability=float(certainty[inner][mask].mean()) / 255,
                pixels=mask,
                top=top,
                left=left,
            )


def nuclei_of(classes: np.ndarray, min_distance: float, min_area: float) -> Nuclei:
    """Return the nuclei of a whole class map, uint8 (H, W), as NucleusFinder finds them."""
    labels, values = np.zeros(classes.shape, np.int32), [0]
    finder = NucleusFinder(classes.shape, min_distance, min_area)
    for nucleus in finder.add(classes, np.zeros_like(classes)):
        height, width = nucleus.pixels.shape
        box = labels[nucleus.top : nucleus.top + height, nucleus.left : nucleus.left + width]
        box[nucleus.pixels] = len(values)
        values.append(nucleus.value)
    return labels, np.array(values)
