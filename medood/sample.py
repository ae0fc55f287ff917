"""A small synthetic tissue data set in Lizard's layout, to watch the pipeline at work without data.

It is drawn, not photographed: six kinds of nuclei that differ in size, shape and stain, some
touching, and dark debris without a label, which a network takes for nuclei. Scores on it say that
the pipeline runs, and nothing about tissue.
"""

import dataclasses
import io
from pathlib import Path

import numpy as np
from scipy.io import savemat
from scipy.ndimage import gaussian_filter
from skimage.draw import disk, ellipse
from skimage.measure import regionprops

from config import LIZARD, Config
from medood.data.files import csv_text, digest, write_text
from medood.data.images import write_png
from medood.data.records import fresh_folder, record_of
from medood.data.workspace import SAMPLE_MARK
from medood.processes import on_main
from medood.runs.locks import locked

REGIONS = 12
# what the sample runs with, unless the command line says otherwise
SETTINGS = {
    **{"encoder": "tu-resnet10t", "encoder_weights": "none", "patch_size": 64},
    **{"epochs": 6, "lr": 2e-3},
    **{"classes": LIZARD, "images": None, "masks": None, "mask_values": ()},
}
NOTE = """SAMPLE: synthetic tissue drawn by medood/sample.py, not Lizard.

Scores made from this folder show that the pipeline runs. They say nothing about real tissue.
"""


@dataclasses.dataclass(frozen=True)
class Kind:
    """How nuclei of a class are drawn: half axes in pixels, stain as RGB, lobes per nucleus."""

    long: float
    short: float
    stain: tuple[int, int, int]
    lobes: int
    share: float  # of all nuclei


KINDS = {
    1: Kind(3.5, 3.0, (70, 40, 120), 3, 0.06),  # neutrophil: lobed, small, dark
    2: Kind(10.0, 7.0, (130, 85, 165), 1, 0.34),  # epithelial: large, pale
    3: Kind(5.0, 4.8, (55, 40, 110), 1, 0.26),  # lymphocyte: round, dark
    4: Kind(7.0, 5.0, (100, 45, 130), 1, 0.08),  # plasma: oval, purple
    5: Kind(4.0, 3.5, (165, 60, 90), 2, 0.06),  # eosinophil: two lobes, red
    6: Kind(13.0, 3.2, (90, 75, 150), 1, 0.20),  # connective: a spindle
}
DEBRIS_STAIN = (50, 38, 88)  # near a lymphocyte: some of it fools a baseline


def draw_region(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Return image (H, W, 3) RGB uint8, inst_map (H, W) int32, ids (N,) and classes (N,).

    The ids have gaps and come in no order, as in Lizard.
    """
    shape = (height, width)
    stroma = gaussian_filter(rng.standard_normal(shape), 9)
    fibres = gaussian_filter(rng.standard_normal(shape), (1.5, 6))
    image = np.array([228.0, 178.0, 205.0]) + 90 * stroma[..., None] + 25 * fibres[..., None]
    pale = gaussian_filter(rng.standard_normal(shape), 22) > 0.022
    image[pale] = 0.3 * image[pale] + 0.7 * 240

    inst_map = np.zeros(shape, np.int32)
    count = height * width // 600  # about as dense as Lizard
    kinds = rng.choice(list(KINDS), size=count, p=[kind.share for kind in KINDS.values()])
    ids = rng.permutation(np.arange(1, 2 * count))[:count].astype(np.int32)
    drawn = []
    centre = np.zeros(2)
    for number, value in zip(ids, kinds, strict=True):
        kind = KINDS[value]
        # every third nucleus is next to the last one: Lizard's nuclei touch
        near = rng.random() < 0.35 and drawn
        step = rng.normal(0, 1.2 * kind.long, 2)
        centre = centre + step if near else rng.uniform(0, shape)
        pixels = _nucleus(rng, kind, centre, shape)
        free = (inst_map[pixels] == 0) & ~pale[pixels]
        rows, columns = pixels[0][free], pixels[1][free]
        if len(rows) < 12:
            continue
        inst_map[rows, columns] = number
        _stain(rng, image, (rows, columns), kind.stain)
        drawn.append(number)
    for _ in range(count // 5):
        pixels = disk(rng.uniform(0, shape), rng.uniform(2.5, 5.5), shape=shape)
        free = inst_map[pixels] == 0
        _stain(rng, image, (pixels[0][free], pixels[1][free]), DEBRIS_STAIN)
    image = gaussian_filter(image, (0.7, 0.7, 0)) + rng.normal(0, 4, (*shape, 3))
    listed = np.isin(ids, inst_map)
    return image.clip(0, 255).astype(np.uint8), inst_map, ids[listed], kinds[listed]


def _nucleus(
    rng: np.random.Generator, kind: Kind, centre: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels (rows, columns) of one nucleus."""
    lobes = []
    size, angle = rng.uniform(0.8, 1.2), rng.uniform(0, np.pi)
    for lobe in range(kind.lobes):
        turn = angle + 2 * np.pi * lobe / kind.lobes
        offset = 0.8 * kind.long * (kind.lobes > 1) * np.array([np.sin(turn), np.cos(turn)])
        axes = kind.long * size, kind.short * size
        lobes.append(ellipse(*(centre + offset), *axes, shape, rotation=angle))
    rows, columns = (np.concatenate(pixels) for pixels in zip(*lobes, strict=True))
    return rows, columns


def _stain(rng: np.random.Generator, image: np.ndarray, pixels: tuple, stain: tuple) -> None:
    """Colour pixels (rows, columns) of `image` in a shade of `stain`, speckled as chromatin is."""
    shade = np.array(stain) * rng.uniform(0.85, 1.15)
    image[pixels] = shade + rng.normal(0, 12, (len(pixels[0]), 1))


def mat_bytes(inst_map: np.ndarray, ids: np.ndarray, classes: np.ndarray) -> bytes:
    """Return a .mat file with Lizard's keys; the same bytes at every call."""
    nuclei = {nucleus.label: nucleus for nucleus in regionprops(inst_map)}
    boxes = np.array([nuclei[number].bbox for number in ids], np.int32)  # top, left, bottom, right
    content = {
        "inst_map": inst_map,
        "id": ids[:, None],
        "class": classes[:, None],
        "bbox": boxes[:, [0, 2, 1, 3]],
        "centroid": np.array([nuclei[number].centroid[::-1] for number in ids]),  # x, y
    }
    file = io.BytesIO()
    savemat(file, content, do_compression=True)
    file.seek(0)
    file.write(b"MATLAB 5.0 MAT-file, drawn by Med-OoD".ljust(116))  # scipy puts the date there
    return file.getvalue()


@on_main
def draw_sample(cfg: Config) -> None:
    """Write the sample to the workspace of cfg, as Lizard's three archives unpack."""
    print(NOTE.splitlines()[0])
    folders = [cfg.workspace / f for f in ("Lizard_Images1", "Lizard_Images2", "Lizard_Labels")]
    write_text(cfg.workspace / SAMPLE_MARK, NOTE)  # first: no kill leaves a sample unmarked
    record = {"drawn_by": digest(Path(__file__).read_bytes())}
    drawn = map(record_of, folders)
    if all(found.is_there and not found.out_of_date(record) for found in drawn):
        print(f"{cfg.workspace}: kept, drawn before")
        return
    names = [f"sample_{number}" for number in range(1, REGIONS + 1)]
    with (
        locked(cfg.workspace, [SAMPLE_MARK]),
        fresh_folder(folders[0], record) as first,
        fresh_folder(folders[1], record) as second,
        fresh_folder(folders[2], record) as labels,
    ):
        (labels / "Labels").mkdir()
        for number, name in enumerate(names):
            rng = np.random.default_rng(number)
            height, width = rng.integers(200, 256, 2)
            image, inst_map, ids, classes = draw_region(rng, height, width)
            write_png((first, second)[number % 2] / f"{name}.png", image)
            (labels / "Labels" / f"{name}.mat").write_bytes(mat_bytes(inst_map, ids, classes))
        rows = [(name, f"slide_{number % 6}", number % 3 + 1) for number, name in enumerate(names)]
        write_text(labels / "info.csv", csv_text(["FileName", "Source", "Split"], rows))
    print(f"{cfg.workspace}: {REGIONS} regions drawn")
