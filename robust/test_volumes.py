"""Test the existing networks of volumes: clean, and under every attack.

Reads   the task's folder, and every network in <workspace>/<task>/models/
Writes  <workspace>/<task>/reports/scores.json, table.md    of all folds and networks
        <workspace>/<task>/reports/corruptions.json         with --corruptions, likewise
        <workspace>/<task>/reports/<fold>_<network>.json    the scores of one
        <workspace>/<task>/reports/<fold>_<network>/        its predictions, NIfTI, of all volumes
                                                            and, in worst_case/, of those attacked
        <workspace>/<task>/reports/<fold>_<network>.png     slices before and after the attack
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import LIZARD, UserError
from medood.commands import as_kind, command
from medood.data.files import fingerprint, read_json, timed, whole_folder, write_json, write_text
from medood.data.records import is_kept, write_own_record
from medood.data.workspace import weights_of
from medood.evaluation.tables import spread
from medood.markdown import markdown
from medood.runs.command_line import run
from medood.runs.products import settings_of
from robust.settings import TestVolumesConfig, TrainVolumesConfig
from robust.train_volumes import NETWORK, network_folder, refuse_stale, trained_with

if TYPE_CHECKING:
    from torch import Tensor

    from robust.volumes import Case, Task, Volume

SHOWN = 3  # volumes, in the picture
DECIDING = ("eps", "attacked", "attacks", "steps", "queries", "corruptions", "seed", "precision")


def evaluate_volumes(cfg: TestVolumesConfig) -> None:
    """Test the networks of every fold and write the scores, see score_network.

    Raises UserError for a network that is out of date, or that was trained with other settings than
    in the first fold.
    """
    # here, so that --help works without torch
    from robust.by_corruption import ABOUT, corruption_table
    from robust.volumes import read_task, split_cases

    task = read_task(cfg.data)
    plain = as_kind(cfg, TrainVolumesConfig)
    kinds = product(("unet", "lattice"), (False, True), (False, True))
    arms = [replace(plain, network=name, free=free, ood=ood) for name, free, ood in kinds]
    tests = {fold: split_cases(task.cases, fold, cfg.seed)[1] for fold in cfg.folds}
    there = {
        fold: [arm for arm in arms if weights_of(network_folder(arm, fold)).is_file()]
        for fold in cfg.folds
    }
    there = {fold: of_fold for fold, of_fold in there.items() if of_fold}
    if not there:
        again = command(plain, NETWORK.script, NETWORK.kind)
        raise UserError(f"no network in {cfg.home / 'models'}: run `{again}` first")
    for fold, of_fold in there.items():
        for arm in of_fold:
            refuse_unlike(arm, fold, tests[fold])
    scores, corruptions = {}, {}
    for fold, of_fold in there.items():
        found = {arm.model_name: test_fold(cfg, fold, arm, task, tests[fold]) for arm in of_fold}
        scores[str(fold)] = {name: of["scores"] for name, of in found.items()}
        corruptions[str(fold)] = {name: of["corruptions"] for name, of in found.items()}
    write_json(cfg.home / "reports" / "scores.json", scores)
    title = f"{cfg.task}, attacks within {cfg.eps:g}/255 of the range, percent"
    table = f"{title}\n\n{score_table(scores, task.class_names)}"
    if cfg.corruptions:
        write_json(cfg.home / "reports" / "corruptions.json", corruptions)
        table += f"\n{ABOUT}\n\n{markdown(*corruption_table(corruptions, scores, 'mean_dice'))}"
    write_text(cfg.home / "reports" / "table.md", table)
    print(f"\n{table}")


def reports_of(cfg: TestVolumesConfig) -> list[str]:
    """Return what no other run may test meanwhile: the networks of each fold, by name."""
    return [f"{fold}_reports" for fold in cfg.folds]


def refuse_unlike(cfg: TrainVolumesConfig, fold: int, test: list[Case]) -> None:
    """Raise UserError for a network that was trained on test volumes, or is out of date.

    Out of date: with the settings of the network of the first fold.
    """
    from medood.models.checkpoints import seen_in_training

    trained = next(filter(None, (trained_with(cfg, each) for each in cfg.folds)), None)
    folder = network_folder(cfg, fold)
    if trained:
        refuse_stale(trained, fold)
    if set(seen_in_training(folder) or ()) & {case.name for case in test}:
        raise UserError(f"{folder} was trained on volumes that fold {fold} tests: remove it")


def test_fold(
    cfg: TestVolumesConfig, fold: int, network: TrainVolumesConfig, task: Task, cases: list[Case]
) -> dict:
    """Return the scores of a network on its test volumes, tested unless they exist.

    As {"scores": ..., "corruptions": ...}: see score_network.
    """
    import nibabel
    import numpy as np

    from medood.attacks.together import WORST
    from medood.models.network import pick_device
    from robust.nifti import as_stored
    from robust.volume_scores import score_network
    from robust.volume_training import load_network

    folder = network_folder(network, fold)
    made_from = {
        "settings": settings_of(cfg, DECIDING),
        "network": fingerprint([weights_of(folder)]),
        "inputs": fingerprint(path for case in cases for path in (case.image, case.label)),
    }
    path = cfg.home / "reports" / f"{folder.name}.json"
    if is_kept(path, made_from):
        return read_json(path)
    images = {case.name: case.image for case in cases}
    with timed(cfg.home, f"testing {folder.name}"), whole_folder(path.with_suffix("")) as out:
        segmenter = load_network(cfg, folder, pick_device(cfg.device))
        places, slices = {"clean": out, WORST: out / WORST}, {}

        def keep(volume: Volume, condition: str, predicted: Tensor) -> None:
            """Write a clean or worst prediction, uint8, with the axes of the volume's file."""
            if condition in places:
                places[condition].mkdir(exist_ok=True)
                called = as_stored(images[volume.name], predicted.numpy().astype(np.uint8))
                nibabel.save(called, places[condition] / f"{volume.name}.nii.gz")
                level = int((volume.label > 0).sum((0, 1)).argmax())  # with most foreground
                parts = {"volume": volume.image[0], "ground truth": volume.label}
                parts["predicted" if condition == "clean" else "worst case"] = predicted
                of_volume = {name: part[..., level].T.flip(0) for name, part in parts.items()}
                slices[volume.name] = slices.get(volume.name, {}) | of_volume

        content = score_network(cfg, fold, segmenter, task, cases, keep)
    attacked = {name: parts for name, parts in slices.items() if "worst case" in parts}
    if attacked:
        title = f"{cfg.task}, {folder.name}, {cfg.eps:g}/255"
        draw_slices(path.with_suffix(".png"), title, attacked, task.class_names)
    write_own_record(path, content, made_from)
    return content


def draw_slices(
    path: Path, title: str, slices: dict[str, dict[str, Tensor]], names: tuple[str, ...]
) -> None:
    """Draw a slice of the first SHOWN volumes, before and after the attack.

    slices: by volume and column, (h, w): shades in 0..1 of `volume`, else classes. names: of them.
    """
    from medood.evaluation.figures import draw_rows

    shown = list(slices.values())[:SHOWN]
    columns = {column: [parts[column] for parts in shown] for column in shown[0]}
    columns["volume"] = [part[..., None].expand(-1, -1, 3) for part in columns["volume"]]
    colours = [colour for _, colour in LIZARD]  # of any six classes
    classes = tuple(zip(names[1:], colours, strict=False))
    draw_rows(path, title, list(slices)[:SHOWN], columns, classes)


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
