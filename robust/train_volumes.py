"""Train a lattice or a U-Net on the volumes of an MSD task: clean, free or with OoD volumes.

Reads   the task's folder: dataset.json, imagesTr, labelsTr
        <workspace>/<task>/models/<fold>_<network>/     with --free or --ood: the clean network
Writes  <workspace>/<task>/models/<fold>_<network>[_free][_ood]/    weights, plan, settings, log
        <workspace>/<task>/HardOoD/<fold>_<network>.csv             with --ood: the ranking

Free adversarial training (Shafahi et al. 2019) continues from the clean network. It replays every
batch; each backward pass updates the weights and the noise that is added to the batch, and the
noise persists to the next batch. Epochs are divided by the replays: it takes as long as the clean
training.

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

from medood.commands import as_kind, command
from medood.data.files import fingerprint, timed
from medood.data.records import is_kept, record_of, refuse_unusable
from medood.data.workspace import weights_of
from medood.runs.command_line import run
from medood.runs.products import settings_of
from robust.settings import TrainVolumesConfig, VolumeConfig

if TYPE_CHECKING:
    from robust.volumes import Case, Spacing, Task

# the settings that decide a network, apart from its volumes
DECIDING = ("network", "free", "ood", "epochs", "batch_size", "lr", "seed", "precision")
OF_FREE = ("eps", "replays")
OF_OOD = ("ood_fill", "ood_weight", "pnr_opt", "pct_grid")


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
    from robust.volume_oods import add_oods
    from robust.volume_training import train_segmenter
    from robust.volumes import make_plan, on_disk, read_volume, resample

    clean = clean_of(cfg, fold)
    if clean:
        plain = trained_with(cfg, fold, cfg.network) or replace(cfg, free=False, ood=False)
        refuse_stale(plain, fold, cfg.network, cases)
    folder = model_folder(cfg, fold, cfg.model_name)
    made_from = network_made_from(cfg, fold, cases)
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


def model_folder(cfg: VolumeConfig, fold: int, network: str) -> Path:
    """Return where a network of a fold is. network: such as `unet_free`."""
    return cfg.home / "models" / f"{fold}_{network}"


def clean_of(cfg: TrainVolumesConfig, fold: int) -> Path | None:
    """Return the folder of the clean network that training starts from or mines with, or None."""
    return model_folder(cfg, fold, cfg.network) if cfg.free or cfg.ood else None


def again_of(cfg: TrainVolumesConfig, fold: int) -> str:
    """Return the command that trains the network of a fold."""
    return command(cfg, "robust/train_volumes.py", TrainVolumesConfig, folds=(fold,))


def trained_with(cfg: VolumeConfig, fold: int, network: str) -> TrainVolumesConfig | None:
    """Return the settings of this run with those that a network was trained with.

    The seed is this run's: it splits the volumes. None for a user-supplied network.
    """
    made_from = (record_of(model_folder(cfg, fold, network)).content or {}).get("made_from")
    if not made_from:
        return None
    names = {*DECIDING, *OF_FREE, *OF_OOD} & made_from["settings"].keys() - {"seed"}
    known = {name: made_from["settings"][name] for name in names}
    known |= {"pct_grid": tuple(known["pct_grid"])} if "pct_grid" in known else {}
    return replace(as_kind(cfg, TrainVolumesConfig), **known)


def refuse_stale(cfg: TrainVolumesConfig, fold: int, network: str, cases: list[Case]) -> None:
    """Raise UserError unless a network exists and is current with these settings.

    cases: the volumes on the training side of the fold.
    """
    record = record_of(model_folder(cfg, fold, network))
    made_from = partial(network_made_from, cfg, fold, cases)
    refuse_unusable(record, made_from, again_of(cfg, fold))


def network_made_from(cfg: TrainVolumesConfig, fold: int, cases: list[Case]) -> dict:
    """Return what decides a network, as in its record."""
    from robust.nifti import AXES

    clean = clean_of(cfg, fold)
    weights = clean and weights_of(clean)
    names = DECIDING + OF_FREE * cfg.free + OF_OOD * cfg.ood
    return {
        "settings": settings_of(cfg, names),
        "fold": fold,
        "axes": AXES,
        "inputs": fingerprint(path for case in cases for path in (case.image, case.label)),
        "clean": (fingerprint([weights]) if weights.exists() else None) if clean else "not used",
    }


if __name__ == "__main__":
    run(train_volumes, TrainVolumesConfig(), lambda cfg: cfg.home)
