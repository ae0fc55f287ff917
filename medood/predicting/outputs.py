"""The files of a segmented image, written row by row; they get their names when complete."""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from tifffile import TiffWriter

from config import Config
from medood.data.files import whole
from medood.data.images import write_png
from medood.data.labels import palette
from medood.predicting.nuclei import Nucleus

ENDINGS = ("_mask.tif", "_overlay.png", "_nuclei.csv", "_nuclei.geojson")
COLUMNS = ["nucleus", "class", "x", "y", "area_px", "area_um2", "probability"]
OVERLAY = 4096  # pixels, the longest side of an overlay
TILE = 256  # pixels, of the mask's file


class Outputs:
    """The files of one image: takes its rows in order, and each nucleus after its rows."""

    def __init__(
        self, files: ExitStack, stem: Path, cfg: Config, shape: tuple[int, int], scale: np.ndarray
    ) -> None:
        """files: closes the files <stem>_* and, unless there was an error, gives them their names.

        cfg: classes and mpp. shape: height and width of the mask. scale: pixels of the image per
        pixel of the mask, x and y.
        """
        paths = [files.enter_context(whole(Path(f"{stem}{ending}"))) for ending in ENDINGS]
        self.mask_path, self.overlay_path, *texts = paths
        # the rows of the mask; `files` closes it
        self.rows = files.enter_context(TemporaryFile(dir=stem.parent))  # noqa: SIM115
        table, self.shapes = (
            files.enter_context(path.open("w", newline="", encoding="utf-8")) for path in texts
        )
        self.table = csv.writer(table, lineterminator="\n")
        self.table.writerow(COLUMNS)
        self.shapes.write('{"type": "FeatureCollection", "features": [')
        self.names, self.colours, self.mpp = cfg.class_names, palette(cfg.classes), cfg.mpp
        self.shape, self.scale = shape, scale
        self.counts = Counter()  # nuclei of each class
        self.top, self.step = 0, math.ceil(max(shape) / OVERLAY)
        self.overlay = np.zeros((*(math.ceil(side / self.step) for side in shape), 3), np.uint8)

    def add_rows(self, image: np.ndarray, classes: np.ndarray) -> None:
        """Take the next rows: RGB uint8 (n, width, 3), and their classes, uint8 (n, width)."""
        self.rows.write(classes.tobytes())
        thin = slice(-self.top % self.step, None, self.step)
        image, mask = image[thin, :: self.step], classes[thin, :: self.step]
        painted = image - image // 4 + self.colours[mask] // 4  # pale, so that outlines stand out
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
        ring = (nucleus.outline * self.scale).round(2).tolist()
        shape = {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {
                "objectType": "detection",
                "classification": {"name": name, "color": colour.tolist()},
                "measurements": {"Area um^2": um2, "Probability": probability},
            },
        }
        self.shapes.write(f"{comma}\n{json.dumps(shape)}")

    def finish(self) -> None:
        """Write what is known only at the end."""
        self.shapes.write("\n]}\n")
        write_png(self.overlay_path, self.overlay)
        with TiffWriter(self.mask_path, bigtiff=math.prod(self.shape) > 2**31) as tiff:
            tiff.write(
                self._mask_tiles(),
                shape=self.shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                compression="zlib",
                maxworkers=1,  # several would keep a quarter of a GB of tiles in memory
                photometric="minisblack",
                resolution=(1e4 / self.mpp, 1e4 / self.mpp),
                resolutionunit="CENTIMETER",
            )

    def _mask_tiles(self) -> Iterator[np.ndarray]:
        """Yield the tiles of the mask, row by row; tifffile pads the last of a row or column."""
        height, width = self.shape
        self.rows.seek(0)
        for top in range(0, height, TILE):
            count = min(TILE, height - top)
            band = np.fromfile(self.rows, np.uint8, count * width).reshape(count, width)
            for left in range(0, width, TILE):
                yield band[:, left : left + TILE]
