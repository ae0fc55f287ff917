"""Train a lattice or a U-Net on the volumes of an MSD task: clean, free or with OoD volumes.

Reads   the task's folder: dataset.json, imagesTr, labelsTr
        <workspace>/<task>/models/<fold>_<network>/     with --free or --ood: the clean network
Writes  <workspace>/<task>/models/<fold>_<network>[_free][_ood]/    weights, plan, settings, log
        <workspace>/<task>/HardOoD/<fold>_<network>.csv             with --ood: the ranking

Free adversarial training (see train_free.py) continues from the clean network. Epochs are divided
by the replays: it takes as long as the clean training.

With --ood, training volumes are mined without their foreground, as Med-OoD mines patches: those in
which the clean network predicts foreground, the hardest first, are added with background as their
ground truth, until the ratio of positive to negative volumes is nearest to pnr_opt.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from medood.data.files import fingerprint, timed
from medood.data.records import is_kept, record_of, refuse_unusable
from medood.data.workspace import weights_of
from medood.runs.command_line import run
from medood.runs.products import Product, settings_of
from robust.settings import TrainVolumesConfig

if TYPE_CHECKING:
    from robust.volumes import Case, Spacing, Task

# the settings that decide a network, apart from its volumes
DECIDING = ("network", "free", "ood", "epochs", "batch_size", "lr", "seed", "precision")
OF_FREE = ("eps", "replays")
OF_OOD = ("ood_fill", "ood_weight", "pnr_opt", "pct_grid")


def network_folder(cfg: TrainVolumesConfig, fold: int) -> Path:
    """Return where the network of a fold is."""
    return cfg.home / "models" / f"{fold}_{cfg.model_name}"


def clean_of(cfg: TrainVolumesConfig) -> TrainVolumesConfig:
    """Return the settings of the clean network that training starts from or mines with."""
    return replace(cfg, free=False, ood=False)


def _of_network(cfg: TrainVolumesConfig, fold: int) -> dict:
    from robust.nifti import AXES  # not for --help
    from robust.volumes import read_task, split_cases

    cases, _ = split_cases(read_task(cfg.data).cases, fold, cfg.seed)
    clean: str | None = "not used"
    if cfg.free or cfg.ood:
        weights = weights_of(network_folder(clean_of(cfg), fold))
        clean = fingerprint([weights]) if weights.exists() else None
    return {
        "settings": settings_of(cfg, DECIDING + OF_FREE * cfg.free + OF_OOD * cfg.ood),
        "fold": fold,
        "axes": AXES,
        "inputs": fingerprint(path for case in cases for path in (case.image, case.label)),
        "clean": clean,
    }


NETWORK = Product(
    *("network", network_folder, (), _of_network),
    *("robust/train_volumes.py", TrainVolumesConfig),
)


def train_volumes(cfg: TrainVolumesConfig) -> None:
    """Train the network of every fold."""
    from robust.volumes import check_cases, read_task, split_cases  # not for --help

    task = read_task(cfg.data)
    spacings = check_cases(task)  # all of them: a bad one is found before the first training
    for fold in cfg.folds:
        cases, _ = split_cases(task.cases, fold, cfg.seed)
        train_fold(cfg, fold, task, cases, [spacings[case.name] for case in cases])


def train_fold(
    cfg: TrainVolumesConfig, fold: int, task: Task, cases: list[Case], spacings: list[Spacing]
) -> None:
    """Train the network of a fold on its cases, unless it exists and is current."""
    from robust.volume_training import add_oods, train_segmenter
    from robust.volumes import make_plan, on_disk, read_volume, resample

    clean = network_folder(clean_of(cfg), fold)
    if cfg.free or cfg.ood:  # the clean network may have settings of its own
        refuse_stale(trained_with(clean_of(cfg), fold) or clean_of(cfg), fold)
    folder, made_from = network_folder(cfg, fold), NETWORK.made_from(cfg, fold)
    if is_kept(folder, made_from):
        return
    with timed(cfg.home, f"training {folder.name}"):
        spacing = tuple(map(statistics.median, zip(*spacings, strict=True)))
        cfg.home.mkdir(parents=True, exist_ok=True)
        # on the disk: all of them may not fit into memory
        with TemporaryDirectory(prefix=f".{folder.name}_", dir=cfg.home) as aside:
            keep = partial(on_disk, Path(aside))
            volumes = [keep(resample(read_volume(task, case), spacing)) for case in cases]
            plan = make_plan(volumes, len(task.class_names))
            if cfg.ood:
                volumes += map(keep, add_oods(cfg, fold, clean, volumes, task.class_names))
            start = clean if cfg.free else None
            train_segmenter(cfg, fold, task, volumes, plan, folder, made_from, start)


def trained_with(cfg: TrainVolumesConfig, fold: int) -> TrainVolumesConfig | None:
    """Return the settings of this run with those that the network was trained with.

    The seed is this run's: it splits the volumes. None for a user-supplied network.
    """
    record = record_of(network_folder(cfg, fold))
    if not record.content or not record.content["made_from"]:
        return None
    known = {*DECIDING, *OF_FREE, *OF_OOD} - {"seed"}
    pairs = record.content["made_from"]["settings"].items()
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in pairs if n in known}
    return replace(cfg, **values)


def refuse_stale(cfg: TrainVolumesConfig, fold: int) -> None:
    """Raise UserError unless the network exists and is current with these settings."""
    made_from, again = (partial(of, cfg, fold) for of in (NETWORK.made_from, NETWORK.cure))
    refuse_unusable(record_of(network_folder(cfg, fold)), made_from, again)


if __name__ == "__main__":
    run(train_volumes, TrainVolumesConfig(), lambda cfg: cfg.home)
