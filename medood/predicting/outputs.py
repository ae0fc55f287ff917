"""The files of a segmented image, written row by row, and under their names only when complete."""

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tifffile import TiffWriter

from medood.data.files import PARTIAL
from medood.data.images import write_png
from medood.data.labels import palette
from medood.predicting.nuclei import Nucleus

ENDINGS = ("_mask.tif", "_overlay.png", "_nuclei.csv", "_nuclei.geojson")
COLUMNS = ["nucleus", "class", "x", "y", "area_px", "area_um2", "probability"]
OVERLAY = 4096  # pixels, the longest side of an overlay
TILE = 256  # pixels, of the mask's file


class Outputs:
    """Takes the rows and nuclei of one image, in order."""

    def __init__(
        self,
        files: dict[str, Path],
        classes: tuple[tuple[str, str], ...],
        shape: tuple[int, int],
        scale: tuple[float, float],
        mpp: float,
    ) -> None:
        """files: where to write, by ENDINGS. shape: height and width of the mask. scale: pixels of
        the image per pixel of the mask, x and y. mpp: microns per pixel of the mask.
        """
        self.files, self.shape, self.scale, self.mpp = files, shape, np.array(scale), mpp
        self.names = ["background", *(name for name, _ in classes)]
        self.colours = palette(classes)
        self.counts = Counter()  # nuclei of each class
        self.overlay, self.step, self.top = [], math.ceil(max(shape) / OVERLAY), 0
        mask = files["_mask.tif"]
        self.raw = mask.with_name(mask.name.removesuffix(PARTIAL) + f".raw{PARTIAL}").open("w+b")
        self.table_file = files["_nuclei.csv"].open("w", newline="", encoding="utf-8")
        self.shapes = files["_nuclei.geojson"].open("w", encoding="utf-8")
        self.table = csv.writer(self.table_file, lineterminator="\n")
        self.table.writerow(COLUMNS)
        self.shapes.write('{"type": "FeatureCollection", "features": [')

    def add_rows(self, image: np.ndarray, classes: np.ndarray) -> None:
        """Take the next rows: RGB uint8 (n, width, 3), and their classes, uint8 (n, width)."""
        self.raw.write(classes.tobytes())
        thin = slice(-self.top % self.step, None, self.step)
        image, mask = image[thin, :: self.step], classes[thin, :: self.step]
        painted = image // 2 + self.colours[mask] // 2
        self.overlay.append(np.where((mask > 0)[..., None], painted, image))
        self.top += len(classes)

    def add_nucleus(self, nucleus: Nucleus) -> None:
        """Take a nucleus, in pixels of the mask; it is written in pixels of the image."""
        comma = "," if self.counts else ""
        name = self.names[nucleus.value]
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
                "classification": {"name": name, "color": self.colours[nucleus.value].tolist()},
                "measurements": {"Area um^2": um2, "Probability": probability},
            },
        }
        self.shapes.write(f"{comma}\n{json.dumps(shape)}")

    def finish(self) -> None:
        """Write what is only known at the end."""
        self.shapes.write("\n]}\n")
        write_png(self.files["_overlay.png"], np.concatenate(self.overlay))
        with TiffWriter(self.files["_mask.tif"], bigtiff=math.prod(self.shape) > 2**31) as tiff:
            tiff.write(
                self._mask_tiles(),
                shape=self.shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                compression="zlib",
                maxworkers=1,  # several would hold a quarter of a GB of tiles at a time
                photometric="minisblack",
                resolution=(1e4 / self.mpp, 1e4 / self.mpp),
                resolutionunit="CENTIMETER",
            )

    def _mask_tiles(self) -> Iterator[np.ndarray]:
        height, width = self.shape
        self.raw.seek(0)
        for top in range(0, height, TILE):
            rows = min(TILE, height - top)
            band = np.zeros((TILE, -(-width // TILE) * TILE), np.uint8)
            band[:rows, :width] = np.fromfile(self.raw, np.uint8, rows * width).reshape(rows, width)
            yield from np.hsplit(band, band.shape[1] // TILE)

    def close(self) -> None:
        """Close the files and remove the one that only stood in between."""
        for file in (self.raw, self.table_file, self.shapes):
            file.close()
        Path(self.raw.name).unlink(missing_ok=True)


@contextmanager
def open_outputs(
    stem: Path,
    classes: tuple[tuple[str, str], ...],
    shape: tuple[int, int],
    scale: tuple[float, float],
    mpp: float,
) -> Iterator[Outputs]:
    """Give the files <stem>_*; they take their names at the end, and none stays after an error."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = {end: stem.with_name(f".{stem.name}{end}.{os.getpid()}{PARTIAL}") for end in ENDINGS}
    outputs = Outputs(files, classes, shape, scale, mpp)
    try:
        try:
            yield outputs
            outputs.finish()
        finally:
            outputs.close()
        for end, path in files.items():
            os.replace(path, f"{stem}{end}")
    finally:
        for path in files.values():
            path.unlink(missing_ok=True)
