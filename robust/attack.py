"""Attack the networks of every fold on its test patches: their scores under attack.

Reads   models/<fold>_<model>/ and, where trained, ..._ood/ and ..._free/
        Image_Patchs and Mask_Patchs of the fold's test patches
Writes  reports/robust/<model>/scores.json        by fold, network, eps and attack
        reports/robust/<model>/index.html         the page, with its figures in one file
        reports/robust/<model>/table.md           and the figures alone
        reports/robust/<model>/corruptions.json   with --corruptions: by kind and strength
        reports/robust/<model>/differences.json   each network less the first, as fractions
        reports/robust/<model>/parts/             the results of each batch, to continue from
        reports/robust/checkpoints/<name>/        the same, of checkpoints on the command line

`python robust/attack.py --checkpoint A` attacks only that network; a second one is compared.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from config import Config, UserError
from estimate_pct import pixels_of
from medood.commands import as_kind
from medood.data.folds import Fold
from medood.data.workspace import id_files, weights_of
from medood.processes import is_main
from medood.runs.command_line import run
from medood.runs.provenance import require
from robust.settings import AttackConfig, FreeConfig
from robust.train_free import FREE
from test import folds_to_test, named, networks


def attack(cfg: AttackConfig) -> None:
    """Attack the networks of every fold; write scores, tables, figures and the page."""
    of_name = named(cfg.checkpoint)
    if cfg.quick:
        cfg = quick(cfg)
    # here, so that --help needs no torch
    from medood.evaluation.report import report_folder
    from robust.attacked import trials_of, try_fold
    from robust.report import write_report

    folders = networks(cfg, of_name)
    folds = folds_to_test(cfg, folders, of_name)
    if not of_name:
        folders = with_free(cfg, folders, folds)
    out = report_folder(cfg, of_name, "reports/robust")
    trials = trials_of(cfg)
    found = {kind: {} for kind in trials}
    for fold, patches in folds.items():
        names = spread_out(with_sure_pixels(cfg, patches.test), cfg.patches, cfg.seed)
        for kind, trial in trials.items():
            tried = try_fold(cfg, folders[fold], names, fold, out / "parts" / kind, trial)
            found[kind][fold] = tried
    if is_main():
        write_report(cfg, found, out, one_training=bool(of_name))


def quick(cfg: AttackConfig) -> AttackConfig:
    """Return the settings of a first test, no larger than they were."""
    steps, queries, patches = min(cfg.steps, 10), min(cfg.queries, 100), min(cfg.patches or 16, 16)
    return replace(cfg, eps=(max(cfg.eps),), steps=steps, queries=queries, patches=patches)


def with_free(
    cfg: Config, folders: dict[int, dict[str, Path]], folds: dict[int, Fold]
) -> dict[int, dict[str, Path]]:
    """Return the networks of each fold, and that of robust/train_free.py if every fold has one.

    Raises UserError for one that was trained on test patches, or that was not trained with the
    current settings and patches and with eps and replays of the first.
    """
    from medood.models.checkpoints import has_seen, read_run

    free = {fold: FREE.path(cfg, fold) for fold in folders}
    ways = [read_run(path).get("made_from", {}).get("free") for path in free.values()]
    way = next(filter(None, ways), {})  # eps and replays; {} if all are user-supplied
    of_free = replace(as_kind(cfg, FreeConfig), **way)
    missing = [fold for fold, path in free.items() if not weights_of(path).is_file()]
    if missing:
        if len(missing) < len(free):
            again = FREE.cure(of_free, missing[0])
            print(f"the free networks are skipped, as one is missing: for it, run `{again}`")
        return folders
    require(of_free, FREE)
    for fold, path in free.items():
        if has_seen(path, folds[fold].test, cfg.patch_size):
            again = FREE.cure(of_free, fold)
            raise UserError(f"{path} was trained on patches that fold {fold} tests: run `{again}`")
    return {fold: {**of_fold, "free": free[fold]} for fold, of_fold in folders.items()}


def with_sure_pixels(cfg: Config, names: list[str]) -> list[str]:
    """Return the patches with a sure pixel; UserError if there is none."""
    counts = pixels_of(cfg, id_files(cfg.workspace, names))[1]
    known = [name for name, sure in zip(names, counts, strict=True) if sure]
    if not known:
        raise UserError("every pixel of the test patches is unsure: check Mask_Patchs")
    return known


def spread_out(names: list[str], most: int | None, seed: int) -> list[str]:
    """Return at most `most` names: a random one from each of equal parts of their order.

    They are ordered by region, and then by place: equal steps would take one corner of each.
    """
    count = min(most or len(names), len(names))
    rng = np.random.default_rng(seed)
    return [str(rng.choice(part)) for part in np.array_split(sorted(names), count)]


if __name__ == "__main__":
    run(attack, AttackConfig())
