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
from estimate_pct import pixels_of
from medood.commands import command
from medood.data.folds import Fold
from medood.data.records import changes, record_of, refuse_unusable
from medood.data.workspace import free_folder, id_files, weights_of
from medood.processes import is_main
from medood.runs.command_line import run
from medood.runs.products import network_made_from
from robust.settings import AttackConfig, FreeConfig
from test import folds_to_test, named, networks


def attack(cfg: AttackConfig) -> None:
    """Attack the networks of every fold; write scores, tables, figures and the report's section."""
    of_name = named(cfg.checkpoint)
    if cfg.quick:
        cfg = quick(cfg)
    # here, so that --help needs no torch
    from medood.evaluation.report import report_folder, robust_folder, subject_of
    from robust.attacked import attack_fold
    from robust.report import write_report

    folders = networks(cfg, of_name)
    folds = folds_to_test(cfg, folders, of_name)
    subject = subject_of(cfg, folders, folds)
    if not of_name:
        folders = with_free(cfg, folders, folds)
    report = report_folder(cfg, of_name)
    parts = robust_folder(cfg, report) / "parts"
    found = {}
    for fold, patches in folds.items():
        names = spread_out(with_sure_pixels(cfg, patches.test), cfg.patches, cfg.seed)
        found[fold] = attack_fold(cfg, folders[fold], names, fold, parts)
    if is_main():
        write_report(cfg, folders, found, report, subject, one_training=bool(of_name))


def quick(cfg: AttackConfig) -> AttackConfig:
    """Return the settings of a first look, no larger than they were."""
    steps, queries, patches = min(cfg.steps, 10), min(cfg.queries, 100), min(cfg.patches or 16, 16)
    return replace(cfg, eps=(max(cfg.eps),), steps=steps, queries=queries, patches=patches)


def with_free(
    cfg: Config, folders: dict[int, dict[str, Path]], folds: dict[int, Fold]
) -> dict[int, dict[str, Path]]:
    """Return the networks of each fold, and that of robust/train_free.py if every fold has one.

    Raises UserError for one that other settings or patches than now's would give, and where folds
    were trained in different ways.
    """
    free = {fold: free_folder(cfg, fold) for fold in folders}
    missing = [fold for fold, path in free.items() if not weights_of(path).is_file()]
    if missing:
        if len(missing) < len(free):
            path, again = free[missing[0]], train_free_of(cfg, missing[0], {})
            print(f"{path} is missing: the free networks are left out: for them, run `{again}`")
        return folders
    for fold, path in free.items():
        refuse_stale(cfg, fold, path, folds[fold])
    first, *others = free
    for fold in others:
        if why := changes(way_of(free[first]), way_of(free[fold])):
            again = train_free_of(cfg, fold, way_of(free[first]))
            raise UserError(
                f"{free[fold]} was not trained like {free[first]} ({', '.join(why)}): run `{again}`"
                " again"
            )
    return {fold: {**of_fold, "free": free[fold]} for fold, of_fold in folders.items()}


def refuse_stale(cfg: Config, fold: int, network: Path, patches: Fold) -> None:
    """Raise UserError if train_free.py would make another network of a fold now."""
    from medood.models.checkpoints import has_seen
    from robust.free import replayed

    free = way_of(network)
    again = train_free_of(cfg, fold, free)
    if has_seen(cfg, network, patches.test):
        raise UserError(f"{network} saw patches that fold {fold} tests now: run `{again}` again")
    if free:  # else it is the user's own
        files = id_files(cfg.workspace, patches.train + patches.val)
        now = network_made_from(replayed(cfg, free["replays"]), fold, files) | {"free": free}
        refuse_unusable(record_of(network), lambda: now, lambda: again)


def way_of(network: Path) -> dict:
    """Return eps and replays of a network of train_free.py; {} for one of the user's."""
    from medood.models.checkpoints import read_run

    return read_run(network).get("made_from", {}).get("free", {})


def train_free_of(cfg: Config, fold: int, way: dict) -> str:
    """Return the command that trains the free network of a fold. way: its eps and replays."""
    return command(cfg, "robust/train_free.py", FreeConfig, folds=(fold,), **way)


def with_sure_pixels(cfg: Config, names: list[str]) -> list[str]:
    """Return the patches of which a pixel is sure; UserError if there is none."""
    known = [name for name, sure in zip(names, pixels_of(cfg, names)[1], strict=True) if sure]
    if not known:
        raise UserError("every pixel of the test patches is unsure: look at Mask_Patchs")
    return known


def spread_out(names: list[str], most: int | None, seed: int) -> list[str]:
    """Return at most so many names: a random one of each of equal stretches of their order.

    They are ordered by region, and then by place: equal steps would take one corner of each.
    """
    count = min(most or len(names), len(names))
    rng = np.random.default_rng(seed)
    return [str(rng.choice(part)) for part in np.array_split(sorted(names), count)]


if __name__ == "__main__":
    run(attack, AttackConfig())
