"""Attack the networks of every fold on its test patches: how much of their scores survives.

Reads   models/<fold>_<model>/ and, where trained, ..._ood/ and ..._free/
        Image_Patchs and Mask_Patchs of the fold's test patches
Writes  reports/robust/<model>/scores.json        by fold, network, eps and attack
        reports/robust/<model>/table.md, figures, and a section in reports/<model>/index.html
        reports/robust/<model>/differences.json   each network less the first, as fractions
        reports/robust/<model>/parts/             what each batch gave, to go on from
        reports/robust/checkpoints/<name>/        the same, of checkpoints on the command line

`python robust/attack.py --checkpoint A` attacks that network alone; a second one is compared.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from config import Config, UserError
from medood.data.folds import Fold
from medood.data.workspace import free_folder, weights_of
from medood.processes import is_main
from medood.runs.command_line import run
from robust.settings import AttackConfig
from test import folds_to_test, named, networks


def attack(cfg: AttackConfig) -> None:
    """Attack the networks of every fold; write scores, tables, figures and the report's section."""
    of_name = named(cfg.checkpoint)
    if cfg.quick:
        cfg = quick(cfg)
    # here, so that --help needs no torch
    from medood.evaluation.report import report_folder, robust_folder
    from robust.attacked import attack_fold
    from robust.report import write_report

    folders = networks(cfg, of_name)
    folds = folds_to_test(cfg, folders, of_name)
    if not of_name:
        folders = with_free(cfg, folders, folds)
    report = report_folder(cfg, of_name)
    parts = robust_folder(cfg, report) / "parts"
    found = {}
    for fold, patches in folds.items():
        names = spread_out(patches.test, cfg.patches, cfg.seed)
        found[fold] = attack_fold(cfg, folders[fold], names, fold, parts)
    if is_main():
        write_report(cfg, folders, found, report, one_training=bool(of_name))


def quick(cfg: AttackConfig) -> AttackConfig:
    """Return the settings of a first look: a minute for each network on two cores."""
    steps, queries, patches = min(cfg.steps, 10), min(cfg.queries, 100), min(cfg.patches or 16, 16)
    return replace(cfg, eps=(max(cfg.eps),), steps=steps, queries=queries, patches=patches)


def with_free(
    cfg: Config, folders: dict[int, dict[str, Path]], folds: dict[int, Fold]
) -> dict[int, dict[str, Path]]:
    """Return the networks of each fold, and that of robust/train_free.py if every fold has one.

    Raises UserError for one that was trained on patches that its fold tests now.
    """
    from medood.models.checkpoints import has_seen

    free = {fold: free_folder(cfg, fold) for fold in folders}
    missing = [path for path in free.values() if not weights_of(path).is_file()]
    if missing:
        if len(missing) < len(free):
            print(f"{missing[0]} is missing: the networks of train_free.py are left out")
        return folders
    for fold, path in free.items():
        if has_seen(cfg, path, folds[fold].test):
            raise UserError(
                f"{path} was trained on patches that fold {fold} tests now: train it again, or put"
                " the fold's list back"
            )
    return {fold: {**of_fold, "free": free[fold]} for fold, of_fold in folders.items()}


def spread_out(names: list[str], most: int | None, seed: int) -> list[str]:
    """Return at most so many names: a random one of each of equal stretches of their order.

    They are ordered by region, and then by place: equal steps would take one corner of each.
    """
    count = min(most or len(names), len(names))
    rng = np.random.default_rng(seed)
    return [str(rng.choice(part)) for part in np.array_split(sorted(names), count)]


if __name__ == "__main__":
    run(attack, AttackConfig())
