"""Find the nuclei in new images, of any size, whole slides included.

Reads   images or folders of them, and a checkpoint of train.py or train_ood.py
Writes  <out>/<image>_mask.tif         uint8, the class of each pixel
        <out>/<image>_overlay.png      the image with each nucleus outlined in the colour of its
                                       class, at most 4096 pixels wide and high
        <out>/<image>_nuclei.csv       a row for each nucleus
        <out>/<image>_nuclei.geojson   their outlines: drag the file onto the image in QuPath
        <out>/<image>.json             what made the files, and how many nuclei there are

An image is resized to the microns per pixel that the network was trained at; its mask has that
size. Positions in the CSV and the GeoJSON are pixels of the original image.

`python predict.py slide.svs --checkpoint workspace/models/79_unet_vgg11_bn_ood --out nuclei`
"""

from __future__ import annotations

import errno
import json
import math
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field
from tyro.conf import Positional

from config import Data, Machine, Microns, Network, UserError, settings
from medood.data.files import fingerprint, read_json
from medood.data.names import by_name, stem_of
from medood.data.records import is_kept, write_own_record
from medood.data.workspace import list_images
from medood.predicting.nuclei import MIN_AREA
from medood.predicting.slides import ENDINGS, open_image
from medood.processes import on_main
from medood.runs.command_line import run

if TYPE_CHECKING:
    from medood.models.inference import Predictor

MADE_WITH = ("image_mpp", "mpp", "tile", "watershed", "min_area", "classes", "precision", "mirrors")
OF_ALL = (errno.ENOSPC, errno.EROFS, errno.EPIPE)  # errors that every image would meet


@settings
class PredictConfig(Machine, Network, Data):
    """The settings of predict.py only."""

    image: Positional[tuple[Path, ...]] = ()
    """Images, or folders of them: PNG, JPEG, TIFF and the slides that OpenSlide reads."""
    checkpoint: Path | None = None
    """Folder of a trained network; or a file of weights, with architecture and encoder set."""
    out: Path = Path("nuclei")
    """Folder for the results."""
    image_mpp: Microns | None = None
    """Microns per pixel of the images; None: the slide's own, else the network's."""
    tile: Annotated[int, Field(ge=128, multiple_of=32)] = 512
    """Side in pixels of the tiles that go through the network, a multiple of 32."""
    watershed: bool = True
    """Separate touching nuclei; otherwise they count as one."""
    min_area: Annotated[float, Field(ge=0)] = MIN_AREA
    """Square microns; smaller nuclei are in the mask, but not in the lists."""


def find_images(named: tuple[Path, ...]) -> list[Path]:
    """Return the images named, and those in the folders named, in order.

    Raises UserError if there is none, and for two with the same name.
    """
    if not named:
        raise UserError("no image: name images or folders, `python predict.py IMAGE ...`")
    found = []
    for path in named:
        if not path.exists():
            raise UserError(f"there is no image {path}: correct its name")
        found += list_images(path, ENDINGS) if path.is_dir() else [path]
    by_name(found, stem_of)  # no two with the same name: their results would have it too
    return found


def segment(cfg: PredictConfig, predictor: Predictor, path: Path, stem: Path) -> Counter:
    """Write the results of one image as <stem>_* and return how many nuclei of each class it has.

    cfg: with classes and mpp of the network.
    """
    from medood.predicting.nuclei import MIN_DISTANCE, NucleusFinder
    from medood.predicting.outputs import Outputs
    from medood.predicting.tiles import strips

    source = open_image(path)
    given = cfg.image_mpp or source.mpp or cfg.mpp
    down, across = given if isinstance(given, tuple) else (given, given)
    sides = (source.height, down), (source.width, across)
    height, width = shape = tuple(max(1, round(side * mpp / cfg.mpp)) for side, mpp in sides)
    scale = np.array([source.width / width, source.height / height])
    tile = max(128, min(cfg.tile, 32 * math.ceil(max(height, width) / 32)))
    tile = tile if predictor.takes_any_side else cfg.tile
    min_distance = MIN_DISTANCE / cfg.mpp if cfg.watershed else None
    finder = NucleusFinder(shape, min_distance, cfg.min_area / cfg.mpp**2)
    with ExitStack() as files:
        outputs = Outputs(files, stem, cfg, shape, scale)
        for rows, classes, certainty in strips(predictor, source, height, width, tile, path.name):
            outputs.add_rows(rows, classes)
            for nucleus in finder.add(classes, certainty):
                outputs.add_nucleus(nucleus)
        outputs.finish()
    counts = outputs.counts
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"
    microns = f"{across:g}" if across == down else f"{across:g} x {down:g}"
    known = "" if cfg.image_mpp or source.mpp else " (assumed: otherwise set image_mpp)"
    print(
        f"{path.name}: {counts.total()} nuclei ({listed}) in {source.width} x {source.height}"
        f" pixels of {microns} microns{known}"
    )
    return counts


def predict_image(cfg: PredictConfig, predictor: Predictor, path: Path, made_with: dict) -> None:
    """Write the results of one image and their record, or keep those that are already there.

    cfg: with classes and mpp of the network. made_with: what decides them apart from the image.
    """
    from medood.predicting import outputs

    stem, image = cfg.out / path.stem, str(path.resolve())
    record = Path(f"{stem}.json")
    # the pixels of a MIRAX slide are in a folder next to it
    files = [path, *(p for p in path.with_suffix("").glob("*") if p.is_file())]
    # with lists for tuples, as in a record
    made_from = json.loads(json.dumps(made_with | {"image": fingerprint(files)}))
    other = (read_json(record) or {}).get("image", image)
    if other != image and Path(other).exists():
        raise UserError(
            f"{cfg.out} contains the results of another image of this name, {other}: use another"
            " --out"
        )
    is_whole = all(Path(f"{stem}{ending}").exists() for ending in outputs.ENDINGS)
    if is_whole and is_kept(record, made_from):
        return
    record.unlink(missing_ok=True)  # it must not describe files of which half are replaced
    nuclei = segment(cfg, predictor, path, stem)
    write_own_record(record, {"image": image, "nuclei": nuclei}, made_from)


@on_main
def predict_images(cfg: PredictConfig) -> None:
    """Segment every image; results of the same network and settings are kept."""
    images = find_images(cfg.image)
    if any(path.resolve().parent == cfg.out.resolve() for path in images):
        raise UserError(f"out = {cfg.out} is the folder of the images: name another folder")
    if cfg.checkpoint is None:
        raise UserError("no network: name its folder with --checkpoint")
    # here, so that --help does not wait for torch
    from medood.models.checkpoints import open_model, with_settings_of
    from medood.models.inference import Predictor
    from medood.models.network import side_of

    cfg = with_settings_of(cfg, cfg.checkpoint)
    model = open_model(cfg.checkpoint, cfg)
    # a network of a fixed input size takes patches of the size it was trained on, if any
    if (tile := side_of(model, cfg, cfg.tile)) != cfg.tile:
        print(f"tile = {tile}: the network takes no images of {cfg.tile} x {cfg.tile} pixels")
        cfg = replace(cfg, tile=tile)
    predictor = Predictor(cfg, model)
    weights = cfg.checkpoint / "model.safetensors", cfg.checkpoint  # of a folder, or a file itself
    made_with = {
        "settings": {name: getattr(cfg, name) for name in MADE_WITH},
        "network": fingerprint(path for path in weights if path.is_file()),
    }
    failed = []
    for path in images:
        try:
            predict_image(cfg, predictor, path, made_with)
        except (UserError, OSError) as error:  # one bad image does not stop the others
            if isinstance(error, OSError) and error.errno in OF_ALL:
                raise
            print(f"{path.name}: {error}")
            failed.append(path.name)
    print(f"{len(images) - len(failed)} of {len(images)} images: {cfg.out}")
    if failed:
        raise UserError(f"not segmented: {', '.join(failed[:5])} ({len(failed)} in all)")


if __name__ == "__main__":
    # several may write to one folder: each image has files of its own
    run(predict_images, PredictConfig(), lambda cfg: cfg.out, parts=lambda cfg: [])
