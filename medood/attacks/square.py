"""Square: random search, without gradients (Andriushchenko et al. 2020)."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medood import BACKGROUND, UNSURE
from medood.attacks.iterates import (
    TINY,
    Bound,
    Model,
    Rows,
    Task,
    bounded,
    clean,
    like,
    measure,
    open_rows,
    own_generators,
    uniform,
)

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


def square(
    model: Model,
    images: Tensor,
    target: Tensor,
    eps: Bound,
    *,
    queries: int = 1000,
    low: Bound = 0.0,
    high: Bound = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attack by random search, without any gradient (Andriushchenko et al. 2020, Linf).

    queries: evaluations of the model for each image; the image itself is the first, and stripes are
    the second. Every other sets a square, or a cube, of the last accepted iterate to the ends of
    eps.
    """
    task = bounded(images, target, eps, low, high)
    generators = own_generators(len(images), generator)
    channels, space = images.shape[1], images.shape[2:]
    stripes = uniform(generators, (channels, *[1] * (len(space) - 1), space[-1]))
    chances = uniform(generators, (queries, len(space) + channels)).to(images.device)
    striped = torch.where(stripes.to(images.device) < 0.5, task.lower, task.upper)
    best = clean(model, task, soft_dice_loss)
    rows = open_rows(task, best)
    search = Search(task, striped, torch.full_like(best.loss, -math.inf), chances)[rows]
    for query in range(1, queries):
        if not len(rows):
            break
        candidate = search.images  # stripes
        if query > 1:
            candidate = search.propose(query, window_share(query - 2, queries))
        score, loss, _ = measure(model, search.task, candidate, soft_dice_loss, 0.0, backward=False)
        best.update(rows, candidate, score, loss)
        higher = loss > search.loss
        search.images = torch.where(like(higher, candidate), candidate, search.images)
        search.loss = torch.where(higher, loss, search.loss)
        left = best.score[rows] > 0
        if not left.all():
            search, rows = search[left], rows[left]
    return best.images


def soft_dice_loss(logits: Tensor, task: Task, *_: object) -> Tensor:
    """Return 1 - the mean Dice of probabilities, (N, 1), over the classes that the score counts.

    Of several losses, it lowered the score most on a small U-Net, 8/255: from .91 to .16 with 1000
    queries; cross-entropy to .24, the same of right pixels to .20, the mean margin to .25.
    """
    probability, axes = logits.softmax(1), tuple(range(2, logits.dim()))
    classes = torch.arange(logits.shape[1], device=logits.device)
    truth = (task.target[:, None] == like(classes, logits[0])).float()
    sure = (task.target != UNSURE)[:, None].float()
    hit, true = (probability * truth).sum(axes), truth.sum(axes)
    dice = 2 * hit / (true + (probability * sure).sum(axes)).clamp_min(TINY)
    counts = (true > 0).float()
    counts[:, BACKGROUND] = counts[:, BACKGROUND + 1 :].amax(1) == 0  # only background
    return 1 - (dice * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True)


@dataclass
class Search(Rows):
    """The state of a random search."""

    task: Task
    images: Tensor  # the last accepted iterates, and their loss
    loss: Tensor
    chances: Tensor  # (N, queries, spatial axes + C), in 0..1: positions and signs of the windows

    def propose(self, query: int, share: float) -> Tensor:
        """Return the iterates with a window of a share of the pixels set to the ends of eps."""
        space = self.images.shape[2:]
        chances = self.chances[:, query].view(len(self.images), -1, *[1] * len(space))
        side = max(1, round((share * math.prod(space)) ** (1 / len(space))))
        inside = torch.ones_like(self.images[:, :1], dtype=torch.bool)
        for axis, size in enumerate(space):
            width = min(side, size)
            start = (chances[:, axis : axis + 1] * (size - width + 1)).floor()
            place = torch.arange(size, device=start.device)
            place = place.view(-1, *[1] * (len(space) - 1 - axis))
            inside = inside & (start <= place) & (place < start + width)
        ends = torch.where(chances[:, len(space) :] < 0.5, self.task.lower, self.task.upper)
        return torch.where(inside, ends, self.images)


def window_share(number: int, queries: int) -> float:
    """Return the share of the pixels that a window covers: halved at fixed shares of the queries.

    number: of the window, from 0. It is the schedule of AutoAttack, of 10,000 queries. With few of
    them, the first windows are the only large ones: without them, the attack is weaker.
    """
    return 0.8 / 2 ** bisect.bisect_left(HALVINGS, number * 10_000 / queries)
