"""Attacks that climb a loss along its gradient: PGD, SegPGD, CosPGD, and APGD with SEA's stages.

SEA is APGD three times, in stages of falling eps, on the losses SEA_LOSSES. Its authors judge the
steps by cross-entropy; here by the loss itself, which does not fall when a pixel becomes wrong.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medood import UNSURE, UserError
from medood.attacks.iterates import (
    Bound,
    Loss,
    Model,
    Mover,
    Task,
    bounded,
    clean,
    like,
    logit_of,
    open_rows,
    own_generators,
    walk,
)

WIDE = ((2.0, 0.3), (1.5, 0.3))  # SEA's first stages: their eps and steps, as factor and share
STEP = 1 / 3  # of eps (PGD): 1/5, 1/10, 1/20 and 2.5 / steps were weaker, with 20 and 60 steps
SEA_LOSSES = ("masked_ce_balanced", "masked_ce", "js")  # in the order of its authors' code
RHO = 0.75  # share of the steps that must raise the loss (APGD)
MOMENTUM = 0.75  # weight of the new step against the last one (APGD)


def cross_entropy(logits: Tensor, task: Task, *_: object) -> Tensor:
    """Return the cross-entropy of each pixel, 0 where it is unsure."""
    return F.cross_entropy(logits, task.target, reduction="none", ignore_index=UNSURE)


def masked_cross_entropy(logits: Tensor, task: Task, right: Tensor, _: float) -> Tensor:
    """Return the cross-entropy of the pixels that are still right.

    A wrong pixel counts log K, the most that a right one can: it has no gradient, and the loss does
    not fall when a pixel becomes wrong, so that APGD does not undo a success. An unsure one counts
    as much.
    """
    most = math.log(logits.shape[1])
    return torch.where(right, cross_entropy(logits, task), most)


def balanced_masked_cross_entropy(
    logits: Tensor, task: Task, right: Tensor, share: float
) -> Tensor:
    """Return the masked cross-entropy, weighted so that all classes of the image count the same.

    A pixel has weight n / (k * m): n pixels are sure, of k classes, and m are of its own (Croce et
    al. 2024; their weights are those of a whole data set).
    """
    classes = logits.shape[1]
    place = task.target.where(task.target != UNSURE, classes).flatten(1)
    counts = torch.zeros(len(place), classes + 1, device=place.device)
    counts.scatter_add_(1, place, torch.ones_like(place, dtype=counts.dtype))
    counts[:, classes] = 0  # the unsure ones
    sure, occur = counts.sum(1, keepdim=True), (counts > 0).sum(1, keepdim=True)
    weight = (sure / (occur * counts).clamp_min(1)).where(counts > 0, 0.0)
    weight[:, classes] = 1
    return masked_cross_entropy(logits, task, right, share) * weight.gather(1, place).view_as(right)


def jensen_shannon(logits: Tensor, task: Task, *_: object) -> Tensor:
    """Return the Jensen-Shannon divergence of softmax and one-hot target, 0 where it is unsure.

    In p, the probability of the true class, it is log 2 + (p log p - (1 + p) log(1 + p)) / 2: from
    0, at p = 1, to log 2. Near p = 0 it is nearly flat: a pixel that is surely wrong has almost no
    gradient (Croce et al. 2024).
    """
    entropy = cross_entropy(logits, task)
    p = (-entropy).exp()
    return math.log(2) - (p * entropy + (1 + p) * p.log1p()) / 2


def dlr(logits: Tensor, task: Task, right: Tensor, _: float) -> Tensor:
    """Return the difference of logits ratio of each pixel (Croce and Hein 2020).

    -(z_true - z_other) / (z_1 - z_3), with the logits in descending order z_1, z_2, z_3 and the
    largest of another class z_other; 0 where the target is unsure. Raises UserError for fewer than
    3 classes.
    """
    if logits.shape[1] < 3:
        raise UserError(
            f"loss = 'dlr' needs 3 classes, and the network has {logits.shape[1]}: use ce"
        )
    first, second, third = logits.topk(3, 1).values.unbind(1)
    true = logit_of(logits, task.target)
    ratio = (torch.where(right, second, first) - true) / (first - third + 1e-12)
    return ratio.where(task.target != UNSURE, 0.0)


def segpgd_loss(logits: Tensor, task: Task, right: Tensor, share: float) -> Tensor:
    """Return cross-entropy with weights from only right pixels to all equally.

    In step t of T, right pixels have weight 1 - w, wrong ones w = (t - 1) / 2T (Gu et al. 2022).
    Both are divided by 1 - w here: no sign changes, and losses of different steps are comparable.
    """
    wrong = share / 2
    return cross_entropy(logits, task) * torch.where(right, 1.0, wrong / (1 - wrong))


def cospgd_loss(logits: Tensor, task: Task, *_: object) -> Tensor:
    """Return cross-entropy, weighted with the cosine of softmax and one-hot target.

    The weight, p_true / |p|, has no gradient (Agnihotri et al. 2024).
    """
    entropy = cross_entropy(logits, task)
    norm = logits.detach().softmax(1).square().sum(1).sqrt()  # norm() takes 14 times as long
    cosine = (-entropy.detach()).exp() / norm
    return entropy * cosine


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "dlr": dlr,
    "masked_ce": masked_cross_entropy,
    "masked_ce_balanced": balanced_masked_cross_entropy,
    "js": jensen_shannon,
    "segpgd": segpgd_loss,
    "cospgd": cospgd_loss,
}


class SignStep(Mover):
    """PGD's step: a share of eps along the sign of the gradient."""

    def move(self, step: int, images: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        return self.task.project(images + STEP * self.task.eps * gradient.sign())


class AdaptiveStep(Mover):
    """APGD's step and its state (Croce and Hein 2020, Algorithm 1)."""

    def __init__(self, task: Task, steps: int) -> None:
        super().__init__(task, steps)
        images, zero = task.images, torch.zeros(len(task.images), device=task.images.device)
        self.marks = checkpoints(steps)  # the steps at which the size is judged
        self.size = zero + 2  # (N,), as a share of eps
        self.last = images  # the previous iterates, and their loss
        self.loss = zero - math.inf
        self.raised = zero  # (N,), how many steps since the last mark raised the loss
        self.halved = zero.bool()  # (N,), whether the size was halved there
        self.marked = zero - math.inf  # (N,), the highest loss there
        self.top, self.top_loss = images, zero - math.inf  # the iterates of highest loss
        self.top_gradient = torch.zeros_like(images)

    def move(self, step: int, images: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        self.raised = self.raised + (loss > self.loss)
        self.loss = loss
        higher = loss > self.top_loss
        self.top_loss = torch.where(higher, loss, self.top_loss)
        self.top = torch.where(like(higher, images), images, self.top)
        self.top_gradient = torch.where(like(higher, images), gradient, self.top_gradient)
        if step in self.marks:
            back = like(self._judge(step), images)
            images = torch.where(back, self.top, images)
            gradient = torch.where(back, self.top_gradient, gradient)
        size = like(self.size, images) * self.task.eps
        ahead = self.task.project(images + size * gradient.sign())
        if step:
            ahead = images + MOMENTUM * (ahead - images) + (1 - MOMENTUM) * (images - self.last)
        self.last = images
        return self.task.project(ahead)

    def _judge(self, step: int) -> Tensor:
        """Halve sizes without success since the last mark; return which, bool (N,)."""
        since = step - max((mark for mark in self.marks if mark < step), default=0)
        stuck = ~self.halved & (self.top_loss == self.marked)
        self.halved = (self.raised < RHO * since) | stuck
        self.size = torch.where(self.halved, self.size / 2, self.size)
        self.raised, self.marked = torch.zeros_like(self.raised), self.top_loss
        return self.halved


def checkpoints(steps: int) -> list[int]:
    """Return the steps after which APGD judges its step size (Croce and Hein 2020)."""
    place, gap, marks = 0, 25, []  # percent, as integers: rounding would shift a mark
    while place < 100:
        marks.append(-(-place * steps // 100))
        gap = max(gap - 3, 6)
        place += gap
    return marks


def sea_stages(steps: int) -> list[tuple[float, int]]:
    """Return the stages of SEA as factors of eps with their steps (Croce et al. 2024)."""
    shares = [(factor, int(share * steps)) for factor, share in WIDE]
    shares.append((1.0, steps - sum(part for _, part in shares)))
    return [(factor, part) for factor, part in shares if part]


def apgd(
    model: Model,
    images: Tensor,
    target: Tensor,
    eps: Bound,
    *,
    steps: int = 100,
    loss: str = "ce",
    sea: bool = False,
    mover: type[Mover] = AdaptiveStep,
    low: Bound = 0.0,
    high: Bound = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attack by ascent with momentum and an adaptive step size (Croce and Hein 2020).

    loss: of LOSSES, UserError for another. sea: take the first 60 % of the steps within 2 eps and
    1.5 eps (Croce et al. 2024), each stage from the projection of the last one's best. mover: how
    the iterates move.
    """
    stages = [
        (bounded(images, target, eps, low, high, factor), part)
        for factor, part in (sea_stages(steps) if sea else [(1.0, steps)])
    ]
    if loss not in LOSSES:
        raise UserError(f"loss = {loss!r} is unknown: set it to one of {', '.join(LOSSES)}")
    (task, _), loss = stages[-1], LOSSES[loss]
    best, generators = clean(model, task, loss), own_generators(len(images), generator)
    rows = open_rows(task, best)
    if not len(rows):
        return best.images
    start = stages[0][0].random_start(generators)[rows]
    for stage, part in stages:
        within, found = stage[rows], best[rows]
        walk(model, within, within.project(start), found, loss, mover(within, part), part)
        start = found.images
    best.update(rows, found.images, found.score, found.loss)
    return best.images


def pgd(model: Model, images: Tensor, target: Tensor, eps: Bound, **options: Any) -> Tensor:
    """Attack as `apgd`, by steps of eps / 3 along the gradient's sign (Madry et al. 2018)."""
    return apgd(model, images, target, eps, mover=SignStep, **options)


def segpgd(model: Model, images: Tensor, target: Tensor, eps: Bound, **options: Any) -> Tensor:
    """Attack as `pgd`, with right pixels first and wrong ones increasingly (Gu et al. 2022)."""
    return pgd(model, images, target, eps, loss="segpgd", **options)


def cospgd(model: Model, images: Tensor, target: Tensor, eps: Bound, **options: Any) -> Tensor:
    """Attack as `pgd`, with pixels weighted by how sure they are (Agnihotri et al. 2024)."""
    return pgd(model, images, target, eps, loss="cospgd", **options)
