"""FAB-T: the attack that searches the nearest decision boundary (Croce and Hein 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medood import UNSURE
from medood.attacks.iterates import (
    TINY,
    Best,
    Bound,
    Model,
    Mover,
    Task,
    bounded,
    image_dice,
    like,
    logit_of,
    measure,
    open_rows,
    walk,
)

PULL = 0.1  # largest weight of the step from the image itself (alpha_max)
BEYOND = 1.05  # length of a step past the boundary (eta)
BACK = 0.9  # share of a change that remains after a step back (beta)
NEWTON = 4  # steps of Newton's method: exact in float32 for changes of up to 0.3 of the range


def fab(
    model: Model,
    images: Tensor,
    target: Tensor,
    eps: Bound,
    *,
    steps: int = 100,
    low: Bound = 0.0,
    high: Bound = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attack by the smallest change that crosses a boundary (FAB-T, Croce and Hein 2020).

    The goals of the pixels are, in turn, their 2nd, 3rd, ... most likely class on the image: a walk
    of `steps` steps each. The boundary is where the mean margin of the goals is 0. The nearest
    point found past it, or else the one that came closest, is projected to eps. There are no random
    numbers: `generator` exists for the common signature.
    """
    task = bounded(images, target, eps, low, high)
    with torch.no_grad():
        logits = model(images).float()
    order = logits.argsort(dim=1, descending=True, stable=True)  # the likeliest class first
    score = image_dice(order[:, 0], target, order.shape[1])
    best = Best(images.clone(), score, torch.full_like(score, -math.inf).float())
    for goal in order.unbind(1)[1:]:
        rows = open_rows(task, best)
        if not len(rows):
            break
        goal_task = GoalTask(**vars(task[rows]), goal=goal[rows])
        found = Nearest(best[rows], goal_task)
        mover = BoundaryStep(goal_task, steps)
        walk(model, goal_task, images[rows], found, goal_margin, mover, steps)
        nearest = goal_task.project(found.nearest)
        score, loss, _ = measure(model, goal_task, nearest, goal_margin, 1.0, backward=False)
        best.update(rows, found.images, found.score, found.loss)
        best.update(rows, nearest, score, loss)
    return best.images


def goal_margin(logits: Tensor, task: GoalTask, *_: object) -> Tensor:
    """Return by how much each pixel's goal exceeds its true class, as logits; 0 where unsure."""
    margin = logit_of(logits, task.goal) - logit_of(logits, task.target)
    return margin.where(task.target != UNSURE, 0.0)


@dataclass
class GoalTask(Task):
    """A task with a wrong target class for each pixel, (N, *space)."""

    goal: Tensor


class Nearest(Best):
    """The best iterates within eps, and of any distance the nearest ones past the boundary.

    Of an image that never crosses it, the nearest one is that of the highest loss: if most of an
    image is background, no change within the range reverses the mean margin of all its pixels.
    """

    def __init__(self, best: Best, task: Task) -> None:
        """Begin with the best so far, and the images themselves as the nearest."""
        super().__init__(**vars(best))
        self.task, self.nearest = task, task.images.clone()
        self.distance = torch.full_like(best.loss, math.inf)  # of the nearest past the boundary
        self.highest = -self.distance  # loss before the boundary, (N,)

    def update(self, rows: Tensor, images: Tensor, score: Tensor, loss: Tensor) -> None:
        """Take the new iterates of some rows if they are better, or nearer."""
        task, before = self.task[rows], self.distance[rows]
        distance = _in_eps(images - task.images, task)
        nearer = (loss >= 0) & (distance < before)
        higher = before.isinf() & (loss < 0) & (loss > self.highest[rows])
        taken = like(nearer | higher, images)
        self.nearest[rows] = torch.where(taken, images, self.nearest[rows])
        self.distance[rows] = torch.where(nearer, distance, before)
        self.highest[rows] = torch.where(higher, loss, self.highest[rows])
        inside = ((images >= task.lower) & (images <= task.upper)).flatten(1).all(1)
        super().update(rows, images, score.where(inside, math.inf), loss)


class BoundaryStep(Mover):
    """FAB's step (Croce and Hein 2020, Algorithm 1), to where the linearised loss is about 0.

    The step back after a crossing uses the plane found at the crossing, not a new one.
    """

    def move(self, step: int, images: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        task, original = self.task, self.task.images
        back = torch.lerp(original, images, BACK)
        point = torch.where(like(loss >= 0, images), back, images)

        def change(start: Tensor) -> Tensor:
            return to_plane(task, start, gradient, loss + _dot(gradient, start - images))

        ours, originals = change(point), change(original)
        near, far = _in_eps(ours, task), _in_eps(originals, task)
        pull = like((near / (near + far).clamp_min(TINY)).clamp_max(PULL), images)
        ahead = torch.lerp(point + BEYOND * ours, original + BEYOND * originals, pull)
        return ahead.clamp(task.low, task.high)


def to_plane(task: Task, start: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
    """Return the smallest change, in eps, that brings a linear loss to 0 within the range.

    Each value changes by the same multiple t of eps, or up to the end of its range. The effect on
    the loss is concave in t: Newton's method reaches the required t from below.
    """
    toward = -like(loss.sign(), start) * gradient.sign()
    room = torch.where(toward > 0, task.high - start, start - task.low)
    most = room / task.eps.clamp_min(TINY)  # multiples of eps
    steep = gradient.abs() * task.eps
    multiple = torch.zeros_like(loss)
    for _ in range(NEWTON):
        reached = like(multiple, start)
        done, slope = _dot(steep, most.minimum(reached)), _dot(steep, most > reached)
        multiple = multiple + (loss.abs() - done).relu() / slope.clamp_min(TINY)
    return toward * torch.minimum(like(multiple, start) * task.eps, room)


def _in_eps(change: Tensor, task: Task) -> Tensor:
    """Return the largest change of a value of each image, (N,), as a multiple of its eps."""
    multiples = change.abs() / task.eps.clamp_min(TINY)
    return multiples.amax(tuple(range(1, change.dim())))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of products of each image, (N,)."""
    return (a * b).sum(tuple(range(1, a.dim())))  # to flatten would copy channels last
