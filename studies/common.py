"""What the studies share: recipes of trainings, and their results; report.py writes them.

A study names its arms. An arm turns settings and a fold into a recipe: the settings of a training,
its patches and the patches that test it. `run_arms` trains every recipe for every fold and seed;
with --plan it only lists them. The folder of a network is named after a hash of all that decides
its weights: studies share their baselines, and networks of main.py are not trained again.

    <workspace>/studies/<fold>_<model>_<hash>/     networks
"""

import functools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import main
from config import Config, Count, UserError, settings
from estimate_pct import choose_pct, count_samples, pixels_of, pnr
from medood.data.files import digest
from medood.data.folds import read_fold
from medood.data.names import name_of
from medood.data.ood_set import ood_candidates
from medood.data.patients import region_of
from medood.data.records import fresh_folder, is_kept, record_of
from medood.data.workspace import Pair, id_files, model_folder, ood_files, require_data
from medood.evaluation.testing import score_networks
from medood.markdown import markdown
from medood.models.network import build_model, pick_device
from medood.processes import world_size
from medood.runs.products import network_made_from
from medood.training.batches import batches
from medood.training.segmentation import TIMED_STEPS, step_seconds, train_fold
from rank_prune_ood import rank_files
from studies.results import Result, path_of, read_result, write_result


@settings
class StudyConfig(Config):
    """What every study takes in addition to the settings."""

    share: ClassVar[float] = 1.0  # of the regions of the training side; controls.py sets it

    seeds: Count = 1
    """Trainings of each arm, with the seeds `seed`, `seed` + 1 ...; `seed` splits the folds."""
    plan: bool = False
    """List the trainings with their patches, steps and estimated hours, and train nothing."""


@settings
class ArmsConfig(StudyConfig):
    """What a study of many arms takes in addition."""

    arms: tuple[str, ...] = ()
    """Train only these arms and their references; none named: all."""


@dataclass(frozen=True)
class Recipe:
    """One training, and the patches that test it."""

    cfg: Config
    files: list[Pair]
    val_files: list[Pair]
    test: list[str]
    notes: dict = field(default_factory=dict)  # numbers for the tables, such as its pnr

    @property
    def ood_patches(self) -> int:
        """The number of OoD patches, which have no mask: all of them is background."""
        return sum(mask is None for _, mask in self.files)

    @property
    def sizes(self) -> dict:
        """The sizes of the training in tables: patches, steps and notes."""
        patches = {"id_patches": len(self.files) - self.ood_patches}
        return patches | {"ood_patches": self.ood_patches, "steps": self.steps} | self.notes

    @property
    def steps(self) -> int:
        """The number of optimiser steps of the whole training."""
        return self.cfg.epochs * len(batches(self.cfg, 0, 0, len(self.files)))


# takes the settings, with the seed set, and a fold; returns None if the fold has no such patches
Arm = Callable[[StudyConfig, int], Recipe | None]


Results = dict[str, dict[tuple[int, int], Result]]  # by arm, then by fold and seed


def baseline(cfg: StudyConfig, fold: int) -> Recipe:
    """Return the training on the ID patches of a fold."""
    _, val, test = read_fold(cfg, fold)
    train = training_side(cfg, fold)
    positives, negatives = count_id(cfg, tuple(train))
    notes = {"pct": 0.0, "pnr": pnr(positives, negatives, 0)}
    cfg = replace(cfg, epochs=round(cfg.epochs / cfg.share))
    return Recipe(cfg, id_files(cfg.workspace, train), id_files(cfg.workspace, val), test, notes)


def training_side(cfg: StudyConfig, fold: int) -> list[str]:
    """Return the training patches of a fold, of a share of its regions, drawn by seed and fold."""
    names = read_fold(cfg, fold).train
    regions = sorted({region_of(name) for name in names})
    order = np.random.default_rng([cfg.seed, fold]).permutation(len(regions))
    kept = {regions[i] for i in order[: math.ceil(cfg.share * len(regions))]}
    return [name for name in names if region_of(name) in kept]


def changed(arm: Arm, **settings: object) -> Arm:
    """Return the arm that trains the patches of another with other settings."""

    def arm_of(cfg: StudyConfig, fold: int) -> Recipe:
        recipe = arm(cfg, fold)
        return replace(recipe, cfg=replace(recipe.cfg, **settings))

    return arm_of


def med_ood(cfg: StudyConfig, fold: int, pct: float | None = None) -> Recipe:
    """Return Med-OoD's training on a fold, with the estimated pct or the given one."""
    plain = baseline(cfg, fold)
    hard, _ = mine(cfg, fold, candidates(cfg, fold))
    positives, negatives = count_id(cfg, tuple(training_side(cfg, fold)))
    grid = cfg.pct_grid if pct is None else (pct,)
    best, _ = choose_pct(positives, negatives, len(hard), grid, cfg.pnr_opt)
    notes = {"pct": best["pct"], "pnr": best["pnr"], "hard": len(hard)}
    return replace(plain, files=plain.files + hard[: best["ood_patches"]], notes=notes)


def candidates(cfg: StudyConfig, fold: int) -> tuple[Pair, ...]:
    """Return the OoD patches of a fold that are to be mined."""
    return tuple(ood_files(cfg.workspace, ood_candidates(cfg, training_side(cfg, fold))))


@functools.cache
def mine(cfg: StudyConfig, fold: int, files: tuple[Pair, ...]) -> tuple[list[Pair], list[Pair]]:
    """Return the OoD patches with nuclei predicted by the baseline, hardest first, and the rest.

    A plan counts all patches as hard: only a trained baseline can distinguish them.
    """
    if cfg.plan:
        return list(files), []
    network = train_recipe(baseline(cfg, fold), fold)
    of_name = {name_of(image): (image, mask) for image, mask in files}
    rows = rank_files(cfg, network, list(files), f"fold {fold}: mining")
    kept, pruned = ([of_name[row[1]] for row in rows if row[-1] == kept] for kept in (1, 0))
    return kept, pruned


@functools.cache
def count_id(cfg: Config, names: tuple[str, ...]) -> tuple[int, int]:
    """Return the numbers of positives and negatives among ID patches."""
    return count_samples(*pixels_of(cfg, id_files(cfg.workspace, names)))


def made(cfg: StudyConfig, name: str, made_from: dict, fill: Callable[[Path], object]) -> Path:
    """Return a folder that `fill` fills, or that is kept. A plan writes nothing."""
    folder = cfg.workspace / "studies" / name
    if not cfg.plan and not is_kept(folder, made_from):
        with fresh_folder(folder, made_from) as out:
            fill(out)
    return folder


def prepare(cfg: StudyConfig, networks: Iterable[Config] = ()) -> None:
    """Write the patches, folds and OoD patches that are missing, as main.py does.

    networks: settings of the networks that will be trained; by default `cfg`. Each is built once,
    so that a wrong encoder or missing weights fail now and not after days. A plan needs no weights.
    Raises UserError in several processes, without data, and for a network that cannot be built.
    """
    if world_size() > 1:
        raise UserError(
            f"torchrun: a study runs in one process, not in {world_size()}: start it with python"
        )
    require_data(cfg)
    pick_device(cfg.device)
    for network in networks or [cfg]:
        build_model(replace(network, encoder_weights="none") if cfg.plan else network)
    main.prepare(cfg)


def train_recipe(recipe: Recipe, fold: int) -> Path:
    """Return the folder of the recipe's network, which is trained unless it exists."""
    cfg = recipe.cfg
    record = network_made_from(cfg, fold, recipe.files + recipe.val_files)
    for folder in (model_folder(cfg, fold, ood) for ood in (False, True)):
        found = record_of(folder)
        if found.content and not found.out_of_date(record) and is_kept(folder, record):
            return folder  # trained by main.py
    key = digest(json.dumps(record, sort_keys=True))[:12]
    folder = cfg.workspace / "studies" / f"{fold}_{cfg.model_name}_{key}"
    train_fold(cfg, fold, recipe.files, recipe.val_files, folder)
    return folder


def seeds_of(cfg: StudyConfig) -> range:
    """Return the seeds that the study trains with."""
    return range(cfg.seed, cfg.seed + cfg.seeds)


def chosen(cfg: ArmsConfig, arms: dict[str, Any], references: Iterable[str]) -> dict[str, Any]:
    """Return the arms that cfg names, and the references, with their values in `arms`."""
    if unknown := [name for name in cfg.arms if name not in arms]:
        raise UserError(f"arms: {unknown[0]!r} is not one of {', '.join(arms)}")
    wanted = {*cfg.arms, *references} if cfg.arms else set(arms)
    return {name: arm for name, arm in arms.items() if name in wanted}


def run_arms(cfg: StudyConfig, arms: dict[str, Arm], results: Path | None = None) -> Results:
    """Return the results of every arm, fold and seed; with --plan, print the plan and return {}.

    results: the folder of finished trainings, if any.
    """
    found: Results = {}
    planned: dict[tuple, tuple[str, int, Recipe]] = {}
    for seed in seeds_of(cfg):
        for fold in cfg.folds:
            for name, arm in arms.items():
                seeded = replace(cfg, seed=seed)
                kept = None if results is None else path_of(seeded, results, name, fold)
                if kept and not cfg.plan and (done := read_result(kept)):
                    print(f"--- {name}, fold {fold}, seed {seed}: {kept}")
                    found.setdefault(name, {})[fold, seed] = done
                    continue
                recipe = arm(seeded, fold)
                if recipe is None:
                    print(f"--- {name}, fold {fold}, seed {seed}: skipped: no such patch")
                    continue
                if cfg.plan:
                    same = (fold, recipe.cfg, tuple(recipe.files))
                    planned.setdefault(same, (name, fold, recipe))
                    continue
                print(f"--- {name}, fold {fold}, seed {seed}")
                folder = train_recipe(recipe, fold)
                tested = score_networks(recipe.cfg, {name: folder}, recipe.test, f"fold {fold}")
                floor = "all_background"
                result = Result(
                    *(recipe.cfg.model_name, folder, recipe.sizes),
                    *(tested.scores[name], tested.scores[floor], tested.counts[name]),
                    {"network": tested.patchwise[name], "floor": tested.patchwise[floor]},
                )
                found.setdefault(name, {})[fold, seed] = result
                if kept:
                    write_result(kept, cfg, result)
    if cfg.plan:
        print_plan(planned.values())
    return found


def print_plan(planned: Iterable[tuple[str, int, Recipe]]) -> None:
    """Print a row for each training, and the estimated hours of all of them on this machine."""
    header = ["training", "network", "fold", "seed", "ID", "OoD", "epochs", "steps", "hours"]
    rows, total = [], 0.0
    for name, fold, recipe in planned:
        cfg = recipe.cfg
        of_network = replace(cfg, seed=0, epochs=1, ood_source=None)  # a step's time is the same
        hours = recipe.steps * step_seconds(of_network) / 3600
        total += hours
        sizes = recipe.sizes["id_patches"], recipe.sizes["ood_patches"]
        numbers = (fold, cfg.seed, *sizes, cfg.epochs, recipe.steps)
        rows.append([name, cfg.model_name, *map(str, numbers), f"{hours:.2f}"])
    print(markdown(header, rows))
    print(
        f"{len(rows)} trainings, {total:.1f} hours if none exists yet. The estimate comes from"
        f" {TIMED_STEPS} timed steps of each network on this machine, without mining and testing."
        " It counts all OoD patches as hard: which ones are is known only after mining."
    )
