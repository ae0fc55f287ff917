"""Scores of volumes, clean, under attack and corrupted.

A class absent from the ground truth of a volume has no score there: it counts in no mean, and not
in the criterion by which a volume counts as fooled. Volumes are read when they are needed, one at a
time.
"""

import warnings
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from medood.attacks import measuring
from medood.attacks.measuring import CLEAN, Counts, Trial, seed_of
from medood.attacks.together import by_name, under_attacks
from medood.evaluation.objects import by_size, count_found, objects_of, wide_bins
from medood.training.batches import ATTACK, stream_seed
from robust.corruptions import OF_VOLUMES, trial_of
from robust.settings import TestVolumesConfig
from robust.volumes import Case, Segmenter, Task, Volume, read_volume, resample

SCORES = ("dice", "hd95", "recall", "precision")

# takes a volume, the name of a condition and the class of each voxel
Keep = Callable[[Volume, str, Tensor], None]


def volume_scores(
    predicted: Tensor, truth: Tensor, classes: int, spacing: tuple[float, ...]
) -> np.ndarray:
    """Return SCORES of each foreground class, (4, classes - 1); NaN if the truth lacks the class.

    predicted, truth: integers (X, Y, Z). spacing: mm. `hd95` is in mm: the larger of the two 95th
    percentiles of the distances from surface to surface (MONAI's). If a class is never predicted,
    `dice`, `recall` and `precision` are 0, and `hd95` is the diagonal of the volume.
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
            with warnings.catch_warnings():  # MONAI 1.6 calls a deprecated function
                warnings.simplefilter("ignore", FutureWarning)
                distance = compute_hausdorff_distance(
                    *pair, include_background=True, percentile=95, spacing=spacing
                ).item()
        shares = 2 * hit / max(called + occurs, 1), hit / max(occurs, 1), hit / max(called, 1)
        rows.append([shares[0], distance, *shares[1:]] if occurs else [np.nan] * len(SCORES))
    return np.array(rows, float).T


def count_volumes(
    segmenter: Segmenter,
    volumes: Iterable[Volume],
    trial: Trial,
    classes: int,
    seed: int,
    keep: Keep,
) -> Counts:
    """Return the counts of a network on N volumes, under K conditions.

    As count_of, with `scores`, (K, N, 4, classes - 1), as volume_scores, and `objects`,
    (K, N, SIZES, 2). volumes: one is in memory at a time. Logits are resampled to their shape.
    """
    device, parts = segmenter.mean.device, []
    for number, volume in enumerate(volumes):
        seen = resample(volume, segmenter.spacing)
        images, target = seen.image[None].to(device), seen.label[None].long().to(device)
        label, truth, rows = volume.label.numpy(), volume.label[None].long(), []
        objects = objects_of(label)
        every = trial.every(segmenter, images, target, seed_of(seed, number))
        for (_, condition), changed in zip(trial.conditions, every, strict=True):
            with torch.no_grad():
                logits = segmenter(changed)
                if logits.shape[2:] != truth.shape[1:]:
                    size = truth.shape[1:]
                    logits = F.interpolate(logits, size, mode="trilinear", align_corners=False)
            predicted = logits.argmax(1).cpu()
            row = measuring.count_of(images, changed, predicted, truth, classes)
            scores = volume_scores(predicted[0], volume.label, classes, volume.spacing)
            row["scores"] = torch.from_numpy(scores)[None]
            found = count_found(objects, label, predicted[0].numpy())
            row["objects"] = torch.from_numpy(found)[None]
            keep(volume, condition, predicted[0])
            rows.append(row)
        parts.append(measuring.stacked(rows))
    return measuring.joined(parts)


def summarise(counts: Counts, condition: int, threshold: float) -> dict:
    """Return the mean scores of volumes under a condition, and the share that is fooled.

    threshold: a volume whose mean Dice falls below it is fooled.
    """
    dice = counts["dice"][condition]
    known = counts["scores"][condition].numpy()
    means = np.ma.masked_invalid(known).mean(0).filled(np.nan)
    bins = wide_bins(counts["objects"][0, ..., 0].sum(0).numpy(), "voxels")
    return {
        "volumes": len(dice),
        "mean_dice": dice.mean().item(),
        **{
            name: [None if np.isnan(value) else float(value) for value in of_score]
            for name, of_score in zip(SCORES, means, strict=True)
        },
        "fooled": (dice < threshold).double().mean().item(),
        "largest_change": counts["change"][condition].max().item(),
        **by_size(counts["objects"][condition].sum(0).numpy(), bins),
    }


def score_network(
    cfg: TestVolumesConfig,
    fold: int,
    segmenter: Segmenter,
    task: Task,
    cases: list[Case],
    keep: Keep,
) -> dict[str, dict]:
    """Return the scores of a network by eps and attack, and those under corruptions.

    As {"scores": ..., "corruptions": ...}. The threshold of ROG's criterion is half of the mean
    clean Dice of all volumes. Under eps, `clean` has the scores of the attacked volumes before the
    attack. Corruptions are tried on the attacked volumes: see by_corruption.py for their scores.
    """
    segmenter.requires_grad_(False)
    seed, classes = stream_seed(cfg, fold, ATTACK), len(task.class_names)

    def count(some: list[Case], trial: Trial, what: str) -> Counts:
        shown = tqdm(some, f"fold {fold}, {what}", leave=False, disable=None)
        volumes = (read_volume(task, case) for case in shown)
        return count_volumes(segmenter, volumes, trial, classes, seed, keep)

    clean = count(cases, Trial([CLEAN], lambda *_: iter(())), "clean")
    threshold = clean["dice"][0].mean().item() / 2
    scores = {"0": {"clean": summarise(clean, 0, threshold)}}
    if cfg.eps:
        attacks = by_name(cfg.attacks, classes, cfg.steps, cfg.queries)
        bounds = [cfg.eps / 255]
        conditions = measuring.conditions_of(attacks, bounds)
        trial = Trial(conditions, partial(under_attacks, attacks, bounds))
        counts = count(cases[: cfg.attacked], trial, "attacked")
        names, counts = measuring.with_greedy(conditions, counts)
        scores[f"{cfg.eps:g}"] = {
            name: summarise(counts, place, threshold) for place, (_, name) in enumerate(names)
        }
    corruptions = {}
    if cfg.corruptions:
        trial = trial_of(OF_VOLUMES)
        counts = count(cases[: cfg.attacked], trial, "corrupted")
        for place, (strength, kind) in enumerate(trial.conditions):
            row = summarise(counts, place, threshold)
            corruptions.setdefault(kind, {})[f"{strength:g}"] = row
    return {"scores": scores, "corruptions": corruptions}
