"""Test the existing networks of volumes: clean, and under every attack.

Reads   the task's folder, and every network in <workspace>/<task>/models/
Writes  <workspace>/<task>/reports/scores.json, table.md    of all folds and networks
        <workspace>/<task>/reports/corruptions.json         with --corruptions, likewise
        <workspace>/<task>/reports/<fold>_<network>.json    the scores of one
        <workspace>/<task>/reports/<fold>_<network>.png     slices before and after the attack
        <workspace>/<task>/reports/<fold>_<network>/        its predictions, NIfTI
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import UserError
from medood.commands import command
from medood.data.files import fingerprint, read_json, timed, whole_folder, write_json, write_text
from medood.data.records import is_kept, write_own_record
from medood.data.workspace import weights_of
from medood.evaluation.tables import spread
from medood.markdown import markdown
from medood.runs.command_line import run
from medood.runs.products import settings_of
from robust.settings import TestVolumesConfig, TrainVolumesConfig
from robust.train_volumes import again_of, model_folder, refuse_stale, trained_with

if TYPE_CHECKING:
    from torch import Tensor

    from robust.volumes import Case, Task, Volume

NETWORKS = [
    f"{n}{free}{ood}" for n in ("unet", "lattice") for free in ("", "_free") for ood in ("", "_ood")
]
DECIDING = ("eps", "attacked", "attacks", "steps", "queries", "corruptions", "seed", "precision")


def evaluate_volumes(cfg: TestVolumesConfig) -> dict:
    """Test the networks of every fold; write and return the scores, see score_network.

    Raises UserError for a network that is out of date, or that was trained with other settings than
    in the first fold.
    """
    # here, so that --help works without torch
    from robust.by_corruption import ABOUT, corruption_table
    from robust.volumes import read_task, split_cases

    task = read_task(cfg.data)
    sides = {fold: split_cases(task.cases, fold, cfg.seed) for fold in cfg.folds}
    there = {
        fold: [name for name in NETWORKS if weights_of(model_folder(cfg, fold, name)).is_file()]
        for fold in cfg.folds
    }
    for fold, names in there.items():
        for name in names:
            refuse_unlike(cfg, fold, name, *sides[fold])
    found = {
        str(fold): {name: test_fold(cfg, fold, name, task, sides[fold][1]) for name in names}
        for fold, names in there.items()
    }
    scores, corruptions = (
        {fold: {name: of[kind] for name, of in names.items()} for fold, names in found.items()}
        for kind in ("scores", "corruptions")
    )
    if not any(scores.values()):
        again = command(cfg, "robust/train_volumes.py", TrainVolumesConfig)
        raise UserError(f"no network in {cfg.home / 'models'}: run `{again}` first")
    write_json(cfg.home / "reports" / "scores.json", scores)
    title = f"{cfg.task}, attacks within {cfg.eps:g}/255 of the range, percent"
    table = f"{title}\n\n{score_table(scores, task.class_names)}"
    if cfg.corruptions:
        write_json(cfg.home / "reports" / "corruptions.json", corruptions)
        table += f"\n{ABOUT}\n\n{markdown(*corruption_table(corruptions, scores, 'mean_dice'))}"
    write_text(cfg.home / "reports" / "table.md", table)
    print(f"\n{table}")
    return scores


def reports_of(cfg: TestVolumesConfig) -> list[str]:
    """Return what no other run may test meanwhile: the networks of each fold, by name."""
    return [f"{fold}_reports" for fold in cfg.folds]


def refuse_unlike(
    cfg: TestVolumesConfig, fold: int, network: str, train: list[Case], test: list[Case]
) -> None:
    """Raise UserError for a network that was trained on test volumes, or is out of date.

    Out of date: with the settings of the network of the first fold.
    """
    from medood.models.checkpoints import seen_in_training

    trained = next(filter(None, (trained_with(cfg, each, network) for each in cfg.folds)), None)
    folder = model_folder(cfg, fold, network)
    if set(seen_in_training(folder) or ()) & {case.name for case in test}:
        cure = f": run `{again_of(trained, fold)}` again" if trained else ""
        raise UserError(f"{folder} was trained on volumes that fold {fold} tests{cure}")
    if trained:
        refuse_stale(trained, fold, network, train)


def test_fold(
    cfg: TestVolumesConfig, fold: int, network: str, task: Task, cases: list[Case]
) -> dict:
    """Return the scores of a network on its test volumes, tested unless they exist.

    As {"scores": ..., "corruptions": ...}: see score_network.
    """
    import nibabel
    import numpy as np

    from medood.models.network import pick_device
    from robust.nifti import as_stored
    from robust.volume_scores import draw_slices, score_network
    from robust.volume_training import WEIGHTS, load_network
    from robust.volumes import read_volume

    folder = model_folder(cfg, fold, network)
    made_from = {
        "settings": settings_of(cfg, DECIDING),
        "network": fingerprint([folder / WEIGHTS]),
        "inputs": fingerprint(path for case in cases for path in (case.image, case.label)),
    }
    path = cfg.home / "reports" / f"{folder.name}.json"
    if is_kept(path, made_from):
        return read_json(path)
    images = {case.name: case.image for case in cases}
    with timed(cfg.home, f"testing {folder.name}"), whole_folder(path.with_suffix("")) as out:
        segmenter = load_network(cfg, folder, pick_device(cfg.device))

        def keep(volume: Volume, _: int, __: Tensor, predicted: Tensor) -> None:
            """Write the prediction, uint8, with the axes of the volume's file."""
            called = as_stored(images[volume.name], predicted.numpy().astype(np.uint8))
            nibabel.save(called, out / f"{volume.name}.nii.gz")

        scores, corruptions, slices = score_network(
            cfg,
            fold,
            segmenter,
            lambda most: (read_volume(task, case) for case in cases[:most]),
            len(task.class_names),
            keep,
        )
    if slices:
        title = f"{cfg.task}, {folder.name}, {cfg.eps:g}/255"
        draw_slices(path.with_suffix(".png"), title, slices, list(task.class_names))
    content = {"scores": scores, "corruptions": corruptions}
    write_own_record(path, content, made_from)
    return content


def score_table(scores: dict[str, dict], class_names: tuple[str, ...]) -> str:
    """Return the scores over folds as Markdown: a row for each network and attack, in percent."""
    header = ["network", "attack", *(f"Dice {name}" for name in class_names[1:])]
    header += [*(f"HD95 {name}, mm" for name in class_names[1:]), "fooled", "volumes"]
    found: dict[tuple[str, str, str], list[dict]] = {}
    for of_fold in scores.values():
        for network, of_network in of_fold.items():
            for eps, of_eps in of_network.items():
                for attack, row in of_eps.items():
                    found.setdefault((network, eps, attack), []).append(row)
    rows = []
    for (network, eps, attack), runs in found.items():
        cells = [network, attack if eps == "0" or attack != "clean" else "clean, those attacked"]
        for name, scale in (("dice", 100), ("hd95", 1)):
            for value in range(len(class_names) - 1):
                cells.append(spread([row[name][value] for row in runs], scale))
        cells += [spread([row["fooled"] for row in runs]), str(sum(row["volumes"] for row in runs))]
        rows.append(cells)
    return markdown(header, rows)


if __name__ == "__main__":
    run(evaluate_volumes, TestVolumesConfig(), lambda cfg: cfg.home, reports_of)
