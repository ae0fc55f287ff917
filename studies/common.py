"""What the studies share: recipes of trainings, each carried out once, and what is made of them.

A study names its arms. An arm turns settings and a fold into a recipe: the settings of a training,
its patches and those it is tested on. `run_arms` trains every recipe for every fold and seed, or,
with --plan, only lists them. A network is filed under a hash of all that decides it, so the
baseline of one study is that of the next, and what main.py trained is not trained again.

    <workspace>/studies/<fold>_<model>_<hash>/     networks
    <workspace>/reports/studies/<study>_<model>.*  CSV, JSON, Markdown and figure of a study
"""

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from config import Config, UserError
from estimate_pct import choose_pct, count_samples, foreground_of, pnr
from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels
from generate_unfiltered_oods import generate_unfiltered_oods
from medood.data.files import csv_text, digest, write_json, write_text
from medood.data.folds import read_fold
from medood.data.ood_set import ood_candidates
from medood.data.workspace import (
    Pair,
    data_name,
    id_files,
    model_folder,
    ood_files,
    region_labels,
    require_data,
)
from medood.evaluation.scores import RegionCounts
from medood.evaluation.statistics import Difference, paired_differences
from medood.evaluation.tables import INTERVAL, SCORES, markdown
from medood.evaluation.testing import score_networks
from medood.models.checkpoints import read_run, versions
from medood.models.network import build_model, pick_device
from medood.processes import world_size
from medood.runs.provenance import network_made_from, plain_settings
from medood.training.batches import batches
from medood.training.loop import train_fold
from medood.training.step import TIMED_STEPS, step_seconds
from rank_prune_ood import rank_files


@dataclass(frozen=True)
class StudyConfig(Config):
    """The settings, and what every study takes."""

    seeds: int = 1
    """Trainings of each kind, with seeds `seed`, `seed` + 1 and so on; `seed` deals the folds."""
    plan: bool = False
    """List the trainings with their patches, steps and estimated hours, and train nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1:
            raise UserError(f"seeds = {self.seeds} must be at least 1")


@dataclass(frozen=True)
class Recipe:
    """One training, and the patches that test it."""

    cfg: Config
    files: list[Pair]
    val_files: list[Pair]
    test: list[str]
    notes: dict = field(default_factory=dict)  # what the tables say of it, such as its pnr

    @property
    def ood_patches(self) -> int:
        """The patches whose truth is background everywhere by construction."""
        return sum(mask is None for _, mask in self.files)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.cfg.epochs * len(batches(self.cfg, 0, 0, len(self.files)))


# from settings, their seed set, and a fold; None where the fold has no patches of the arm's kind
Arm = Callable[[StudyConfig, int], Recipe | None]


@dataclass(frozen=True)
class Result:
    """A recipe carried out."""

    recipe: Recipe
    folder: Path
    scores: dict
    floor: dict
    counts: RegionCounts
    patchwise: dict[str, list[float]]  # IoU by class, of this network and of `all_background`


Results = dict[str, dict[tuple[int, int], Result]]  # by arm, then by fold and seed


# ---------------------------------------------------------------- recipes


def baseline(cfg: StudyConfig, fold: int) -> Recipe:
    """Return the training on the ID patches of a fold."""
    train, val, test = read_fold(cfg, fold)
    positives, negatives = count_id(cfg, tuple(train))
    notes = {"pct": 0.0, "pnr": pnr(positives, negatives, 0)}
    return Recipe(cfg, id_files(cfg, train), id_files(cfg, val), test, notes)


def med_ood(cfg: StudyConfig, fold: int, pct: float | None = None) -> Recipe:
    """Return Med-OoD's training on a fold, with the estimated pct or the given one."""
    plain = baseline(cfg, fold)
    hard, _ = mine(cfg, fold, candidates(cfg, fold))
    train = tuple(read_fold(cfg, fold).train)
    positives, negatives = count_id(cfg, train)
    grid = cfg.pct_grid if pct is None else (pct,)
    best, _ = choose_pct(positives, negatives, len(hard), grid, cfg.pnr_opt)
    notes = {"pct": best["pct"], "pnr": best["pnr"], "hard": len(hard)}
    return replace(plain, files=plain.files + hard[: best["ood_patches"]], notes=notes)


def candidates(cfg: Config, fold: int) -> list[Pair]:
    """Return the OoD patches of a fold that are to be mined."""
    return ood_files(cfg, ood_candidates(cfg, read_fold(cfg, fold).train))


def mine(cfg: StudyConfig, fold: int, files: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Return the OoD patches in which the fold's baseline sees nuclei, hardest first, and the rest.

    A plan takes all of them for hard: which are is not known before the baseline is trained.
    """
    return (files, []) if cfg.plan else _mine(cfg, fold, tuple(files))


@functools.cache
def _mine(cfg: StudyConfig, fold: int, files: tuple[Pair, ...]) -> tuple[list[Pair], list[Pair]]:
    network = train_recipe(baseline(cfg, fold), fold)
    of_name = {image.name: (image, mask) for image, mask in files}
    rows = rank_files(cfg, network, list(files), f"fold {fold}: mining")
    kept, pruned = ([of_name[row[1]] for row in rows if row[-1] == kept] for kept in (1, 0))
    return kept, pruned


@functools.cache
def count_id(cfg: Config, names: tuple[str, ...]) -> tuple[int, int]:
    """Return positives and negatives among ID patches."""
    return count_samples(foreground_of(cfg, names), cfg.patch_size**2)


# ---------------------------------------------------------------- carrying them out


def prepare(cfg: StudyConfig, networks: Iterable[Config] = ()) -> None:
    """Make patches, folds and OoD patches where they are not there yet, as main.py does.

    networks: the settings whose networks will be trained, if not those of `cfg`. A wrong encoder,
    or weights out of reach, show now and not after days; a plan needs no weights.
    """
    if world_size() > 1:
        raise UserError("a study runs in one process: start it without torchrun")
    require_data(cfg)
    pick_device(cfg)
    for network in networks or [cfg]:
        build_model(replace(network, encoder_weights="none") if cfg.plan else network)
    if region_labels(cfg):
        generate_semantic_labels(cfg)
    generate_patches(cfg)
    generate_unfiltered_oods(cfg)


def train_recipe(recipe: Recipe, fold: int) -> Path:
    """Return the folder of the trained network; one that is there already is kept."""
    cfg = recipe.cfg
    record = network_made_from(cfg, fold, recipe.files + recipe.val_files)
    for folder in (model_folder(cfg, fold, ood) for ood in (False, True)):
        if read_run(folder).get("made_from") == record:
            return folder  # trained by main.py
    key = digest(json.dumps(record, sort_keys=True).encode())[:12]
    folder = cfg.workspace / "studies" / f"{fold}_{cfg.model_name}_{key}"
    train_fold(cfg, fold, recipe.files, recipe.val_files, folder)
    return folder


def seeds_of(cfg: StudyConfig) -> range:
    """Return the seeds that the study trains with."""
    return range(cfg.seed, cfg.seed + cfg.seeds)


def run_arms(cfg: StudyConfig, arms: dict[str, Arm]) -> Results:
    """Return the results of every arm, fold and seed; print the plan and return {} with --plan."""
    results: Results = {}
    planned: dict[tuple, tuple[str, int, Recipe]] = {}
    for seed in seeds_of(cfg):
        for fold in cfg.folds:
            for name, arm in arms.items():
                recipe = arm(replace(cfg, seed=seed), fold)
                if recipe is None:
                    print(f"--- {name}, fold {fold}, seed {seed}: left out, there is no such patch")
                    continue
                if cfg.plan:
                    same = (fold, recipe.cfg, tuple(recipe.files))
                    planned.setdefault(same, (name, fold, recipe))
                    continue
                print(f"--- {name}, fold {fold}, seed {seed}")
                folder = train_recipe(recipe, fold)
                tested = score_networks(recipe.cfg, {name: folder}, recipe.test, f"fold {fold}")
                results.setdefault(name, {})[fold, seed] = Result(
                    recipe,
                    folder,
                    tested.scores[name],
                    tested.scores["all_background"],
                    tested.counts[name],
                    {
                        "network": tested.patchwise[name],
                        "floor": tested.patchwise["all_background"],
                    },
                )
    if cfg.plan:
        print_plan(planned.values())
    return results


def print_plan(planned: Iterable[tuple[str, int, Recipe]]) -> None:
    """Print a row for each training, and how long all of them take on this machine."""
    header = ["training", "network", "fold", "seed", "ID", "OoD", "epochs", "steps", "hours"]
    rows, total = [], 0.0
    for name, fold, recipe in planned:
        cfg = recipe.cfg
        of_network = replace(cfg, seed=0, epochs=1, ood_source=None)  # a step's time is the same
        hours = recipe.steps * step_seconds(of_network) / 3600
        total += hours
        sizes = len(recipe.files) - recipe.ood_patches, recipe.ood_patches
        numbers = (fold, cfg.seed, *sizes, cfg.epochs, recipe.steps)
        rows.append([name, cfg.model_name, *map(str, numbers), f"{hours:.2f}"])
    print(markdown(header, rows))
    print(
        f"{len(rows)} trainings, {total:.1f} hours if none is there yet: from {TIMED_STEPS} steps"
        " of each network timed on this machine, without mining and testing. Which OoD patches are"
        " hard shows after mining only: the plan takes all of them for hard."
    )


# ---------------------------------------------------------------- what is made of them


def compare(results: Results, arm: str, against: str) -> dict[str, Difference]:
    """Return the paired differences of two arms over the folds and seeds that both have."""
    both = [key for key in results[arm] if key in results[against]]
    if not both:
        raise UserError(f"no fold in which both {arm} and {against} could be trained")
    classes = results[arm][both[0]].recipe.cfg.class_names
    return paired_differences(
        *([results[name][key].counts for key in both] for name in (arm, against)), classes
    )


def patchwise(results: dict[tuple[int, int], Result], of: str, value: int) -> list[float]:
    """Return the patch by patch IoU of a class of an arm, or of its floor, over folds and seeds."""
    return [result.patchwise[of][value] for result in results.values()]


def values(results: dict[tuple[int, int], Result], name: str) -> list[float | None]:
    """Return a score, or a note of the recipe, of an arm over its folds and seeds."""
    if name.startswith("IoU "):
        return [
            result.scores["iou"][result.recipe.cfg.class_names.index(name[4:])]
            for result in results.values()
        ]
    return [result.scores.get(name, result.recipe.notes.get(name)) for result in results.values()]


def figure_title(cfg: StudyConfig, text: str) -> str:
    """Return the title of a study's figure: on which data, what, and how long trained."""
    return f"{data_name(cfg.workspace)}, {cfg.epochs} epochs\n{text}"


def by_class(cfg: Config, results: Results) -> dict[str, dict[str, list[float | None]]]:
    """Return the IoU of every class, background included, of each arm: what draw_bars takes."""
    return {
        arm: {name: values(of_arm, f"IoU {name}") for name in cfg.class_names}
        for arm, of_arm in results.items()
    }


def write_study(
    cfg: StudyConfig,
    study: str,
    results: Results,
    tables: dict[str, str],
    differences: dict[str, dict[str, Difference]],
    paper: object = None,
) -> Path:
    """Print the tables; write them, every single score and the differences under reports/studies.

    tables: Markdown by caption. differences: by what is compared. paper: the paper's numbers.
    Returns the path of the study's files, less their ending: named after the network if it is one.
    """
    every = [result for of_arm in results.values() for result in of_arm.values()]
    networks = sorted({result.recipe.cfg.model_name for result in every})
    # several networks are one study's matter; one network's must not overwrite another's
    name = f"{study}_{networks[0]}" if len(networks) == 1 else study
    out = cfg.workspace / "reports" / "studies" / name
    seeds = ", ".join(map(str, seeds_of(cfg)))
    title = (
        f"{data_name(cfg.workspace)}. {study}: {', '.join(networks)}, {cfg.epochs} epochs,"
        f" folds {', '.join(map(str, cfg.folds))}, seeds {seeds}, split {cfg.split};"
        f" percent, mean ± standard deviation; differences {INTERVAL}"
    )
    text = "\n".join([f"{title}\n", *(f"{part}\n\n{table}" for part, table in tables.items())])
    print(f"\n{text}")
    notes = sorted(
        {note for arm in results.values() for r in arm.values() for note in r.recipe.notes}
    )
    classes = [f"IoU {name}" for name in cfg.class_names]
    header = ["arm", "network", "fold", "seed", "id_patches", "ood_patches", "steps"]
    rows = [
        [
            *(arm, result.folder.name, fold, seed),
            len(result.recipe.files) - result.recipe.ood_patches,
            *(result.recipe.ood_patches, result.recipe.steps),
            *(result.recipe.notes.get(note, "") for note in notes),
            *(result.scores[name] for name in SCORES),
            *result.scores["iou"],
            result.floor["miou_paper"],
        ]
        for arm, of_arm in results.items()
        for (fold, seed), result in of_arm.items()
    ]
    columns = [*header, *notes, *SCORES, *classes, "floor_miou_paper"]
    write_text(Path(f"{out}.csv"), csv_text(columns, rows))
    content = {
        "data": data_name(cfg.workspace),
        "settings": plain_settings(cfg) | {"seeds": cfg.seeds},
        "versions": versions(),
        "rows": [dict(zip(columns, row, strict=True)) for row in rows],
        "differences": {
            pair: {name: difference.plain() for name, difference in of_pair.items()}
            for pair, of_pair in differences.items()
        },
        "paper": paper,
    }
    write_json(Path(f"{out}.json"), content)
    write_text(Path(f"{out}.md"), text)
    return out
