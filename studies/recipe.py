"""A strong baseline: which changes of the training help, one at a time and then together.

Writes  reports/studies/recipe_<model>.csv, .json, .md, .png

A claim about misclassification is worth as much as the baseline that it is tested on. The choice is
made without the test: the training side of the first fold is dealt into three parts, by region (or
patient, see `patients`), and each change is trained on two and tested on the third. What is chosen
then meets `dice`, the loss of the paper, on the test side of that fold.

    dice_ce            the base: Dice with cross-entropy; the others differ from it by
    dice               the loss of the paper
    nnU-Net's Dice     Dice of the foreground classes alone, of a whole batch (Isensee et al. 2021)
    present classes    Dice of the classes alone that the batch holds
    stain 0.05, 0.2    other amounts of hematoxylin and eosin
    lr 3e-4            three times the learning rate
    mirrors            the test on eight mirrored and turned copies; the network is the base's
    rare classes       patches drawn oftener the rarer their classes are
    gaps               background between neighbouring nuclei counts five times
    72, 144 epochs     twice and four times as long
    together           what the above chose: see TOGETHER
"""

import functools
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import Config, UserError
from medood.data.folds import deal_patients, read_fold
from medood.data.labels import UNSURE, is_foreground
from medood.data.patients import patients_of
from medood.data.workspace import id_files
from medood.evaluation.figures import draw_intervals
from medood.evaluation.statistics import Difference
from medood.evaluation.tables import markdown, spread
from medood.runs.command_line import run
from medood.training.losses import segmentation_loss
from medood.training.step import Trainer
from studies.common import (
    Arm,
    ArmsConfig,
    Recipe,
    Results,
    StudyConfig,
    baseline,
    chosen,
    prepare,
    run_arms,
)
from studies.report import (
    COMPARED,
    SHOWN,
    compare,
    compared,
    figure_title,
    heads,
    shown,
    values,
    write_study,
)

PARTS = 3  # of the training side; --parts says how many of them are tested
GAP, GAP_WEIGHT = 7, 5.0  # pixels between two nuclei, below which background counts so much
SMOOTH = 1e-5  # of nnU-Net's Dice


@dataclass(frozen=True)
class RecipeConfig(ArmsConfig):
    """The settings of a study, with the parts of the training side."""

    parts: Annotated[int, Field(ge=1, le=PARTS)] = PARTS
    """On how many of the three parts of the training side each change is tested."""


# ---------------------------------------------------------------- trials that are no settings


def dice_of_classes(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Dice of each class over a batch, (C,), and how many true pixels it has, (C,)."""
    probability = logits.float().softmax(1)
    classes = torch.arange(logits.shape[1], device=logits.device)
    truth = (target[:, None] == classes[:, None, None]).float()
    sure = (target != UNSURE)[:, None].float()
    hit, seen, true = (
        part.sum((0, 2, 3)) for part in (probability * truth, probability * sure, truth)
    )
    return (2 * hit + SMOOTH) / (seen + true + SMOOTH), true


def entropy(logits: Tensor, target: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Return the mean cross-entropy of the sure pixels; weight: of each of them, (N, H, W)."""
    per_pixel = F.cross_entropy(logits.float(), target, ignore_index=UNSURE, reduction="none")
    weight = weight * (target != UNSURE)
    return (weight * per_pixel).sum() / weight.sum().clamp_min(1)


class _Trial(Trainer):
    """A trainer whose loss is another one; its name keeps its networks apart."""

    @classmethod
    def made_from(cls, cfg: Config) -> dict:
        """Return what decides a network beside its patches and the settings of config.py."""
        return {"trial": cls.__name__}


class ForegroundDice(_Trial):
    """nnU-Net's loss: 1 - Dice over the foreground classes, plus cross-entropy."""

    def cost(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Return the loss of a batch of ID patches."""
        dice, _ = dice_of_classes(logits, target)
        return 1 - dice[1:].mean() + entropy(logits, target)


class PresentDice(_Trial):
    """1 - Dice over the classes that have a pixel in the batch, plus cross-entropy."""

    def cost(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Return the loss of a batch of ID patches."""
        dice, true = dice_of_classes(logits, target)
        present = (true > 0).float()
        return 1 - (dice * present).sum() / present.sum() + entropy(logits, target)


class Gaps(_Trial):
    """The usual loss, plus cross-entropy in which narrow gaps between nuclei count more.

    As U-Net's weights (Ronneberger et al. 2015, Eq. 2), but without instances, which class masks do
    not have: a gap is background that a morphological closing of the foreground fills.
    """

    def cost(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Return the loss of a batch of ID patches."""
        dice = segmentation_loss(logits, target, weight, "dice")
        return dice + entropy(logits, target, 1 + (GAP_WEIGHT - 1) * gaps(target))


def gaps(target: Tensor) -> Tensor:
    """Return 1 where background of (N, H, W) lies in a gap of fewer than GAP pixels, else 0."""
    foreground = is_foreground(target).float()[:, None]
    grown = F.max_pool2d(foreground, GAP, 1, GAP // 2)
    closed = -F.max_pool2d(-F.pad(grown, [GAP // 2] * 4, value=0.0), GAP, 1)  # no gap at an edge
    return (closed - foreground).clamp_min(0)[:, 0] * (target != UNSURE)


# ---------------------------------------------------------------- arms

BASE = {"loss": "dice_ce"}
TOGETHER = {"lr": 3e-4, "mirrors": True}
CHANGES: dict[str, dict] = {
    "dice": {"loss": "dice"},
    "dice_ce": {},
    "nnU-Net's Dice": {"kind": ForegroundDice},
    "present classes": {"kind": PresentDice},
    "stain 0.05": {"stain": 0.05},
    "stain 0.2": {"stain": 0.2},
    "lr 3e-4": {"lr": 3e-4},
    "mirrors": {"mirrors": True},
    "rare classes": {"sampling": "rare"},
    "gaps": {"kind": Gaps},
    "twice as long": {"longer": 2},
    "four times as long": {"longer": 4},
    "together": TOGETHER,
}


def changed(plain: Recipe, change: dict) -> Recipe:
    """Return a training with the settings of BASE and a change."""
    settings = {name: value for name, value in change.items() if name not in ("kind", "longer")}
    epochs = plain.cfg.epochs * change.get("longer", 1)
    cfg = replace(plain.cfg, **(BASE | settings), epochs=epochs)
    return replace(plain, cfg=cfg, kind=change.get("kind", Trainer), notes={})


def within(train: list[str], change: dict, cfg: StudyConfig, part: int) -> Recipe:
    """Return the training on all but one part of a training side, which that part tests."""
    part_of = deal_patients(cfg, train, PARTS)
    test = [name for name in train if part_of[name] == part]
    kept = [name for name in train if part_of[name] != part]
    return changed(Recipe(cfg, id_files(cfg, kept), [], test), change)


def whole(change: dict, cfg: StudyConfig, fold: int) -> Recipe:
    """Return the training on the whole training side of a fold, which its test side tests."""
    return changed(baseline(cfg, fold), change)


# ---------------------------------------------------------------- the study

DICE, CE, STRONG = "dice", "dice_ce", "together"


def scores_of(cfg: StudyConfig, results: Results) -> str:
    """Return the scores of every arm, the rarer classes included, as Markdown."""
    kinds = [f"IoU {name}" for name in cfg.class_names[1:]]
    rows = [
        [arm, f"{sum(r.recipe.steps for r in of_arm.values()) / len(of_arm):.0f}", *shown(of_arm)]
        + [spread(values(of_arm, kind)) for kind in kinds]
        for arm, of_arm in results.items()
    ]
    return markdown(["", "steps", *heads(SHOWN), *kinds], rows)


def gains_of(gains: dict[str, dict[str, Difference]]) -> str:
    """Return differences, by pair, as Markdown."""
    rows = [[pair, *compared(gain)] for pair, gain in gains.items()]
    return markdown(["", *heads(COMPARED)], rows)


def recipe(cfg: RecipeConfig) -> None:
    """Train every arm within the training side of the first fold, and the choice on all of it."""
    if (cfg.loss, cfg.select) != ("dice", "last"):
        raise UserError("loss, select: the study sets the loss itself and tests the last epoch")
    if cfg.split == "patch":
        raise UserError(f"split: patch, and test {cfg.unit}s would choose too: set it to region")
    changes = chosen(cfg, CHANGES, (CE,))
    prepare(cfg)
    fold = cfg.folds[0]
    train = read_fold(cfg, fold).train
    if len(set(patients_of(cfg, train))) < PARTS:
        raise UserError(f"fold {fold}: fewer than {PARTS} {cfg.unit}s train: add images of others")
    arms: dict[str, Arm] = {
        name: functools.partial(within, train, change) for name, change in changes.items()
    }
    results = run_arms(replace(cfg, folds=tuple(range(cfg.parts))), arms)
    best = {name: functools.partial(whole, CHANGES[name]) for name in (DICE, CE, STRONG)}
    tested = run_arms(replace(cfg, folds=(fold,)), best)
    if cfg.plan:
        return
    gains = {f"{arm} - {CE}": compare(results, arm, CE) for arm in results if arm != CE}
    of_test = {f"{arm} - {DICE}, test": compare(tested, arm, DICE) for arm in (CE, STRONG)}
    tables = {
        "Held out of the training side": scores_of(cfg, results),
        f"Less {CE}, held out of the training side": gains_of(gains),
        f"Test {cfg.unit}s": scores_of(cfg, tested),
        f"Less {DICE}, test {cfg.unit}s": gains_of(of_test),
    }
    every = results | {f"{arm}, test": of_arm for arm, of_arm in tested.items()}
    out = write_study(cfg, "recipe", every, tables, gains | of_test)
    bars = {pair.removesuffix(f" - {CE}"): tuple(gain["ap"]) for pair, gain in gains.items()}
    title = figure_title(cfg, f"{cfg.model_name}: changes of the training, held-out {cfg.unit}s")
    draw_intervals(Path(f"{out}.png"), title, f"average precision less {CE}, points", bars)
    print(f"{out}.csv, .json, .md, .png")


if __name__ == "__main__":
    run(recipe, RecipeConfig())
