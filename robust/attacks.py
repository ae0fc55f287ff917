"""Attacks: changes of at most eps that make a segmentation network err, for images and volumes.

Every attack is a function `attack(model, images, target, eps, ..., low, high, generator)`:

- model: from images to logits (N, K, *space), in eval mode; it normalises its input itself
- images: float32 (N, C, *space), any number of spatial axes, within [low, high]
- target: int64 (N, *space), the true class of each pixel, 0 is background
- eps, low, high: a float, or a tensor (N or 1, C or 1, 1, ...); eps in the unit of the images
- generator: of the CPU; all random numbers come from it. None is a new one of seed 0

It returns images of the same shape: of each image the iterate with the lowest `image_dice`, of
equal ones that with the highest loss. The image itself is the first iterate, so that no attack but
`noise`, the control, raises a score. No value moves by more than eps or leaves [low, high], to the
last bit of float32. An image of score 0 is not attacked any further.

Only the images get gradients. Parameters with requires_grad=False save memory.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from config import UserError
from medood.data.labels import BACKGROUND
from medood.evaluation.scores import confusion

Bound = float | Tensor
Model = Callable[[Tensor], Tensor]
# from the logits, the task, which pixels are right and the share of the steps done: a loss of each
# pixel, (N, *space); the attack raises its mean
Loss = Callable[[Tensor, "Task", Tensor, float], Tensor]
WIDE = ((2.0, 0.3), (1.5, 0.3))  # SEA's first stages: their eps and steps, as factor and share
STEP = 1 / 3  # of eps (PGD): 1/5, 1/10, 1/20 and 2.5 / steps were weaker with 20 and 60 steps
RHO = 0.75  # share of the steps that must raise the loss (APGD)
MOMENTUM = 0.75  # what the new step weighs against the last one (APGD)
PULL = 0.1  # how much the way from the image itself counts, at most (FAB, alpha_max)
BEYOND = 1.05  # how far a step goes past the boundary (FAB, eta)
BACK = 0.9  # what is left of a change after a step back (FAB, beta)
NEWTON = 4  # steps of Newton's method: exact in float32 for changes of up to 0.3 of the range
TINY = 1e-20  # keeps 0 / 0 from being NaN
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # Square's, of 10,000 queries


def image_dice(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Return the score of each image, float64 (N,): mean Dice of the foreground of its truth.

    predicted, target: int64 (N, *space). The mean runs over the foreground classes that occur in
    the image's truth; without any, the score is the share of its pixels called background.
    """
    matrix = confusion(target.flatten(1)[:, None], predicted.flatten(1)[:, None], classes).double()
    hit, true, called = matrix.diagonal(dim1=1, dim2=2), matrix.sum(2), matrix.sum(1)
    dice = (2 * hit / (true + called).clamp_min(1))[:, BACKGROUND + 1 :]
    occurs = true[:, BACKGROUND + 1 :] > 0
    mean = (dice * occurs).sum(1) / occurs.sum(1).clamp_min(1)
    return torch.where(occurs.any(1), mean, hit[:, BACKGROUND] / true[:, BACKGROUND].clamp_min(1))


# ---------------------------------------------------------------- what an attack works on


@dataclass
class Rows:
    """Tensors with a row for each image: indexing takes rows of all of them."""

    def __getitem__(self, index: Tensor) -> Self:
        taken = {k: v[index] for k, v in vars(self).items() if isinstance(v, Tensor | Rows)}
        return replace(self, **taken)


@dataclass
class Task(Rows):
    """Images under attack, their truth, and the bounds that no iterate leaves."""

    images: Tensor
    target: Tensor
    eps: Tensor  # (N, C or 1, 1, ...)
    low: Tensor  # the range, likewise
    high: Tensor
    lower: Tensor  # eps and range together, (N, C, *space)
    upper: Tensor

    def project(self, images: Tensor) -> Tensor:
        """Return the nearest images within the bounds."""
        return images.clamp(self.lower, self.upper)

    def random_start(self, generators: list[torch.Generator]) -> Tensor:
        """Return points drawn uniformly within eps of the images."""
        change = 2 * _uniform(generators, self.images.shape[1:]).to(self.images.device) - 1
        return self.project(self.images + self.eps * change)


def _per_image(value: Bound, images: Tensor) -> Tensor:
    """Return a float, or a tensor that broadcasts to the images, as float64 (N, C or 1, 1, ...)."""
    value = torch.as_tensor(value, dtype=torch.float64, device=images.device)
    value = value.reshape((1,) * (images.dim() - value.dim()) + value.shape)
    return value.expand(len(images), *value.shape[1:])


def bounded(
    images: Tensor, target: Tensor, eps: Bound, low: Bound, high: Bound, factor: float = 1.0
) -> Task:
    """Return the task of an attack within `factor` times eps.

    The bounds are the last float32 within eps of the images, and in the range. Raises UserError for
    an impossible eps, and for images out of the range.
    """
    eps, low, high = (_per_image(value, images) for value in (eps, low, high))
    if not bool(((eps >= 0) & (eps <= high - low)).all()):
        raise UserError(
            f"eps = {eps.min():g} to {eps.max():g}: it must lie between 0 and the range of the"
            " images: give it in their unit, such as 8 / 255 for images in 0 to 1"
        )
    low, high = low.float(), high.float()
    if not bool(((images >= low) & (images <= high)).all()):
        raise UserError(
            f"images: values from {images.min():g} to {images.max():g} lie outside"
            f" {low.min():g} to {high.max():g}: give low and high of each image"
        )
    near = (factor * eps).float()
    near = torch.where(near > factor * eps, near.nextafter(torch.zeros_like(near)), near)

    def edge(exact: Tensor) -> Tensor:
        rounded = exact.float()
        too_far = (rounded.double() - images.double()).abs() > near
        return torch.where(too_far, rounded.nextafter(images), rounded)

    lower = edge(images.double() - near).maximum(low)
    upper = edge(images.double() + near).minimum(high)
    return Task(images, target, near, low, high, lower, upper)


def _own_generators(count: int, generator: torch.Generator | None) -> list[torch.Generator]:
    """Return a generator for each image: its random numbers do not depend on the batch."""
    generator = generator or torch.Generator().manual_seed(0)
    seeds = torch.randint(2**32, (count,), generator=generator)
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def _uniform(generators: list[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Return numbers in 0..1, float32 (N, *shape), drawn on the CPU."""
    return torch.stack([torch.rand(shape, generator=generator) for generator in generators])


@dataclass
class Best(Rows):
    """Of each image the iterate with the lowest score, of equal ones that with the highest loss."""

    images: Tensor
    score: Tensor
    loss: Tensor

    def update(self, rows: Tensor, images: Tensor, score: Tensor, loss: Tensor) -> None:
        """Take the new iterates of some rows where they are better."""
        old = self[rows]
        better = (score < old.score) | ((score == old.score) & (loss > old.loss))
        self.images[rows] = torch.where(_like(better, images), images, old.images)
        self.score[rows] = torch.where(better, score, old.score)
        self.loss[rows] = torch.where(better, loss, old.loss)

    def take(self, rows: Tensor, found: Best) -> None:
        """Take what was found for some rows where it is better."""
        self.update(rows, found.images, found.score, found.loss)


def _like(values: Tensor, images: Tensor) -> Tensor:
    """Return values (N,) as (N, 1, 1, ...), to be broadcast to the images."""
    return values.view(-1, *[1] * (images.dim() - 1))


def _look(
    model: Model, task: Task, images: Tensor, loss: Loss, share: float, backward: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return score (N,), loss (N,) and the loss's gradient, if asked for, of iterates.

    It is one forward pass, and one backward pass down to the images alone.
    """
    images = images.detach().requires_grad_(backward)
    with torch.set_grad_enabled(backward):
        logits = model(images).float()
        predicted = logits.detach().max(1).indices  # argmax takes a CPU 6 times as long
        value = loss(logits, task, predicted == task.target, share).flatten(1).mean(1)
        total = value.sum()
    score = image_dice(predicted, task.target, logits.shape[1])
    if not backward:
        return score, value, None
    (gradient,) = torch.autograd.grad(total, images)
    # a network that overflows must not move a pixel to NaN
    return score, value.detach(), gradient.nan_to_num()


def _open_rows(task: Task, best: Best) -> Tensor:
    """Return which images are still to be attacked, int64: they may change, and score above 0."""
    return ((best.score > 0) & (task.lower < task.upper).flatten(1).any(1)).nonzero()[:, 0]


def clean(model: Model, task: Task, loss: Loss) -> Best:
    """Return the images themselves, with which every attack begins."""
    score, value, _ = _look(model, task, task.images, loss, 0.0, backward=False)
    return Best(task.images.clone(), score, value)


class Mover(Protocol):
    """What moves the iterates of a walk, with a state of its own for each image."""

    def move(self, step: int, images: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """Return the next iterates; loss (N,) and gradient are those of `images`."""

    def __getitem__(self, index: Tensor) -> Self: ...


def walk(
    model: Model, task: Task, start: Tensor, best: Best, loss: Loss, mover: Mover, steps: int
) -> None:
    """Go `steps` steps from `start` as the mover says, and update `best` on the way.

    An image of score 0 leaves the batch.
    """
    images, rows = start, torch.arange(len(start), device=start.device)
    for step in range(steps + 1):
        last = step == steps
        score, value, gradient = _look(model, task, images, loss, step / steps, not last)
        best.update(rows, images, score, value)
        left = best.score[rows] > 0
        if last or not left.any():
            return
        images = mover.move(step, images, value, gradient)
        if not left.all():
            task, mover, images, rows = (each[left] for each in (task, mover, images, rows))


# ---------------------------------------------------------------- losses


def cross_entropy(logits: Tensor, task: Task, *_: object) -> Tensor:
    """Return the cross-entropy of each pixel."""
    return F.cross_entropy(logits, task.target, reduction="none")


def masked_cross_entropy(logits: Tensor, task: Task, right: Tensor, _: float) -> Tensor:
    """Return the cross-entropy of the pixels that are still right.

    A wrong pixel counts log K, the most that a right one can: it has no gradient, and the loss does
    not fall when a pixel turns wrong, so that APGD takes no success for a step back.
    """
    most = math.log(logits.shape[1])
    return torch.where(right, cross_entropy(logits, task), most)


def dlr(logits: Tensor, task: Task, right: Tensor, _: float) -> Tensor:
    """Return the difference of logits ratio of each pixel (Croce and Hein 2020).

    -(z_true - z_other) / (z_1 - z_3), with the logits in descending order z_1, z_2, z_3 and the
    largest of another class z_other. Raises UserError for fewer than 3 classes.
    """
    if logits.shape[1] < 3:
        raise UserError(
            f"loss = 'dlr' needs 3 classes, and the network has {logits.shape[1]}: use ce"
        )
    first, second, third = logits.topk(3, 1).values.unbind(1)
    true = logits.gather(1, task.target[:, None])[:, 0]
    return (torch.where(right, second, first) - true) / (first - third + 1e-12)


def segpgd_loss(logits: Tensor, task: Task, right: Tensor, share: float) -> Tensor:
    """Return cross-entropy with weights that go from right pixels alone to all alike.

    In step t of T, right pixels weigh 1 - w, wrong ones w = (t - 1) / 2T (Gu et al. 2022).
    Both are divided by 1 - w here: no sign changes, and losses of different steps compare.
    """
    wrong = share / 2
    return cross_entropy(logits, task) * torch.where(right, 1.0, wrong / (1 - wrong))


def cospgd_loss(logits: Tensor, task: Task, *_: object) -> Tensor:
    """Return cross-entropy, weighted with the cosine of softmax and one-hot truth.

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
    "segpgd": segpgd_loss,
    "cospgd": cospgd_loss,
}


def _loss_named(name: str) -> Loss:
    if name not in LOSSES:
        raise UserError(f"loss = {name!r} is unknown: give {', '.join(LOSSES)}")
    return LOSSES[name]


# ---------------------------------------------------------------- attacks


def noise(
    model: Model,
    images: Tensor,
    target: Tensor,
    eps: Bound,
    *,
    low: Bound = 0.0,
    high: Bound = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return one random point within eps of each image, whatever it does: the control."""
    task = bounded(images, target, eps, low, high)
    drawn = task.random_start(_own_generators(len(images), generator))
    return torch.where(drawn == images, images, drawn)  # a zero keeps its sign


@dataclass
class SignStep(Rows):
    """PGD's step: a share of eps along the sign of the gradient."""

    task: Task

    def move(self, _: int, images: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """Return the next iterates."""
        return self.task.project(images + STEP * self.task.eps * gradient.sign())


@dataclass
class AdaptiveStep(Rows):
    """APGD's step and its state (Croce and Hein 2020, Algorithm 1)."""

    task: Task
    marks: list[int]  # the steps at which the size is judged
    size: Tensor  # (N,), as a share of eps
    last: Tensor  # the iterates of the step before
    loss: Tensor  # theirs
    raised: Tensor  # (N,), how many steps since the last mark raised the loss
    halved: Tensor  # (N,), whether the size was halved there
    marked: Tensor  # (N,), the highest loss there
    top: Tensor  # the iterates of highest loss, with loss and gradient
    top_loss: Tensor
    top_gradient: Tensor

    @classmethod
    def at_start(cls, task: Task, steps: int) -> AdaptiveStep:
        """Return the state before the first step."""
        images, zero = task.images, torch.zeros(len(task.images), device=task.images.device)
        lowest = zero - math.inf
        return cls(
            task,
            checkpoints(steps),
            size=zero + 2,
            last=images,
            loss=lowest,
            raised=zero,
            halved=zero.bool(),
            marked=lowest,
            top=images,
            top_loss=lowest,
            top_gradient=torch.zeros_like(images),
        )

    def move(self, step: int, images: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """Return the next iterates."""
        self.raised = self.raised + (loss > self.loss)
        self.loss = loss
        higher = loss > self.top_loss
        self.top_loss = torch.where(higher, loss, self.top_loss)
        self.top = torch.where(_like(higher, images), images, self.top)
        self.top_gradient = torch.where(_like(higher, images), gradient, self.top_gradient)
        if step in self.marks:
            back = _like(self._judge(step), images)
            images = torch.where(back, self.top, images)
            gradient = torch.where(back, self.top_gradient, gradient)
        size = _like(self.size, images) * self.task.eps
        ahead = self.task.project(images + size * gradient.sign())
        if step:
            ahead = images + MOMENTUM * (ahead - images) + (1 - MOMENTUM) * (images - self.last)
        self.last = images
        return self.task.project(ahead)

    def _judge(self, step: int) -> Tensor:
        """Halve sizes that did not serve since the last mark; return which, bool (N,)."""
        since = step - max((mark for mark in self.marks if mark < step), default=0)
        stuck = ~self.halved & (self.top_loss == self.marked)
        self.halved = (self.raised < RHO * since) | stuck
        self.size = torch.where(self.halved, self.size / 2, self.size)
        self.raised, self.marked = torch.zeros_like(self.raised), self.top_loss
        return self.halved


def checkpoints(steps: int) -> list[int]:
    """Return after which of the steps APGD judges its step size (Croce and Hein 2020)."""
    place, gap, marks = 0, 25, []  # percent, as integers: rounding would move a mark
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


def _climb(
    model: Model,
    stages: list[tuple[Task, int]],
    loss: Loss,
    restarts: int,
    generator: torch.Generator | None,
    mover: Callable[[Task, int], Mover],
) -> Tensor:
    """Return the best iterates of ascents from random starts.

    stages: tasks with their steps, each from the projection of the last one's best; the last task
    is the attack's. mover: from a task and its steps to what moves the iterates.
    """
    task, _ = stages[-1]
    best, generators = clean(model, task, loss), _own_generators(len(task.images), generator)
    for _ in range(restarts):
        rows = _open_rows(task, best)
        if not len(rows):
            break
        start = stages[0][0].random_start(generators)[rows]
        for stage, steps in stages:
            within, found = stage[rows], best[rows]
            walk(model, within, within.project(start), found, loss, mover(within, steps), steps)
            start = found.images
        best.take(rows, found)
    return best.images


def apgd(
    model: Model,
    images: Tensor,
    target: Tensor,
    eps: Bound,
    *,
    steps: int = 100,
    loss: str = "ce",
    restarts: int = 1,
    sea: bool = False,
    low: Bound = 0.0,
    high: Bound = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attack by ascent with momentum and a step size that halves itself (Croce and Hein 2020).

    loss: of LOSSES; UserError for another. restarts: each from a random point within eps, on images
    that still score above 0. sea: take the first 60 % of the steps within 2 eps and 1.5 eps (Croce
    et al. 2024).
    """
    stages = [
        (bounded(images, target, eps, low, high, factor), part)
        for factor, part in (sea_stages(steps) if sea else [(1.0, steps)])
    ]
    return _climb(model, stages, _loss_named(loss), restarts, generator, AdaptiveStep.at_start)


def pgd(
    model: Model,
    images: Tensor,
    target: Tensor,
    eps: Bound,
    *,
    steps: int = 100,
    loss: str = "ce",
    restarts: int = 1,
    low: Bound = 0.0,
    high: Bound = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attack by steps of eps / 3 along the gradient's sign (Madry et al. 2018); see `apgd`."""
    stages = [(bounded(images, target, eps, low, high), steps)]
    return _climb(
        model, stages, _loss_named(loss), restarts, generator, lambda task, _: SignStep(task)
    )


def segpgd(model: Model, images: Tensor, target: Tensor, eps: Bound, **options: Any) -> Tensor:
    """Attack as `pgd`, with right pixels first and wrong ones more and more (Gu et al. 2022)."""
    return pgd(model, images, target, eps, loss="segpgd", **options)


def cospgd(model: Model, images: Tensor, target: Tensor, eps: Bound, **options: Any) -> Tensor:
    """Attack as `pgd`, with pixels weighted by how sure they are (Agnihotri et al. 2024)."""
    return pgd(model, images, target, eps, loss="cospgd", **options)


# ---------------------------------------------------------------- FAB


@dataclass
class GoalTask(Task):
    """A task with a wrong class for each pixel to turn into, (N, *space)."""

    goal: Tensor


@dataclass
class Nearest(Best):
    """The best iterates within eps, and of any distance the nearest ones past the boundary.

    Of an image that never crosses it, the nearest one is that of the highest loss: where most of an
    image is background, no change within the range turns the mean margin of all its pixels.
    """

    task: Task
    nearest: Tensor
    distance: Tensor  # of the nearest past the boundary, (N,)
    highest: Tensor  # loss before the boundary, (N,)

    @classmethod
    def beside(cls, best: Best, task: Task) -> Nearest:
        """Return the best so far, and the images themselves as the nearest."""
        far = torch.full_like(best.loss, math.inf)
        return cls(**vars(best), task=task, nearest=task.images.clone(), distance=far, highest=-far)

    def update(self, rows: Tensor, images: Tensor, score: Tensor, loss: Tensor) -> None:
        """Take the new iterates of some rows where they are better, or nearer."""
        task, before = self.task[rows], self.distance[rows]
        distance = _in_eps(images - task.images, task)
        nearer = (loss >= 0) & (distance < before)
        higher = before.isinf() & (loss < 0) & (loss > self.highest[rows])
        taken = _like(nearer | higher, images)
        self.nearest[rows] = torch.where(taken, images, self.nearest[rows])
        self.distance[rows] = torch.where(nearer, distance, before)
        self.highest[rows] = torch.where(higher, loss, self.highest[rows])
        inside = ((images >= task.lower) & (images <= task.upper)).flatten(1).all(1)
        super().update(rows, images, score.where(inside, math.inf), loss)


def _in_eps(change: Tensor, task: Task) -> Tensor:
    """Return the largest change of a value of each image, (N,), as a multiple of its eps."""
    return (change.abs() / task.eps.clamp_min(TINY)).flatten(1).amax(1)


@dataclass
class BoundaryStep(Rows):
    """FAB's step (Croce and Hein 2020, Algorithm 1), with one gradient a step.

    The step back after a crossing uses the plane found at the crossing, not one of its own.
    """

    task: Task

    def move(self, _: int, images: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """Return the next iterates: near the plane on which the linearised loss is 0."""
        task, original = self.task, self.task.images
        back = torch.lerp(original, images, BACK)
        point = torch.where(_like(loss >= 0, images), back, images)

        def change(start: Tensor) -> Tensor:
            return to_plane(task, start, gradient, loss + _dot(gradient, start - images))

        ours, originals = change(point), change(original)
        near, far = _in_eps(ours, task), _in_eps(originals, task)
        pull = _like((near / (near + far).clamp_min(TINY)).clamp_max(PULL), images)
        ahead = torch.lerp(point + BEYOND * ours, original + BEYOND * originals, pull)
        return ahead.clamp(task.low, task.high)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of products of each image, (N,)."""
    return (a * b).flatten(1).sum(1)


def to_plane(task: Task, start: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
    """Return the smallest change, in eps, that brings a linear loss to 0 within the range.

    Each value moves by the same multiple t of eps, or up to the end of its range. What that does to
    the loss is concave in t: Newton's method comes to the t that is needed from below.
    """
    toward = -_like(loss.sign(), start) * gradient.sign()
    room = torch.where(toward > 0, task.high - start, start - task.low)
    steep = gradient.abs()
    multiple = torch.zeros_like(loss)
    for _ in range(NEWTON):
        moved = torch.minimum(_like(multiple, start) * task.eps, room)
        slope = _dot(steep * (moved < room), task.eps)
        multiple = multiple + (loss.abs() - _dot(steep, moved)).relu() / slope.clamp_min(TINY)
    return toward * torch.minimum(_like(multiple, start) * task.eps, room)


def goal_margin(logits: Tensor, task: GoalTask, *_: object) -> Tensor:
    """Return by how much each pixel's goal exceeds its true class, as logits."""
    goal, true = (logits.gather(1, each[:, None])[:, 0] for each in (task.goal, task.target))
    return goal - true


def fab(
    model: Model,
    images: Tensor,
    target: Tensor,
    eps: Bound,
    *,
    steps: int = 100,
    restarts: int = 1,
    low: Bound = 0.0,
    high: Bound = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attack by the smallest change that crosses a boundary (FAB-T, Croce and Hein 2020).

    The goals of the pixels are, in turn, their 2nd, 3rd, ... most likely class on the image: a walk
    of `steps` steps each. The boundary is where the mean margin of the goals is 0. The nearest
    point past it that was found, or else the one that came closest, is projected to eps.
    """
    task = bounded(images, target, eps, low, high)
    generators = _own_generators(len(images), generator)
    with torch.no_grad():
        logits = model(images).float()
    order = logits.argsort(dim=1, descending=True, stable=True)  # the likeliest class first
    classes = order.shape[1]
    score = image_dice(order[:, 0], target, classes)
    best = Best(images.clone(), score, torch.full_like(score, -math.inf).float())
    for restart in range(restarts):
        start = task.random_start(generators).lerp(images, 0.5) if restart else images
        for rank in range(1, classes):
            rows = _open_rows(task, best)
            if not len(rows):
                return best.images
            goal_task = GoalTask(**vars(task[rows]), goal=order[rows, rank])
            found = Nearest.beside(best[rows], goal_task)
            walk(model, goal_task, start[rows], found, goal_margin, BoundaryStep(goal_task), steps)
            nearest = goal_task.project(found.nearest)
            score, loss, _ = _look(model, goal_task, nearest, goal_margin, 1.0, backward=False)
            best.take(rows, found)
            best.update(rows, nearest, score, loss)
    return best.images


# ---------------------------------------------------------------- Square


def soft_dice_loss(logits: Tensor, task: Task, *_: object) -> Tensor:
    """Return 1 less the mean Dice of probabilities, (N, 1), of the classes that the score counts.

    Of what the search could raise, it lowered the score most on a small U-Net, 8/255: from .91 to
    .41 with 300 queries and .16 with 1000; cross-entropy to .46 and .24, the same of right pixels
    to .44 and .20, the mean margin, at most 0, to .47 and .25, the score itself to .45 (300).
    """
    probability, axes = logits.softmax(1), tuple(range(2, logits.dim()))
    classes = torch.arange(logits.shape[1], device=logits.device)
    truth = (task.target[:, None] == _like(classes, logits[0])).float()
    hit, true = (probability * truth).sum(axes), truth.sum(axes)
    dice = 2 * hit / (true + probability.sum(axes)).clamp_min(TINY)
    counts = (true > 0).float()
    counts[:, BACKGROUND] = counts[:, BACKGROUND + 1 :].amax(1) == 0  # background alone
    return 1 - (dice * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True)


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

    queries: how often the model sees each image; the image itself is the first, and stripes are the
    second. Every other sets a square, or a cube, of the last accepted iterate to the ends of eps.
    """
    task = bounded(images, target, eps, low, high)
    generators = _own_generators(len(images), generator)
    channels, space = images.shape[1], images.shape[2:]
    stripes = _uniform(generators, (channels, *[1] * (len(space) - 1), space[-1]))
    chances = _uniform(generators, (queries, len(space) + channels)).to(images.device)
    striped = torch.where(stripes.to(images.device) < 0.5, task.lower, task.upper)
    best = clean(model, task, soft_dice_loss)
    rows = _open_rows(task, best)
    search = Search(task, striped, torch.full_like(best.loss, -math.inf), chances)[rows]
    for query in range(1, queries):
        if not len(rows):
            break
        candidate = search.images  # stripes
        if query > 1:
            candidate = search.propose(query, window_share(query, queries))
        score, loss, _ = _look(model, search.task, candidate, soft_dice_loss, 0.0, backward=False)
        best.update(rows, candidate, score, loss)
        search.accept(candidate, loss)
        left = best.score[rows] > 0
        if not left.all():
            search, rows = search[left], rows[left]
    return best.images


@dataclass
class Search(Rows):
    """The state of a random search."""

    task: Task
    images: Tensor  # the last accepted iterates, and their loss
    loss: Tensor
    chances: Tensor  # (N, queries, spatial axes + C), in 0..1: places and directions of the windows

    def accept(self, candidate: Tensor, loss: Tensor) -> None:
        """Go to the candidates that have a higher loss."""
        higher = loss > self.loss
        self.images = torch.where(_like(higher, candidate), candidate, self.images)
        self.loss = torch.where(higher, loss, self.loss)

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


def window_share(query: int, queries: int) -> float:
    """Return the share of the pixels that a window covers: halved at set shares of the queries.

    It is the schedule of AutoAttack, of 10,000 queries, on which the first windows cover 0.8.
    """
    return 0.8 / 2 ** bisect.bisect_left(HALVINGS, query * 10_000 / queries)


def worst_case(
    model: Model, images: Tensor, target: Tensor, candidates: Iterable[Tensor]
) -> Tensor:
    """Return of each image the candidate with the lowest score, the image itself included.

    candidates: what attacks returned for these images, each (N, C, *space). Of equal scores, the
    first stays.
    """
    score = _score(model, images, target)
    best = Best(images.clone(), score, torch.zeros_like(score))
    for candidate in candidates:
        score = _score(model, candidate, target)
        best.update(torch.arange(len(images), device=images.device), candidate, score, best.loss)
    return best.images


@torch.no_grad()
def _score(model: Model, images: Tensor, target: Tensor) -> Tensor:
    logits = model(images)
    return image_dice(logits.argmax(1), target, logits.shape[1])


def in_batches(attack: Callable[..., Tensor], size: int) -> Callable[..., Tensor]:
    """Return an attack that takes `size` images at a time, and fewer where the memory is short.

    Each image has random numbers of its own: the split does not change them. Raises UserError for a
    single image that does not fit.
    """

    def attack_all(
        model: Model,
        images: Tensor,
        target: Tensor,
        eps: Bound,
        *,
        low: Bound = 0.0,
        high: Bound = 1.0,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Tensor:
        generator = generator or torch.Generator().manual_seed(0)

        def attack_part(images: Tensor, target: Tensor, *bounds: Tensor) -> Tensor:
            limits = dict(zip(("eps", "low", "high"), bounds, strict=True))
            before = generator.get_state()
            try:
                return attack(model, images, target, **limits, generator=generator, **options)
            except torch.OutOfMemoryError:
                if len(images) == 1:
                    space = " x ".join(map(str, images.shape[2:]))
                    raise UserError(
                        f"{images.device} has no memory to attack an image of {space} pixels: set"
                        " device to cpu"
                    ) from None
            generator.set_state(before)
            return attack_parts(math.ceil(len(images) / 2), images, target, *bounds)

        def attack_parts(size: int, *rows: Tensor) -> Tensor:
            parts = zip(*(each.split(size) for each in rows), strict=True)
            return torch.cat([attack_part(*part) for part in parts])

        return attack_parts(
            size, images, target, *(_per_image(b, images) for b in (eps, low, high))
        )

    return attack_all


# ---------------------------------------------------------------- by name

# the control, AutoAttack's four, and the loss that finds most of what its two miss
STANDARD = ("noise", "apgd_ce", "apgd_dlr", "apgd_masked_ce", "fab", "square")


def by_name(
    names: Iterable[str], classes: int, steps: int, queries: int
) -> dict[str, Callable[..., Tensor]]:
    """Return attacks by name; STANDARD if none is named, without DLR for fewer than 3 classes."""
    known = {
        "noise": noise,
        "pgd": partial(pgd, steps=steps),
        "segpgd": partial(segpgd, steps=steps),
        "cospgd": partial(cospgd, steps=steps),
        "apgd_ce": partial(apgd, steps=steps),
        "apgd_dlr": partial(apgd, loss="dlr", steps=steps),
        "apgd_masked_ce": partial(apgd, loss="masked_ce", steps=steps),
        "sea": partial(apgd, loss="masked_ce", sea=True, steps=steps),
        "fab": partial(fab, steps=steps),
        "square": partial(square, queries=queries),
    }
    usual = [name for name in STANDARD if classes > 2 or name != "apgd_dlr"]
    return {name: known[name] for name in names or usual}
