"""A strong baseline: which changes of the training help, one at a time and then together.

Writes  reports/studies/recipe_<model>.csv, .json, .md, .png

A claim about misclassification is worth as much as its baseline. The choice is made without the
test: the training side of the first fold is split into three parts, by region (or patient, see
`patients`), and each change is trained on two and tested on the third. The choice is then compared
with `dice`, the loss of the paper, on the test side of that fold.

    dice_ce            the base, Dice with cross-entropy; each other arm changes one thing:
    dice               the loss of the paper
    stain 0.05, 0.2    other amounts of hematoxylin and eosin
    lr 3e-4            three times the learning rate
    mirrors            the test on eight flipped and rotated copies; the network is the base's
    rare classes       patches of rare classes drawn more often
    twice, four times as long
    together           the chosen changes: see TOGETHER
"""

import functools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import UserError, settings
from medood.data.folds import read_fold, split_patients
from medood.data.patients import patients_of
from medood.data.workspace import id_files
from medood.runs.command_line import run
from studies.common import ArmsConfig, Recipe, StudyConfig, baseline, chosen, prepare, run_arms
from studies.report import tell

PARTS = 3  # of the training side; --parts says how many of them are tested


@settings
class RecipeConfig(ArmsConfig):
    """The settings of a study, with the parts of the training side."""

    parts: Annotated[int, Field(ge=1, le=PARTS)] = PARTS
    """The number of parts of the training side, of three, on which each change is tested."""


BASE = {"loss": "dice_ce"}
TOGETHER = {"lr": 3e-4, "mirrors": True}
CHANGES: dict[str, dict] = {
    "dice": {"loss": "dice"},
    "dice_ce": {},
    "stain 0.05": {"stain": 0.05},
    "stain 0.2": {"stain": 0.2},
    "lr 3e-4": {"lr": 3e-4},
    "mirrors": {"mirrors": True},
    "rare classes": {"sampling": "rare"},
    "twice as long": {"longer": 2},
    "four times as long": {"longer": 4},
    "together": TOGETHER,
}


def changed(plain: Recipe, change: dict) -> Recipe:
    """Return a training with the settings of BASE and a change."""
    settings = BASE | change
    epochs = plain.cfg.epochs * settings.pop("longer", 1)
    return replace(plain, cfg=replace(plain.cfg, **settings, epochs=epochs), notes={})


def within(train: list[str], change: dict, cfg: StudyConfig, part: int) -> Recipe:
    """Return the training on all but one part of a training side, which that part tests."""
    part_of = split_patients(cfg, train, PARTS)
    test = [name for name in train if part_of[name] == part]
    kept = [name for name in train if part_of[name] != part]
    return changed(Recipe(cfg, id_files(cfg.workspace, kept), [], test), change)


def recipe(cfg: RecipeConfig) -> None:
    """Train every arm within the training side of the first fold, and the choice on all of it."""
    if (cfg.loss, cfg.select) != ("dice", "last"):
        raise UserError("loss, select: the study sets the loss itself and tests the last epoch")
    if cfg.split == "patch":
        raise UserError(
            f"split: patch, so that test {cfg.unit}s would influence the choice: set it to region"
        )
    changes = chosen(cfg, CHANGES, ("dice_ce",))
    prepare(cfg)
    fold = cfg.folds[0]
    train = read_fold(cfg, fold).train
    if len(set(patients_of(cfg, train))) < PARTS:
        raise UserError(f"fold {fold}: fewer than {PARTS} {cfg.unit}s train: add images of others")
    arms = {name: functools.partial(within, train, change) for name, change in changes.items()}
    results = run_arms(replace(cfg, folds=tuple(range(cfg.parts))), arms)
    best = {  # on the whole training side, which the test side of the fold tests
        f"{name}, test": lambda cfg, fold, name=name: changed(baseline(cfg, fold), CHANGES[name])
        for name in ("dice", "dice_ce", "together")
    }
    results |= run_arms(replace(cfg, folds=(fold,)), best)
    if results:
        against = {"dice_ce": [arm for arm in arms if arm != "dice_ce"]}
        against["dice, test"] = ["dice_ce, test", "together, test"]
        kinds = tuple(f"IoU {name}" for name in cfg.class_names[1:])
        tell(cfg, "recipe", results, against, columns=kinds)


if __name__ == "__main__":
    run(recipe, RecipeConfig())
