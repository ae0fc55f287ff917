"""Controls: the effect of the OoD idea, of extra steps, or of black holes that a network learns?

Writes  reports/studies/controls_<model>.csv, .json, .md, .png

Every arm but the plain baseline takes as many optimiser steps as Med-OoD: it trains on the ID
patches of the fold and on as many more patches as Med-OoD adds. In the table, `hard` is the number
of candidates in which the baseline predicts nuclei, and `moved` is the share of the nuclei's area
for which there was room elsewhere, in percent.

    baseline               only ID patches, at equal epochs: fewer steps
    baseline, equal steps  only ID patches, for more epochs
    + duplicated ID        ID patches drawn again
    + random OoD           cut patches drawn at random, not ranked
    + easy OoD             cut patches in which the baseline predicts no nucleus, repeated
    Med-OoD                the hardest cut patches
    Med-OoD, mean          the same, holes filled with the mean background colour
    Med-OoD, inpaint       the same, holes filled from their surroundings
    + silhouettes moved    the hardest patches uncut, with holes of the same shapes elsewhere in
                           their background, where they fit: black where no nucleus was
    + nucleus-free         ID patches without a nucleus, repeated
    + external             the hardest patches of the images in ood_source, if it is set

and, only where --arms names them, these, which add nothing to the ID patches and are compared with
the plain baseline:

    stain 0.05, 0.2        varied stains
    rare classes           patches of rare classes drawn more often
    3, 6, 24 epochs        this number of epochs
    paper's recipe         `dice`, lr 1e-4, 24 epochs, no mirrors
"""

import functools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import Count, UserError, settings
from generate_unfiltered_oods import fill_folder
from medood.data.files import fingerprint
from medood.data.images import read_image, read_mask, write_png
from medood.data.labels import BACKGROUND, is_foreground
from medood.data.names import name_of
from medood.data.workspace import Pair, id_files
from medood.evaluation.figures import BLUE, COLOURS, canvas
from medood.runs.command_line import run
from medood.runs.products import OOD_PATCHES
from studies import common
from studies.report import tell, values

EQUAL = "baseline, equal steps"  # what the other arms are compared with


@settings
class ControlsConfig(common.ArmsConfig):
    """The settings of a study, with three seeds."""

    seeds: Count = 3
    """Trainings of each arm, with the seeds `seed`, `seed` + 1 ...; `seed` splits the folds."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Train on this share of the regions of the training side, for as many steps as on all."""
    results: Path | None = None
    """Folder of finished trainings: those in it are not repeated; new ones are added."""


def extra(cfg: common.StudyConfig, fold: int) -> list[Pair]:
    """Return the OoD patches that Med-OoD adds on a fold, hardest first."""
    return common.med_ood(cfg, fold).files[len(common.training_side(cfg, fold)) :]


def take(files: list[Pair], count: int) -> list[Pair]:
    """Return `count` files in their order, repeated from the start where there are fewer."""
    return [files[i % len(files)] for i in range(count)]


def adding(cfg: common.StudyConfig, fold: int, files: list[Pair], **notes: object) -> common.Recipe:
    """Return the baseline's training with as many of `files` as Med-OoD adds."""
    plain = common.baseline(cfg, fold)
    return replace(plain, files=plain.files + take(files, len(extra(cfg, fold))), notes=notes)


def shuffled(cfg: common.StudyConfig, fold: int, files: list[Pair]) -> common.Recipe:
    """Return the training that adds files in a random order, of fold and seed alone."""
    order = np.random.default_rng([cfg.seed, fold]).permutation(len(files))
    return adding(cfg, fold, [files[i] for i in order])


def equal_steps(cfg: common.StudyConfig, fold: int) -> common.Recipe:
    """Return the baseline's training, with the epochs that come nearest to Med-OoD's steps."""
    plain = common.baseline(cfg, fold)
    epochs = round(plain.cfg.epochs * common.med_ood(cfg, fold).steps / plain.steps)
    return replace(plain, cfg=replace(plain.cfg, epochs=epochs), notes={})


def easy_ood(cfg: common.StudyConfig, fold: int) -> common.Recipe | None:
    """Return the training that adds the cut patches that mining prunes; None if it prunes none."""
    _, easy = common.mine(cfg, fold, common.candidates(cfg, fold))
    if cfg.plan:  # not known before mining: other patches stand in
        easy = common.candidates(cfg, fold)[::-1]
    return adding(cfg, fold, easy) if easy else None


def filled(fill: str, cfg: common.StudyConfig, fold: int) -> common.Recipe:
    """Return Med-OoD's training with another fill, mined again, with as many patches.

    Where fewer patches are hard, easy ones follow; the note `hard` gives their number.
    """
    cut = replace(cfg, ood_fill=fill)
    name, made_from = f"OoD_Patchs_{fill}", OOD_PATCHES.made_from(cut)
    folder = common.made(cfg, name, made_from, functools.partial(fill_folder, cut))
    files = ((folder / name, None) for name in common.training_side(cfg, fold))
    hard, easy = common.mine(cfg, fold, tuple(files))
    return adding(cfg, fold, hard + easy, hard=len(hard))


def move_silhouettes(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return RGB `image` (H, W, 3) with black holes of the nuclei's shapes, all in its background.

    Each connected piece of foreground in `mask` (H, W) gives a hole of its shape at a random place
    that touches nothing but background, and no other hole; a piece that fits nowhere gives none.
    """
    pieces, labels = cv2.connectedComponents(is_foreground(mask).astype(np.uint8))
    free, out = (mask == BACKGROUND).astype(np.uint8), image.copy()
    for piece in range(1, pieces):
        rows, columns = np.nonzero(labels == piece)
        rows, columns = rows - rows.min(), columns - columns.min()
        shape = np.zeros((rows.max() + 1, columns.max() + 1), np.uint8)
        shape[rows, columns] = 1
        # erosion leaves the pixels on which the top left corner of the shape can lie
        border = {"borderType": cv2.BORDER_CONSTANT, "borderValue": 0}
        places = np.argwhere(cv2.erode(free, shape, anchor=(0, 0), **border))
        if len(places):
            top, left = rng.choice(places)
            free[top + rows, left + columns] = 0
            out[top + rows, left + columns] = 0
    return out


def silhouettes_moved(cfg: common.StudyConfig, fold: int) -> common.Recipe:
    """Return the training that adds patches with holes in the background, not in the nuclei."""
    names, classes = [name_of(image) for image, _ in extra(cfg, fold)], len(cfg.class_names)
    images, masks = zip(*id_files(cfg.workspace, names), strict=True)

    def move(out: Path) -> None:
        for number, (path, of) in enumerate(zip(images, masks, strict=True)):
            rng = np.random.default_rng([cfg.seed, fold, number])
            moved = move_silhouettes(read_image(path), read_mask(of, classes), rng)
            write_png(out / path.name, moved)

    name = f"Silhouettes_{fold}_{cfg.model_name}_{cfg.seed}"
    folder = common.made(cfg, name, {"inputs": fingerprint([*images, *masks])}, move)
    files = [(folder / image.name, mask) for image, mask in zip(images, masks, strict=True)]
    if cfg.plan:
        return adding(cfg, fold, files)
    holes = sum(
        (read_image(moved) != read_image(image)).any(-1).sum()
        for (moved, _), image in zip(files, images, strict=True)
    )
    nuclei = sum(is_foreground(read_mask(mask, classes)).sum() for mask in masks)
    return adding(cfg, fold, files, moved=float(holes / max(nuclei, 1)))


def nucleus_free(cfg: common.StudyConfig, fold: int) -> common.Recipe | None:
    """Return the training that adds ID patches that are all background; None if there is none."""
    classes = len(cfg.class_names)
    free = [
        pair for pair in common.baseline(cfg, fold).files if not read_mask(pair[1], classes).any()
    ]
    return adding(cfg, fold, free) if free else None


def external(cfg: common.StudyConfig, fold: int) -> common.Recipe:
    """Return the training that adds patches of external images: the hard ones, then easy ones."""
    hard, easy = common.mine(
        cfg, fold, common.candidates(replace(cfg, ood_source_use="instead"), fold)
    )
    own = replace(cfg, ood_source=None)
    return adding(own, fold, hard + easy, hard=len(hard))


PAPERS = "paper's recipe"
PAPER = {"loss": "dice", "lr": 1e-4, "epochs": 24, "mirrors": False}
ARMS: dict[str, common.Arm] = {
    "baseline": common.baseline,
    EQUAL: equal_steps,
    "+ duplicated ID": lambda cfg, fold: shuffled(cfg, fold, common.baseline(cfg, fold).files),
    "+ random OoD": lambda cfg, fold: shuffled(cfg, fold, common.candidates(cfg, fold)),
    "+ easy OoD": easy_ood,
    "Med-OoD": common.med_ood,
    "Med-OoD, mean": functools.partial(filled, "mean"),
    "Med-OoD, inpaint": functools.partial(filled, "inpaint"),
    "+ silhouettes moved": silhouettes_moved,
    "+ nucleus-free": nucleus_free,
    "+ external": external,
}
OF_BASELINE: dict[str, common.Arm] = {  # at the plain baseline's epochs, or at others
    "stain 0.05": common.changed(common.baseline, stain=0.05),
    "stain 0.2": common.changed(common.baseline, stain=0.2),
    "rare classes": common.changed(common.baseline, sampling="rare"),
    "3 epochs": common.changed(common.baseline, epochs=3),
    "6 epochs": common.changed(common.baseline, epochs=6),
    "24 epochs": common.changed(common.baseline, epochs=24),
    PAPERS: common.changed(common.baseline, **PAPER),
}
ARMS |= OF_BASELINE


def own(arm: common.Arm) -> common.Arm:
    """Return the arm without ood_source: its OoD patches are cut from the ID set."""
    return lambda cfg, fold: arm(replace(cfg, ood_source=None), fold)


def draw_time(results: common.Results, path: Path, title: str) -> None:
    """Draw `ap` against the steps of the baselines of one recipe; the paper's recipe as a line."""
    points = {
        arm: (np.mean(values(of_arm, "steps")), 100 * np.mean(values(of_arm, "ap")))
        for arm, of_arm in results.items()
        if arm in ("baseline", PAPERS) or arm.endswith("epochs")
    }
    of_paper = points.pop(PAPERS, None)
    with canvas(path, title) as figure:
        ax = figure.subplots()
        ax.plot(*zip(*sorted(points.values()), strict=True), c=BLUE, marker="o")
        for arm, point in points.items():
            ax.annotate(arm, point, xytext=(4, -10), textcoords="offset points")
        if of_paper:
            ax.axhline(
                of_paper[1], c=COLOURS[1], ls="--", label=f"{PAPERS}, {of_paper[0]:.0f} steps"
            )
            ax.legend()
        ax.set(xlabel="optimiser steps", ylabel="`ap`, percent", xlim=(0, None))


def controls(cfg: ControlsConfig) -> None:
    """Train every arm, and compare it with the baseline of equal steps and with Med-OoD."""
    if cfg.ood_fill != "zero":
        raise UserError(f"ood_fill: {cfg.ood_fill}, but the study compares fills: set it to zero")
    if cfg.results is not None and cfg.results.is_file():
        raise UserError(f"results: {cfg.results} is a file: name a folder")
    of_baseline = OF_BASELINE.keys() & {*cfg.arms}
    references = ["baseline"] if of_baseline else []
    if not of_baseline or {*cfg.arms} - {*of_baseline, "baseline"}:
        references.append(EQUAL)
    arms = common.chosen(cfg, ARMS, references)
    common.prepare(cfg)
    arms = {name: arm for name, arm in arms.items() if name in cfg.arms or name not in OF_BASELINE}
    if "+ external" in arms and cfg.ood_source is None:
        del arms["+ external"]
        print("+ external is skipped: name a folder of nucleus-free images with --ood_source")
    results = common.run_arms(
        cfg,
        {name: arm if name == "+ external" else own(arm) for name, arm in arms.items()},
        cfg.results,
    )
    if results:
        others = [arm for arm in results if arm not in (EQUAL, *OF_BASELINE)]
        against = {EQUAL: others} if EQUAL in results else {}
        if "Med-OoD" in results:
            against["Med-OoD"] = [arm for arm in others if arm not in ("baseline", "Med-OoD")]
        if of_baseline:
            against["baseline"] = [arm for arm in results if arm in of_baseline]
        timed = any(arm.endswith("epochs") for arm in results)
        draw = functools.partial(draw_time, results) if timed else None
        tell(cfg, "controls", results, against, columns=("hard", "moved"), draw=draw)


if __name__ == "__main__":
    run(controls, ControlsConfig())
