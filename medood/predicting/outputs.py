"""The files of a segmented image, written row by row, and under their names only when complete."""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, TextIO

import numpy as np
from tifffile import TiffWriter

from medood.data.files import whole
from medood.data.images import write_png
from medood.data.labels import palette
from medood.predicting.nuclei import Nucleus

ENDINGS = ("_mask.tif", "_overlay.png", "_nuclei.csv", "_nuclei.geojson")
COLUMNS = ["nucleus", "class", "x", "y", "area_px", "area_um2", "probability"]
OVERLAY = 4096  # pixels, the longest side of an overlay
TILE = 256  # pixels, of the mask's file


class Outputs:
    """Takes the rows and nuclei of one image, in order: a nucleus after its rows."""

    def __init__(
        self,
        files: tuple[BinaryIO, TextIO, TextIO],
        classes: tuple[tuple[str, str], ...],
        shape: tuple[int, int],
        scale: tuple[float, float],
        mpp: float,
    ) -> None:
        """files: for the raw mask, the table and the GeoJSON; the rest as in `open_outputs`."""
        self.raw, self.table_file, self.shapes = files
        self.table = csv.writer(self.table_file, lineterminator="\n")
        self.table.writerow(COLUMNS)
        self.shapes.write('{"type": "FeatureCollection", "features": [')
        self.names = ["background", *(name for name, _ in classes)]
        self.colours = palette(classes)
        self.scale, self.mpp = np.array(scale), mpp
        self.counts = Counter()  # nuclei of each class
        self.top, self.step = 0, math.ceil(max(shape) / OVERLAY)
        self.overlay = np.zeros((*(math.ceil(side / self.step) for side in shape), 3), np.uint8)

    def add_rows(self, image: np.ndarray, classes: np.ndarray) -> None:
        """Take the next rows: RGB uint8 (n, width, 3), and their classes, uint8 (n, width)."""
        self.raw.write(classes.tobytes())
        thin = slice(-self.top % self.step, None, self.step)
        image, mask = image[thin, :: self.step], classes[thin, :: self.step]
        painted = image - image // 4 + self.colours[mask] // 4
        first = math.ceil(self.top / self.step)
        self.overlay[first : first + len(mask)] = np.where((mask > 0)[..., None], painted, image)
        self.top += len(classes)

    def add_nucleus(self, nucleus: Nucleus) -> None:
        """Take a nucleus, in pixels of the mask; it is written in pixels of the image."""
        name, colour = self.names[nucleus.value], self.colours[nucleus.value]
        columns, rows = nucleus.border.T // self.step
        self.overlay[rows, columns] = colour
        comma = "," if self.counts else ""
        self.counts[name] += 1
        x, y = (np.array([nucleus.x, nucleus.y]) * self.scale).round(1).tolist()
        pixels = round(nucleus.area * float(self.scale.prod()), 1)
        um2, probability = round(nucleus.area * self.mpp**2, 2), round(nucleus.probability, 4)
        self.table.writerow([self.counts.total(), name, x, y, pixels, um2, probability])
        # as QuPath (0.4 and later) reads and writes detections
        shape = {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [(nucleus.outline * self.scale).round(2).tolist()],
            },
            "properties": {
                "objectType": "detection",
                "classification": {"name": name, "color": colour.tolist()},
                "measurements": {"Area um^2": um2, "Probability": probability},
            },
        }
        self.shapes.write(f"{comma}\n{json.dumps(shape)}")


@contextmanager
def open_outputs(
    stem: Path,
    classes: tuple[tuple[str, str], ...],
    shape: tuple[int, int],
    scale: tuple[float, float],
    mpp: float,
) -> Iterator[Outputs]:
    """Give the files <stem>_*; they take their names at the end, and none stays after an error.

    shape: height and width of the mask. scale: pixels of the image per pixel of the mask, x and y.
    mpp: microns per pixel of the mask.
    """
    with ExitStack() as stack:
        mask, overlay, *texts = (stack.enter_context(whole(Path(f"{stem}{e}"))) for e in ENDINGS)
        raw = stack.enter_context(TemporaryFile(dir=stem.parent))
        table, shapes = (
            stack.enter_context(path.open("w", newline="", encoding="utf-8")) for path in texts
        )
        outputs = Outputs((raw, table, shapes), classes, shape, scale, mpp)
        yield outputs
        shapes.write("\n]}\n")
        write_png(overlay, outputs.overlay)
        _write_mask(mask, raw, shape, mpp)


def _write_mask(path: Path, raw: BinaryIO, shape: tuple[int, int], mpp: float) -> None:
    """Write a mask, whose bytes are in the file `raw`, as a tiled TIFF."""
    with TiffWriter(path, bigtiff=math.prod(shape) > 2**31) as tiff:
        tiff.write(
            _tiles(raw, *shape),
            shape=shape,
            dtype=np.uint8,
            tile=(TILE, TILE),
            compression="zlib",
            maxworkers=1,  # several would hold a quarter of a GB of tiles at a time
            photometric="minisblack",
            resolution=(1e4 / mpp, 1e4 / mpp),
            resolutionunit="CENTIMETER",
        )


def _tiles(raw: BinaryIO, height: int, width: int) -> Iterator[np.ndarray]:
    """Yield the tiles of a mask, uint8, row by row; those at its right and lower edge are cut."""
    raw.seek(0)
    for top in range(0, height, TILE):
        rows = min(TILE, height - top)
        band = np.fromfile(raw, np.uint8, rows * width).reshape(rows, width)
        for left in range(0, width, TILE):
            yield band[:, left : left + TILE]
