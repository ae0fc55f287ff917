"""The time of preparing the data, against plain loops: `python bench/prepare.py`.

The script draws regions of Lizard's size in a temporary folder, which it removes.
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import Figures, MeasureConfig, interleave, synthetic_lizard
from config import Config, settings
from generate_patches import cut, generate_patches
from generate_semantic_labels import convert, generate_semantic_labels, semantic_mask
from generate_unfiltered_oods import generate_unfiltered_oods, remove_foreground
from medood.data.images import read_image, read_mask, write_png
from medood.data.labels import read_label
from medood.data.workspace import region_images, region_labels
from medood.runs.command_line import run
from tests import oracles

N_CLASSES = 7  # of Lizard, background included


@settings
class BenchConfig(MeasureConfig):
    """The settings, and how much to measure."""

    regions: int = 238
    """How many regions the three steps prepare."""


def plain_region(image_path: Path, label_path: Path, out: Path) -> None:
    """Prepare one region as a first script would: a loop over nuclei, a loop over patches."""
    mask = oracles.semantic_mask(*read_label(label_path, N_CLASSES))
    cv2.imwrite(str(out / "mask.png"), mask)
    image = cv2.imread(str(image_path))
    mask = cv2.imread(str(out / "mask.png"), cv2.IMREAD_UNCHANGED)
    pairs = zip(oracles.tile(image, 128), oracles.tile(mask, 128), strict=True)
    for k, (image_patch, mask_patch) in enumerate(pairs):
        cv2.imwrite(str(out / f"image_{k}.png"), image_patch)
        cv2.imwrite(str(out / f"mask_{k}.png"), mask_patch)
        image_patch = cv2.imread(str(out / f"image_{k}.png"))
        mask_patch = cv2.imread(str(out / f"mask_{k}.png"), cv2.IMREAD_UNCHANGED)
        image_patch[mask_patch > 0] = 0
        cv2.imwrite(str(out / f"ood_{k}.png"), image_patch)


def our_region(cfg: Config, image_path: Path, label_path: Path, out: Path) -> None:
    """Prepare one region with the functions of the three steps, in one process."""
    for folder in ("masks", "image", "mask", "ood"):
        (out / folder).mkdir(exist_ok=True)
    convert(label_path, cfg, out / "masks")
    mask_path = out / "masks" / f"{label_path.stem}.png"
    cut(image_path, mask_path, cfg, out / "image", out / "mask")
    for path in (out / "image").iterdir():
        image, mask = read_image(path), read_mask(out / "mask" / path.name, N_CLASSES)
        write_png(out / "ood" / path.name, remove_foreground(image, mask, "zero"))


def bench(cfg: BenchConfig) -> None:
    """Print the comparison per region, then the time of the three steps on all regions."""
    figures = Figures("prepare", "preparing Lizard-sized synthetic regions")
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name) / "lizard"
        synthetic_lizard(workspace, cfg.regions, cfg.sizes)
        step_cfg = replace(cfg, workspace=workspace, patch_size=128, images=None, masks=None)
        image, label = region_images(step_cfg)[0], region_labels(step_cfg)[0]
        content = read_label(label, N_CLASSES)
        ours, plain = semantic_mask(*content), oracles.semantic_mask(*content)
        assert np.array_equal(ours, plain), "the two label maps differ"
        size = {"height": ours.shape[0], "width": ours.shape[1], "nuclei": len(content[1])}
        message = f"a region: {size['width']} x {size['height']} pixels, {size['nuclei']} nuclei"
        figures.note("region", size, message)
        times = interleave(
            cfg.rounds,
            reference=lambda: oracles.semantic_mask(*content),
            ours=lambda: semantic_mask(*content),
        )
        figures.compare("label map", 1, "region", **times)

        outs = Path(name) / "plain", Path(name) / "ours"
        for out in outs:
            out.mkdir()
        times = interleave(
            cfg.rounds,
            reference=lambda: plain_region(image, label, outs[0]),
            ours=lambda: our_region(step_cfg, image, label, outs[1]),
        )
        refuse_difference(*outs)
        figures.compare("labels, patches, OoD, one thread", 1, "region", **times)

        taken = {}
        for step in (generate_semantic_labels, generate_patches, generate_unfiltered_oods):
            started = time.perf_counter()
            step(step_cfg)
            taken[step.__name__] = time.perf_counter() - started
        times_text = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in taken.items())
        message = f"{cfg.regions} regions: {times_text}"
        figures.note("steps", {"regions": cfg.regions, **taken}, message)
    figures.write(cfg.json)


def refuse_difference(plain: Path, ours: Path) -> None:
    """Raise AssertionError if the two versions cut different patches."""
    for kind in ("image", "mask", "ood"):
        paths = sorted((ours / kind).iterdir())
        assert paths, f"no {kind} patches"
        for path in paths:
            theirs = plain / f"{kind}_{path.stem.rpartition('_')[2]}.png"
            same = [cv2.imread(str(each), cv2.IMREAD_UNCHANGED) for each in (path, theirs)]
            assert np.array_equal(*same), f"{path.name} differs"


if __name__ == "__main__":
    run(bench, BenchConfig())
