"""Scores of volumes, clean and under attack, and a picture of what the attacks do.

A class that does not occur in the truth of a volume has no score there: it is left out of every
mean, and of the criterion by which a volume counts as fooled.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from config import LIZARD
from medood.attacks import WORST, by_name, image_dice, under_attacks
from medood.evaluation.figures import draw_rows
from medood.models.network import exact
from medood.training.batches import ATTACK, stream_seed
from robust.settings import TestVolumesConfig
from robust.volumes import Segmenter, Volume, resample

SCORES = ("dice", "hd95", "recall", "precision")
COLOURS = [colour for _, colour in LIZARD]  # of any six classes


class Outcome(NamedTuple):
    """What a network answers to one volume, attacked or not."""

    image: Tensor  # (C, X, Y, Z), as the network saw it
    predicted: Tensor  # int64, of the label's own shape
    change: float  # the largest of a voxel
    dice: float  # by which the attacks too judge: image_dice


def volume_scores(
    predicted: Tensor, truth: Tensor, classes: int, spacing: tuple[float, ...]
) -> dict[str, list[float | None]]:
    """Return the scores of each foreground class; None where the class does not occur in the truth.

    predicted, truth: integers (X, Y, Z). spacing: mm. `hd95` is in mm: the larger of the two 95th
    percentiles of the distances from surface to surface (MONAI's). Where nothing of a class is
    predicted, `dice`, `recall` and `precision` are 0, and `hd95` is the diagonal of the volume.
    """
    from monai.metrics import compute_hausdorff_distance  # takes seconds to import

    diagonal = float(np.linalg.norm(np.multiply(truth.shape, spacing)))
    rows = []
    for value in range(1, classes):
        found, true = predicted == value, truth == value
        hit, called, occurs = (int(part.sum()) for part in (found & true, found, true))
        distance = diagonal
        if called and occurs:
            pair = (mask[None, None].float() for mask in (found, true))
            with warnings.catch_warnings():  # MONAI 1.6 calls what it means to remove
                warnings.simplefilter("ignore", FutureWarning)
                distance = compute_hausdorff_distance(
                    *pair, include_background=True, percentile=95, spacing=spacing
                ).item()
        shares = 2 * hit / max(called + occurs, 1), hit / max(occurs, 1), hit / max(called, 1)
        rows.append([shares[0], distance, *shares[1:]] if occurs else [None] * len(SCORES))
    return {name: list(column) for name, *column in zip(SCORES, *rows, strict=True)}


def answer(segmenter: nn.Module, image: Tensor, clean: Tensor, volume: Volume) -> Outcome:
    """Return the outcome of a volume (1, C, ...); logits are resampled to the label's shape."""
    truth = volume.label[None].long()
    with torch.no_grad():
        logits = segmenter(image)
        if logits.shape[2:] != truth.shape[1:]:
            logits = F.interpolate(logits, truth.shape[1:], mode="trilinear", align_corners=False)
    predicted, change = logits.argmax(1).cpu(), (image - clean).abs().max().item()
    dice = image_dice(predicted, truth, logits.shape[1]).item()
    return Outcome(image[0].cpu(), predicted[0], change, dice)


def outcomes_of(
    cfg: TestVolumesConfig,
    fold: int,
    number: int,
    segmenter: Segmenter,
    volume: Volume,
    classes: int,
) -> dict[str, Outcome]:
    """Return the outcome of a volume, clean and, for the first `attacked`, under every attack."""
    device = segmenter.mean.device
    seen = resample(volume, segmenter.spacing)
    image, target = seen.image[None].to(device), seen.label[None].long().to(device)
    found = {"clean": answer(segmenter, image, image, volume)}
    if number >= cfg.attacked:
        return found
    attacks = by_name(cfg.attacks, classes, cfg.steps, cfg.queries)
    seed = stream_seed(cfg, fold, ATTACK, number)
    with exact(cfg.precision):
        attacked = list(under_attacks(attacks, segmenter, image, target, [cfg.eps / 255], seed))
    for name, adversarial in zip([*attacks, WORST], attacked, strict=True):
        found[name] = answer(segmenter, adversarial, image, volume)
    return found


def summarise(
    outcomes: list[Outcome], volumes: list[Volume], classes: int, threshold: float
) -> dict:
    """Return the mean scores of some volumes, by class, and the share of them that is fooled.

    threshold: a volume whose mean Dice falls below it is fooled.
    """
    rows = [
        volume_scores(outcome.predicted, volume.label, classes, volume.spacing)
        for outcome, volume in zip(outcomes, volumes, strict=True)
    ]
    dice = np.array([outcome.dice for outcome in outcomes])
    return {
        "volumes": len(rows),
        "mean_dice": float(dice.mean()),
        **{name: _means([row[name] for row in rows]) for name in SCORES},
        "fooled": float((dice < threshold).mean()),
        "largest_change": max(outcome.change for outcome in outcomes),
    }


def _means(rows: list[list[float | None]]) -> list[float | None]:
    """Return the mean of each column over the rows that know it; None if none does."""
    known = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
    return [float(np.mean(column)) if column else None for column in known]


def score_network(
    cfg: TestVolumesConfig, fold: int, segmenter: Segmenter, volumes: list[Volume], classes: int
) -> tuple[dict, list[dict[str, Outcome]]]:
    """Return the scores of a network by eps and attack, and all outcomes, volume by volume.

    The threshold of ROG's criterion is half of the mean clean Dice of all volumes. Under eps,
    `clean` holds the scores of the attacked volumes before the attack.
    """
    segmenter.requires_grad_(False)
    found = [
        outcomes_of(cfg, fold, number, segmenter, volume, classes)
        for number, volume in enumerate(tqdm(volumes, f"fold {fold}", leave=False, disable=None))
    ]
    clean = [of_volume["clean"] for of_volume in found]
    threshold = np.mean([outcome.dice for outcome in clean]) / 2
    scores = {"0": {"clean": summarise(clean, volumes, classes, threshold)}}
    attacked = found[: cfg.attacked]
    if cfg.eps:
        of_attack = {name: [outcomes[name] for outcomes in attacked] for name in attacked[0]}
        scores[f"{cfg.eps:g}"] = {
            name: summarise(outcomes, volumes[: len(attacked)], classes, threshold)
            for name, outcomes in of_attack.items()
        }
    return scores, found


def draw_slices(
    path: Path, title: str, volumes: list[Volume], found: list[dict[str, Outcome]], names: list[str]
) -> None:
    """Draw the slice with most foreground of three attacked volumes, before and after the attack.

    names: of the classes. The volumes are those that lose least, median and most under the worst
    case.
    """
    losses = [of["clean"].dice - of[WORST].dice for of in found if WORST in of]
    order = np.argsort(losses, kind="stable")
    chosen = {order[0]: "least lost", order[len(order) // 2]: "median", order[-1]: "most lost"}
    columns = ["volume", "truth", "called", "attacked volume", "called under attack"]
    rows, lines = [], []
    for index, rule in chosen.items():
        volume, clean, worst = volumes[index], found[index]["clean"], found[index][WORST]
        level = int((volume.label > 0).sum((0, 1)).argmax())
        seen = level * clean.image.shape[-1] // volume.label.shape[-1]  # may be resampled
        greys = (outcome.image[0, ..., seen, None].expand(-1, -1, 3) for outcome in (clean, worst))
        masks = (mask[..., level] for mask in (volume.label, clean.predicted, worst.predicted))
        before, after = (grey.numpy().swapaxes(0, 1)[::-1] for grey in greys)
        truth, called, under = (mask.numpy().T[::-1].copy() for mask in masks)
        lines.append([before, truth, called, after, under])
        rows.append(f"{rule}: {100 * losses[index]:.1f} points of Dice\n{volume.name}")
    by_column = dict(zip(columns, zip(*lines, strict=True), strict=True))
    draw_rows(path, title, rows, by_column, tuple(zip(names[1:], COLOURS, strict=False)))
