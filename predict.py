"""Find the nuclei in new images, of any size, whole slides included.

Reads   images or folders of them, and a checkpoint of train.py or train_ood.py
Writes  <out>/<image>_mask.tif         uint8, the class of each pixel
        <out>/<image>_overlay.png      the image under the colours of the classes, of 4096 pixels
        <out>/<image>_nuclei.csv       a row for each nucleus
        <out>/<image>_nuclei.geojson   their outlines, to be dragged onto the image in QuPath
        <out>/<image>.json             what they were made with, and how many nuclei there are

An image is brought to the microns per pixel that the network was trained at; its mask has that
size. Places in the CSV and the GeoJSON are pixels of the image as it is.

`python predict.py slide.svs --checkpoint workspace/models/79_unet_vgg11_bn_ood --out nuclei`
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from config import Config, UserError
from medood.data.files import read_json, write_json
from medood.data.records import fingerprint
from medood.data.workspace import require_network
from medood.processes import on_main
from medood.runs.command_line import run

if TYPE_CHECKING:
    from medood.models.inference import Predictor

MADE_WITH = ("image_mpp", "mpp", "tile", "watershed", "min_area", "classes", "precision")


@dataclass(frozen=True)
class PredictConfig(Config):
    """The settings, and what predict.py alone takes."""

    image: Positional[tuple[Path, ...]] = ()
    """Images, or folders of them: PNG, JPEG, TIFF and the slides that OpenSlide reads."""
    checkpoint: Path | None = None
    """Folder of a trained network; or a file of weights, with architecture and encoder set."""
    out: Path = Path("nuclei")
    """Folder for the results."""
    image_mpp: float | None = None
    """Microns per pixel of the images; None takes what a slide says, else the network's own."""
    tile: int = 512
    """Side in pixels of what the network sees at once, a multiple of 32."""
    watershed: bool = True
    """Part nuclei that touch; else they count as one."""
    min_area: float = 4.0
    """Square microns below which a speck is no nucleus; the mask keeps it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {
            "tile": (self.tile % 32 == 0 and self.tile >= 128, "a multiple of 32, 128 or more"),
            "image_mpp": (
                self.image_mpp is None or 0.05 <= self.image_mpp <= 10,
                "0.05 to 10, in microns: 40x magnification is about 0.25, 20x about 0.5",
            ),
            "min_area": (self.min_area >= 0, "0 or more"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise UserError(f"{name} = {getattr(self, name)!r} must be {rule}")


def find_images(named: tuple[Path, ...]) -> list[Path]:
    """Return the images named, and those in the folders named, in order."""
    from medood.predicting.slides import ENDINGS

    if not named:
        raise UserError("no image: name images or folders, `python predict.py IMAGE ...`")
    found = []
    for path in named:
        inside = sorted(p for p in path.glob("*") if p.suffix.lower() in ENDINGS)
        inside = [p for p in inside if not p.name.startswith(".")]
        if path.is_dir() and not inside:
            raise UserError(f"no image ({', '.join(ENDINGS)}) in {path}: put some there")
        found += inside if path.is_dir() else [path]
    twice = [stem for stem, count in Counter(path.stem for path in found).items() if count > 1]
    if twice:
        raise UserError(f"two images are called {twice[0]}: rename one, or give each its own out")
    return found


def segment(cfg: PredictConfig, predictor: Predictor, path: Path, stem: Path) -> Counter:
    """Write the results of one image as <stem>_* and return how many nuclei of each class it has.

    cfg: with classes and mpp of the network.
    """
    from medood.predicting.nuclei import APART, NucleusFinder
    from medood.predicting.outputs import open_outputs
    from medood.predicting.slides import open_image
    from medood.predicting.tiles import strips

    source = open_image(path, cfg.max_pixels)
    image_mpp = cfg.image_mpp or source.mpp or cfg.mpp
    height, width = (
        max(1, round(side * image_mpp / cfg.mpp)) for side in (source.height, source.width)
    )
    scale = source.width / width, source.height / height
    tile = max(128, min(cfg.tile, 32 * math.ceil(max(height, width) / 32)))
    apart = APART / cfg.mpp if cfg.watershed else None
    finder = NucleusFinder(width, apart, cfg.min_area / cfg.mpp**2)
    with open_outputs(stem, cfg.classes, (height, width), scale, cfg.mpp) as outputs:
        top = 0
        for rows, classes, certainty in strips(predictor, source, height, width, tile, path.name):
            outputs.add_rows(rows, classes)
            top += len(rows)
            for nucleus in finder.add(classes, certainty, last=top == height):
                outputs.add_nucleus(nucleus)
    counts = outputs.counts
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"
    known = "" if cfg.image_mpp or source.mpp else " (assumed: set image_mpp if it has another)"
    print(
        f"{path.name}: {counts.total()} nuclei ({listed}) in {source.width} x {source.height}"
        f" pixels of {image_mpp:g} microns{known}"
    )
    return counts


@on_main
def predict_images(cfg: PredictConfig) -> None:
    """Segment every image; those done with the same network and settings before are kept."""
    images = find_images(cfg.image)
    if gone := [path for path in images if not path.exists()]:
        raise UserError(f"there is no image {gone[0]} ({len(gone)} such in all): correct its name")
    if any(path.resolve().parent == cfg.out.resolve() for path in images):
        raise UserError(f"out = {cfg.out} is where the images are: give the results another folder")
    if cfg.checkpoint is None:
        raise UserError("no network: name its folder with --checkpoint")
    if not cfg.checkpoint.exists():
        raise UserError(f"checkpoint: {cfg.checkpoint} is not there: correct its name")
    require_network(cfg.checkpoint)
    # here, so that --help answers without torch
    from medood.models.checkpoints import load_model, with_settings_of
    from medood.models.inference import Predictor
    from medood.models.network import pick_device
    from medood.predicting.outputs import ENDINGS

    cfg = with_settings_of(cfg, cfg.checkpoint)
    predictor = Predictor(cfg, load_model(cfg.checkpoint, cfg), pick_device(cfg))
    weights = cfg.checkpoint
    if weights.is_dir():
        weights = weights / "model.safetensors"
    record = {name: getattr(cfg, name) for name in MADE_WITH} | {"network": fingerprint([weights])}
    failed = []
    for path in images:
        stem = cfg.out / path.stem
        try:
            # the pixels of a MIRAX slide lie in a folder beside it
            files = [path, *(p for p in path.with_suffix("").glob("*") if p.is_file())]
            made_from = json.loads(json.dumps({**record, "image": fingerprint(files)}))
            found = read_json(Path(f"{stem}.json")) or {}
            before, of_image = found.get("made_from"), found.get("image", str(path.resolve()))
            if of_image != str(path.resolve()) and Path(of_image).exists():
                raise UserError(
                    f"{cfg.out} holds the results of another image of this name, {of_image}: give"
                    " each its own out"
                )
            if before == made_from and all(Path(f"{stem}{end}").exists() for end in ENDINGS):
                print(f"{path.name}: kept, done with the same network and settings")
                continue
            Path(f"{stem}.json").unlink(missing_ok=True)  # it would vouch for files half replaced
            counts = segment(cfg, predictor, path, stem)
            content = {"image": str(path.resolve()), "nuclei": counts, "made_from": made_from}
            write_json(Path(f"{stem}.json"), content)
        except (UserError, PermissionError) as error:  # one bad image does not cost the others
            print(f"{path.name}: {error}")
            failed.append(path.name)
    print(f"{len(images) - len(failed)} of {len(images)} images: {cfg.out}")
    if failed:
        raise UserError(f"{len(failed)} images could not be segmented: {', '.join(failed[:5])}")


if __name__ == "__main__":
    # several may write to one folder: each image has files of its own
    run(predict_images, PredictConfig(), lambda cfg: cfg.out, parts=lambda cfg: [])
