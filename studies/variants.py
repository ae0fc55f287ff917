"""Does any form of the OoD idea help, at equal steps and at equal operating points?

Writes  reports/studies/variants_<model>.csv, .json, .md, .png

Every arm takes as many optimiser steps as Med-OoD. The settings are those of the command line: name
the strong baseline that studies/recipe.py chose.

    equal steps         the baseline, for more epochs: what the others are compared with
    Med-OoD             the hardest cut patches, as in the paper
    holes unsure        the same, but the holes count in no loss: only real tissue teaches
    inpaint             the same with holes filled, see controls.py
    lambda 0.1, 0.5     the same with OoD patches that weigh less
    first, last third   the same, but OoD patches count in that part of the epochs alone
    uniform             on OoD patches, cross-entropy to equal probabilities instead of the loss
                        (outlier exposure, Hendrycks et al., ICLR 2019)
    energy              on OoD patches, a hinge on the energy (Liu et al., NeurIPS 2020, Eq. 8-9)
    false nuclei        no cut patches: those training patches again in which a baseline that did
                        not train on their region (or patient) sees nuclei where there are none
    recomposed          no cut patches: the nuclei of one patch on the background of another, whose
                        own are inpainted

The rule. The contrast is `bg_to_fg_matched`: how much background an arm calls nucleus where it
misses as many nuclei as `equal steps` does. The folds are gone through once, with the first seed:
after each, an arm whose 95 % interval lies above zero is given up, and after the last one every arm
whose mean contrast is not below zero. What is left gets all seeds. An arm helps if its interval
then lies below zero. Of a dozen arms that change nothing, chance alone would pass one in three or
four such studies: what passes has to pass with other seeds again.
"""

import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import Config, Count
from medood.data.dataset import load_patches
from medood.data.files import fingerprint
from medood.data.folds import deal_patients
from medood.data.images import UNSURE, read_image, read_mask, write_png
from medood.data.labels import BACKGROUND, is_foreground
from medood.data.names import name_of
from medood.data.records import fresh_folder, is_kept
from medood.data.workspace import Pair, id_files
from medood.evaluation.figures import draw_intervals
from medood.evaluation.statistics import Difference
from medood.evaluation.tables import markdown
from medood.evaluation.testing import tally_patches
from medood.models.checkpoints import load_model
from medood.models.network import pick_device
from medood.runs.command_line import run
from medood.training.step import Trainer
from studies import common, report
from studies.controls import (
    EQUAL,
    adding,
    cut_anew,
    equal_steps,
    extra,
    filled,
    require_zero,
    shuffled,
)

CONTRAST = "bg_to_fg_matched"
ENERGIES = -23.0, -5.0  # of ID below, of OoD above (Liu et al., Sec. 4.2)
ENERGY_WEIGHT = 0.1  # the same
EXPOSURE_WEIGHT = 0.5  # Hendrycks et al., Sec. 4.3
FEATHER = 1.0  # pixels: standard deviation of the blur of a nucleus's border


@dataclass(frozen=True)
class VariantsConfig(common.ArmsConfig):
    """The settings of a study, with three seeds."""

    seeds: Count = 3
    """Trainings of each arm, with the seeds `seed`, `seed` + 1 ...; `seed` also deals the folds."""


# ---------------------------------------------------------------- trainers
# Their recipes set ood_weight to 0: a weight of 0 says which patches of a batch are OoD.


class _Third(Trainer):
    """A trainer for which OoD patches count in some epochs alone."""

    first: bool

    def __init__(self, cfg: Config, device: torch.device) -> None:
        super().__init__(cfg, device)
        # tensors: a recorded step would repeat numbers of Python's as they were
        self.counts = torch.zeros((), device=device)
        self.beside["epochs"] = self.epochs = torch.nn.Module()
        self.epochs.register_buffer("begun", torch.zeros((), device=device))

    @classmethod
    def made_from(cls, cfg: Config) -> dict:
        """Return what decides a network beside its patches and the settings of config.py."""
        return {"OoD patches count in": "first third" if cls.first else "last third"}

    def begin_epoch(self, lr: float) -> None:
        """Take the steps of an epoch at a learning rate, with or without the OoD patches."""
        super().begin_epoch(lr)
        share = self.epochs.begun / self.cfg.epochs
        self.counts.copy_(share < 1 / 3 if self.first else share >= 2 / 3)
        self.epochs.begun += 1

    def cost(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar."""
        return super().cost(logits, target, weight.where(weight > 0, self.counts))


class FirstThird(_Third):
    """OoD patches count in the first third of the epochs."""

    first = True


class LastThird(_Third):
    """OoD patches count in the last third of the epochs."""

    first = False


def uniform(logits: Tensor, is_ood: Tensor) -> Tensor:
    """Return the cross-entropy between equal probabilities and those of OoD patches, a scalar.

    logits: float32 (N, C, H, W). is_ood: bool (N,).
    """
    of_patch = -logits.log_softmax(1).mean((1, 2, 3))
    return EXPOSURE_WEIGHT * mean_where(of_patch, is_ood)


def energy(logits: Tensor, is_ood: Tensor) -> Tensor:
    """Return squared hinges on -logsumexp, a scalar: low on ID patches, high on OoD patches.

    logits: float32 (N, C, H, W). is_ood: bool (N,).
    """
    found, (low, high) = -logits.logsumexp(1), ENERGIES
    of_id = F.relu(found - low).square().mean((1, 2))
    of_ood = F.relu(high - found).square().mean((1, 2))
    return ENERGY_WEIGHT * (mean_where(of_id, ~is_ood) + mean_where(of_ood, is_ood))


class Uniform(Trainer):
    """A trainer with another loss on OoD patches, a term added to that of the ID patches."""

    term = staticmethod(uniform)

    @classmethod
    def made_from(cls, cfg: Config) -> dict:
        """Return what decides a network beside its patches and the settings of config.py."""
        return {"loss of OoD patches": cls.__name__}

    def cost(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar."""
        return super().cost(logits, target, weight) + self.term(logits.float(), weight == 0)


class Energy(Uniform):
    """The same with a term on the energy."""

    term = staticmethod(energy)


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of the chosen values, 0 if there are none; both (N,)."""
    return (values * chosen).sum() / chosen.sum().clamp_min(1)


# ---------------------------------------------------------------- arms


def lighter(ood_weight: float, cfg: common.StudyConfig, fold: int) -> common.Recipe:
    """Return Med-OoD's training with OoD patches that weigh less."""
    ours = common.med_ood(cfg, fold)
    return replace(ours, cfg=replace(cfg, ood_weight=ood_weight))


def by(kind: type[Trainer], cfg: common.StudyConfig, fold: int) -> common.Recipe:
    """Return Med-OoD's training by another trainer."""
    return replace(lighter(0.0, cfg, fold), kind=kind)


def holes_unsure(cfg: common.StudyConfig, fold: int) -> common.Recipe:
    """Return Med-OoD's training with the places of the nuclei left out of the loss."""
    files = extra(cfg, fold)
    masks = [mask for _, mask in id_files(cfg, [name_of(image) for image, _ in files])]
    classes = len(cfg.class_names)

    def hide(number: int, out: Path) -> None:
        mask = read_mask(masks[number], classes)
        hidden = np.where(mask == BACKGROUND, BACKGROUND, UNSURE).astype(np.uint8)
        write_png(out / masks[number].name, hidden)

    folder = made(cfg, f"Holes_{fold}_{cfg.model_name}_{cfg.seed}", masks, len(masks), hide)
    return adding(cfg, fold, [(image, folder / image.name) for image, _ in files])


def made(cfg: common.StudyConfig, name: str, sources: list[Path], count: int, write) -> Path:
    """Return a folder that `write` fills, called with each number below `count` and the folder.

    It is kept if it was made from the same files. A plan makes nothing.
    """
    folder = cfg.workspace / "studies" / name
    record = {} if cfg.plan else {"inputs": fingerprint(sources)}
    if not cfg.plan and not is_kept(folder, record):
        with fresh_folder(folder, record) as out, ThreadPoolExecutor() as pool:
            list(pool.map(lambda number: write(number, out), range(count)))
    return folder


def false_nuclei(cfg: common.StudyConfig, fold: int) -> common.Recipe | None:
    """Return the training that adds the training patches with the most false nuclei, if any.

    Each half of the regions, or patients, is looked at by a baseline trained on the other half.
    """
    plain = common.baseline(cfg, fold)
    half_of = deal_patients(cfg, [name_of(image) for image, _ in plain.files], 2)
    false: dict[str, int] = {}
    for half in (0, 1):
        ours, theirs = (
            [pair for pair in plain.files if (half_of[name_of(pair[0])] == half) == own]
            for own in (True, False)
        )
        if cfg.plan:
            false |= {name_of(image): 1 for image, _ in ours}
            continue
        network = common.train_recipe(replace(plain, files=theirs), fold)
        model, device = load_model(network, cfg), pick_device(cfg)
        task = f"fold {fold}: looking for false nuclei"
        tally, _ = tally_patches(cfg, model, load_patches(cfg, ours), device, task)
        counts = tally.confusion[:, BACKGROUND, BACKGROUND + 1 :].sum(1).tolist()
        false |= dict(zip((name_of(image) for image, _ in ours), counts, strict=True))
    ranked = sorted(plain.files, key=lambda pair: (-false[name_of(pair[0])], name_of(pair[0])))
    found = [pair for pair in ranked if false[name_of(pair[0])] > 0]
    return adding(cfg, fold, found, hard=len(found)) if found else None


def recomposed(cfg: common.StudyConfig, fold: int) -> common.Recipe:
    """Return the training that adds nuclei of one patch on the emptied background of another."""
    files = common.baseline(cfg, fold).files
    names, grounds = [name_of(image) for image, _ in files], shuffled(cfg, fold, files)
    empty = cut_anew(replace(cfg, ood_fill="inpaint"))
    classes = len(cfg.class_names)

    def compose(number: int, out: Path) -> None:
        own, pairs = names[number], (files[number], grounds[number])
        mask, hidden = (read_mask(path, classes) for _, path in pairs)
        image, whole = (read_image(path) for path, _ in pairs)
        emptied = read_image(empty / name_of(grounds[number][0]))
        composed = recompose(image, mask, emptied, whole, hidden)
        # beside the nuclei, nothing is known where the background's own mask is not sure
        unsure = (hidden == UNSURE) & ~is_foreground(mask)
        write_png(out / own, composed)
        write_png(out / f"mask_{own}", np.where(unsure, UNSURE, mask).astype(np.uint8))

    stem = f"Recomposed_{fold}_{cfg.seed}"
    sources = [path for pair in files for path in pair]
    folder = made(cfg, stem, sources, len(names), compose)
    pairs: list[Pair] = [(folder / name, folder / f"mask_{name}") for name in names]
    return adding(cfg, fold, shuffled(cfg, fold, pairs))


def recompose(
    image: np.ndarray, mask: np.ndarray, empty: np.ndarray, whole: np.ndarray, hidden: np.ndarray
) -> np.ndarray:
    """Return the nuclei of an image on another background, RGB uint8 (P, P, 3).

    image, mask: of the nuclei. empty: the background, its own nuclei filled; whole, hidden: the
    patch it comes from and its mask. Mean and spread of each colour are moved from the background
    of the one patch to that of the other (Reinhard et al. 2001), and borders are feathered.
    """
    ours, theirs = image[mask == BACKGROUND], whole[hidden == BACKGROUND]
    moved = image.astype(np.float32)
    if len(ours) and len(theirs):
        gain = theirs.std(0) / np.maximum(ours.std(0), 1)
        moved = (moved - ours.mean(0)) * gain + theirs.mean(0)
    nuclei = is_foreground(mask).astype(np.float32)
    share = cv2.GaussianBlur(nuclei, (0, 0), FEATHER)[..., None]
    return (share * moved + (1 - share) * empty).round().clip(0, 255).astype(np.uint8)


ARMS: dict[str, common.Arm] = {
    EQUAL: equal_steps,
    "Med-OoD": common.med_ood,
    "holes unsure": holes_unsure,
    "inpaint": functools.partial(filled, "inpaint"),
    "lambda 0.1": functools.partial(lighter, 0.1),
    "lambda 0.5": functools.partial(lighter, 0.5),
    "first third": functools.partial(by, FirstThird),
    "last third": functools.partial(by, LastThird),
    "uniform": functools.partial(by, Uniform),
    "energy": functools.partial(by, Energy),
    "false nuclei": false_nuclei,
    "recomposed": recomposed,
}


# ---------------------------------------------------------------- the study


def train(cfg: VariantsConfig, arms: dict[str, common.Arm], results: common.Results) -> None:
    """Train and test arms, and add what comes of them to the results."""
    for arm, of_arm in common.run_arms(cfg, arms).items():
        results.setdefault(arm, {}).update(of_arm)


def contrast(results: common.Results, arm: str) -> Difference:
    """Return how an arm differs from equal steps in what the rule looks at, so far."""
    return report.compare(results, arm, EQUAL)[CONTRAST]


def variants(cfg: VariantsConfig) -> None:
    """Train the arms once a fold, those that the rule leaves with all seeds, and compare."""
    require_zero(cfg)
    arms = common.chosen(cfg, ARMS, (EQUAL,))
    common.prepare(cfg)
    if cfg.plan:
        common.run_arms(cfg, arms)  # the most that there can be
        return
    results: common.Results = {}
    for fold in cfg.folds:
        train(replace(cfg, seeds=1, folds=(fold,)), arms, results)
        harmful = [arm for arm in results if contrast(results, arm).low > 0]
        arms = {name: arm for name, arm in arms.items() if name not in harmful}
        if len(arms) == 1:
            break
    left = [EQUAL, *(arm for arm in results if contrast(results, arm).mean < 0)]
    arms = {name: arm for name, arm in arms.items() if name in left}
    if cfg.seeds > 1 and len(arms) > 1:
        train(replace(cfg, seed=cfg.seed + 1, seeds=cfg.seeds - 1), arms, results)
    gains = {
        f"{arm} - {EQUAL}": report.compare(results, arm, EQUAL) for arm in results if arm != EQUAL
    }
    scores = [
        [arm, str(len(of_arm)), f"{np.mean([r.recipe.steps for r in of_arm.values()]):.0f}"]
        + report.shown(of_arm)
        for arm, of_arm in results.items()
    ]
    less = [
        [pair.removesuffix(f" - {EQUAL}"), *report.compared(gain)] for pair, gain in gains.items()
    ]
    tables = {
        "Scores": markdown(["", "trainings", "steps", *report.heads(report.SHOWN)], scores),
        f"Less {EQUAL}": markdown(["", *report.heads(report.COMPARED)], less),
    }
    out = report.write_study(cfg, "variants", results, tables, gains)
    bars = {row[0]: tuple(gain[CONTRAST]) for row, gain in zip(less, gains.values(), strict=True)}
    title = report.figure_title(cfg, f"{cfg.model_name}: variants of the OoD idea")
    draw_intervals(Path(f"{out}.png"), title, f"`{CONTRAST}` less {EQUAL}, points", bars)
    print(f"{out}.csv, .json, .md, .png")


if __name__ == "__main__":
    run(variants, VariantsConfig())
