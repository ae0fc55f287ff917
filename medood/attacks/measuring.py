"""A network on a data set under attack: counts batch by batch, and a table of scores.

A condition is an eps and the name of an attack; the first is the clean images. The counts under K
conditions on N images are a dictionary of tensors (K, N, ...).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from medood import UNSURE, UserError
from medood.attacks.iterates import Model, image_dice
from medood.attacks.together import OF_SEA, SEA, WORST, by_name, under_attacks
from medood.markdown import markdown
from medood.pixels import confusion, scores_of

Condition = tuple[float, str]
Counts = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]  # images and target
# from the number of a batch, images, target and the images under each condition to counts
Count = Callable[[int, Tensor, Tensor, Iterator[Tensor]], Counts]


class Trial(NamedTuple):
    """Conditions, the clean images first, and how images are made under the others, in order."""

    conditions: list[Condition]
    under: Callable[[Model, Tensor, Tensor, int], Iterator[Tensor]]  # from images, target and seed
    decided_by: object = None  # what else decides them

    def every(self, model: Model, images: Tensor, target: Tensor, seed: int) -> Iterator[Tensor]:
        """Return the images under each condition in turn, themselves first."""
        return itertools.chain([images], self.under(model, images, target, seed))


CLEAN = (0.0, "clean")
GREEDY = "worst_case_greedy"  # of all attacks, over the whole data set
SHOWN = ("miou", "dsc", "fg_to_bg", "bg_to_fg", "fooled")
LESS = 1e-12  # by which a score must fall to count as lower: more than rounding


def count_of(images: Tensor, changed: Tensor, predicted: Tensor, target: Tensor, classes: int):
    """Return the counts of a batch under one condition, (n, ...) each."""
    matrices = confusion(target.flatten(1)[:, None], predicted.flatten(1)[:, None], classes)
    return {
        "confusion": matrices.cpu(),
        "dice": image_dice(predicted, target, classes).cpu(),
        "change": (changed - images).abs().flatten(1).amax(1).cpu(),
    }


def stacked(rows: Iterable[Counts]) -> Counts:
    """Return the counts under K conditions in turn, (n, ...) each, as (K, n, ...)."""
    rows = list(rows)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def batch_by_batch(
    model: Model,
    batches: Iterable[Batch],
    trial: Trial,
    count: Count,
    *,
    seed: int,
    folder: Path | None = None,
    share: tuple[int, int] = (0, 1),
) -> Counts:
    """Return the results of `count` for all batches, joined along axis 1.

    folder: keeps the result of each batch, so that a stopped run continues after it. A file there
    counts if the weights of the model, the batch, the seed and trial.decided_by are those that it
    was made from. share: take only the batches (first, step), as one of several processes.
    """
    weights = model.state_dict() if folder and isinstance(model, torch.nn.Module) else {}
    known = _digest(*itertools.chain(*weights.items()))
    parts = []
    for number, (images, target) in enumerate(batches):
        if number % share[1] != share[0]:
            continue
        path = folder and folder / f"{number}.pt"
        own = seed_of(seed, number)
        decided_by = repr((own, trial.decided_by))
        made_from = path and _digest(known, images, target, decided_by)
        part = _read(path, made_from)
        if part is None:
            part = count(number, images, target, trial.every(model, images, target, own))
            if path:
                _write(path, {"made_from": made_from, "counts": part})
        parts.append(part)
    return joined(parts)


def seed_of(seed: int, number: int) -> int:
    """Return the seed of a batch, by its number."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)


def joined(parts: list[Counts]) -> Counts:
    """Return the counts of batches as those of all their images."""
    names = parts[0] if parts else ()
    return {name: torch.cat([part[name] for part in parts], 1) for name in names}


def _digest(*parts: Tensor | str) -> str:
    content = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            content.update(str(part.shape).encode())
            part = part.detach().cpu().contiguous().numpy().tobytes()
        content.update(part.encode() if isinstance(part, str) else part)
    return content.hexdigest()


def _read(path: Path | None, made_from: str) -> Counts | None:
    """Return the counts of a file, or None if it is missing, damaged, or made from others."""
    try:
        content = torch.load(path, weights_only=True) if path else {}
    except (FileNotFoundError, RuntimeError, EOFError, pickle.UnpicklingError):
        content = {}
    return content.get("counts") if content.get("made_from") == made_from else None


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}")
    torch.save(content, aside)
    aside.replace(path)


def greedy(matrices: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """Return which candidate of each image makes `miou` of all images low, integers (N,).

    matrices: pixel counts of A candidates of N images, (A, N, C, C). choice: where to begin, (N,).
    `miou` is a ratio of sums over images, so the worst candidate of each image by itself need not
    be the worst of the data set. As in Croce et al. (2024): image by image, the candidate that
    gives the sums of all images the lowest score replaces the previous one, until nothing changes.
    So the score is never above that of the beginning. Theirs begins with one attack, and counts
    background as a class.
    """
    choice, images = choice.copy(), np.arange(matrices.shape[1])
    total = matrices[choice, images].sum(0)
    lowest, changed = scores_of(total)["miou"], True
    while changed:
        changed = False
        for image in images:
            tried = total - matrices[choice[image], image] + matrices[:, image]
            scores = scores_of(tried)["miou"]
            best = int(np.argmin(scores))
            if scores[best] < lowest - LESS:
                choice[image], total, lowest, changed = best, tried[best], scores[best], True
    return choice


def with_greedy(conditions: list[Condition], counts: Counts) -> tuple[list[Condition], Counts]:
    """Return conditions and counts with those of the data set: SEA before the worst case, GREEDY.

    SEA exists if its three attacks do. The clean images are a candidate of GREEDY too; noise, the
    control, is not.
    """
    order: list[Condition] = []
    rows: list[Counts] = []

    def add(condition: Condition, candidates: list[int], first: np.ndarray) -> None:
        choice = torch.from_numpy(greedy(counts["confusion"][candidates].numpy(), first))
        images = torch.arange(len(choice))
        order.append(condition)
        rows.append({name: values[candidates][choice, images] for name, values in counts.items()})

    for number, (eps, name) in enumerate(conditions):
        tried = {attack: k for k, (bound, attack) in enumerate(conditions) if bound == eps}
        of_sea = [tried[one] for one in OF_SEA if one in tried]
        if name == WORST and len(of_sea) == len(OF_SEA):
            add((eps, SEA), of_sea, counts["dice"][of_sea].argmin(0).numpy())
        order.append((eps, name))
        rows.append({each: values[number] for each, values in counts.items()})
        if name == WORST:
            candidates = [0, *(k for attack, k in tried.items() if attack != "noise")]
            first = np.full(counts["dice"].shape[1], candidates.index(tried[WORST]))
            add((eps, GREEDY), candidates, first)
    return order, stacked(rows)


class Table(list):
    """A row for each condition: eps, attack, and its scores as fractions; printed as Markdown."""

    def __str__(self) -> str:
        rows = [
            [row["attack"], f"{row['eps']:.4g}", *(f"{100 * row[name]:.1f}" for name in SHOWN)]
            for row in self
        ]
        return markdown(["attack", "eps", *SHOWN], rows)


def conditions_of(names: Iterable[str], eps: Iterable[float]) -> list[Condition]:
    """Return the conditions in the order of under_attacks, the clean images first."""
    names = [*names, WORST]
    return [CLEAN, *((bound, name) for bound in sorted(eps) for name in names)]


def evaluate(
    model: Model,
    loader: Iterable[Batch],
    eps: float | Sequence[float] = 8 / 255,
    attacks: str | Sequence[str] = "standard",
    *,
    steps: int = 100,
    queries: int = 1000,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Table:
    """Return the scores of a segmentation network under attack.

    model: from images to logits (N, K, *space), in eval mode, with its normalisation in it; class 0
    is the background. loader: batches of images, float32 (N, C, *space) within [low, high], of any
    number of spatial axes, and targets, integers (N, *space) or (N, 1, *space), 255 where the class
    is unknown. eps: the largest change of a value, in the unit of the images; several are tried
    one after the other. attacks: names of by_name; `standard` is the control, AutoAttack's four
    (APGD on two losses, FAB-T, Square) and SEA. steps, queries: of each attack with and without
    gradients. folder: keeps the result of each batch; the same call continues after it.

    A row has `miou` and `dsc`, means over the foreground classes that occur in the targets,
    `fg_to_bg` and `bg_to_fg`, shares of pixels, `fooled`, the share of images whose Dice falls
    below half of the clean mean, and `largest_change`. Rows: `clean`; each attack; `sea`, the worst
    of its three by `greedy`; `worst_case`, of each image the attack with the lowest Dice;
    `worst_case_greedy`. The same seed gives the same table.
    """
    if getattr(model, "training", False):
        raise UserError("the model is in training mode: call model.eval() first")
    parameters = getattr(model, "parameters", tuple)()
    device = next((weights.device for weights in parameters), torch.device("cpu"))
    batches = (_checked(batch, device) for batch in loader)
    first = next(batches, None)
    if first is None:
        raise UserError("the loader has no batch: it must give pairs of images and targets")
    classes = _classes_of(model, first[0])
    names = () if attacks == "standard" else (attacks,) if isinstance(attacks, str) else attacks
    tried = {
        name: partial(attack, low=low, high=high)
        for name, attack in by_name(names, classes, steps, queries).items()
    }
    bounds = [eps] if isinstance(eps, int | float) else list(eps)

    def count(_: int, images: Tensor, target: Tensor, every: Iterator[Tensor]) -> Counts:
        known = target[target != UNSURE]
        if len(known) and not 0 <= known.min() <= known.max() < classes:
            raise UserError(
                f"a target contains classes from {known.min()} to {known.max()}, and the model has"
                f" {classes} (0 to {classes - 1}): write {UNSURE} where the class is unknown"
            )
        rows = []
        for changed in every:
            with torch.no_grad():
                predicted = model(changed).argmax(1)
            rows.append(count_of(images, changed, predicted, target, classes))
        return stacked(rows)

    size = len(loader) if hasattr(loader, "__len__") else None
    every = itertools.chain([first], batches)
    shown = tqdm(every, "batches", size, disable=not progress or None)
    decided_by = list(tried), steps, queries, low, high, bounds
    trial = Trial(conditions_of(tried, bounds), partial(under_attacks, tried, bounds), decided_by)
    place = folder and Path(folder)
    counts = batch_by_batch(model, shown, trial, count, seed=seed, folder=place)
    threshold, table = counts["dice"][0].mean() / 2, Table()
    conditions, counts = with_greedy(trial.conditions, counts)
    for number, (bound, attack) in enumerate(conditions):
        scores = scores_of(counts["confusion"][number].sum(0).numpy())
        row = {"eps": bound, "attack": attack}
        row |= {name: float(scores[name]) for name in SHOWN if name in scores}
        row["fooled"] = (counts["dice"][number] < threshold).double().mean().item()
        row["largest_change"] = counts["change"][number].max().item()
        table.append(row)
    return table


def _checked(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on a device, the target as int64 (N, *space)."""
    images, target = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (None, None)
    fits = isinstance(images, Tensor) and isinstance(target, Tensor)
    if fits and target.dim() == images.dim() and target.shape[1] == 1:
        target = target[:, 0]
    fits = fits and images.dtype == torch.float32
    if not fits or images.shape[:1] + images.shape[2:] != target.shape:
        raise UserError(
            "the loader must give pairs of images, float32 (N, C, *space), and targets (N, *space),"
            " such as `((batch['image'], batch['label']) for batch in loader)`"
        )
    return images.to(device), target.to(device).long()


def _classes_of(model: Model, images: Tensor) -> int:
    """Return how many classes a model has; UserError if it does not give logits of two or more."""
    with torch.no_grad():
        logits = model(images)
    shape = tuple(getattr(logits, "shape", ()))
    if shape[:1] + shape[2:] != images.shape[:1] + images.shape[2:] or shape[1] < 2:
        raise UserError(
            f"the model gives {type(logits).__name__} {shape} for images {tuple(images.shape)}: it"
            " must give logits (N, K, *space) of K classes, background first; wrap it, for a single"
            " logit z as torch.cat([0 * z, z], 1)"
        )
    return shape[1]
