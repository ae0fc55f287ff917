"""What all attacks share: images within bounds, their scores, and a walk along gradients."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from medood import BACKGROUND, UNSURE, UserError
from medood.pixels import confusion

Bound = float | Tensor
Model = Callable[[Tensor], Tensor]
# from the logits, the task, which pixels are right and the share of the steps done: a loss of each
# pixel, (N, *space); the attack raises its mean
Loss = Callable[[Tensor, "Task", Tensor, float], Tensor]
TINY = 1e-20  # keeps 0 / 0 from being NaN


def image_dice(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Return the score of each image, float64 (N,): mean Dice of its true foreground.

    predicted, target: int64 (N, *space). The mean runs over the foreground classes that occur in
    the image's target; without any, the score is the share of its pixels predicted as background.
    Pixels whose target is UNSURE do not count; an image without others scores 0.
    """
    matrix = confusion(target.flatten(1)[:, None], predicted.flatten(1)[:, None], classes).double()
    hit, true, called = matrix.diagonal(dim1=1, dim2=2), matrix.sum(2), matrix.sum(1)
    dice = (2 * hit / (true + called).clamp_min(1))[:, BACKGROUND + 1 :]
    occurs = true[:, BACKGROUND + 1 :] > 0
    mean = (dice * occurs).sum(1) / occurs.sum(1).clamp_min(1)
    return torch.where(occurs.any(1), mean, hit[:, BACKGROUND] / true[:, BACKGROUND].clamp_min(1))


class Rows:
    """Tensors with a row for each image: indexing takes rows of all of them."""

    def __getitem__(self, index: Tensor) -> Self:
        taken = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor | Rows):
                setattr(taken, name, value[index])
        return taken


@dataclass
class Task(Rows):
    """Images under attack, their ground truth, and the bounds that no iterate leaves."""

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
        change = 2 * uniform(generators, self.images.shape[1:]).to(self.images.device) - 1
        return self.project(self.images + self.eps * change)


def per_image(value: Bound, images: Tensor) -> Tensor:
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
    eps, low, high = (per_image(value, images) for value in (eps, low, high))
    if not bool(((eps >= 0) & (eps <= high - low)).all()):
        raise UserError(
            f"eps = {eps.min():g} to {eps.max():g}: it must be between 0 and the range of the"
            " images: set it in their unit, such as 8 / 255 for images in 0 to 1"
        )
    low, high = low.float(), high.float()
    if not bool(((images >= low) & (images <= high)).all()):
        raise UserError(
            f"images: values from {images.min():g} to {images.max():g} are outside"
            f" {low.min():g} to {high.max():g}: set low and high of each image"
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


def own_generators(count: int, generator: torch.Generator | None) -> list[torch.Generator]:
    """Return a generator for each image: its random numbers do not depend on the batch."""
    generator = generator or torch.Generator().manual_seed(0)
    seeds = torch.randint(2**32, (count,), generator=generator)
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def uniform(generators: list[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Return numbers in 0..1, float32 (N, *shape), drawn on the CPU."""
    return torch.stack([torch.rand(shape, generator=generator) for generator in generators])


@dataclass
class Best(Rows):
    """Of each image the iterate with the lowest score, of equal ones that with the highest loss."""

    images: Tensor
    score: Tensor
    loss: Tensor

    def update(self, rows: Tensor, images: Tensor, score: Tensor, loss: Tensor) -> None:
        """Take the new iterates of some rows if they are better."""
        old = self[rows]
        better = (score < old.score) | ((score == old.score) & (loss > old.loss))
        self.images[rows] = torch.where(like(better, images), images, old.images)
        self.score[rows] = torch.where(better, score, old.score)
        self.loss[rows] = torch.where(better, loss, old.loss)


def like(values: Tensor, images: Tensor) -> Tensor:
    """Return values (N,) as (N, 1, 1, ...), to be broadcast to the images."""
    return values.view(-1, *[1] * (images.dim() - 1))


def logit_of(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the logit of a class at each pixel, (N, *space); that of background for UNSURE."""
    return logits.gather(1, classes.where(classes != UNSURE, BACKGROUND)[:, None])[:, 0]


def measure(
    model: Model, task: Task, images: Tensor, loss: Loss, share: float, backward: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return score (N,), loss (N,) and, if `backward`, the loss's gradient of iterates.

    It is one forward pass, and one backward pass to the images only.
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
    # a network that overflows must not change a pixel to NaN
    return score, value.detach(), gradient.nan_to_num()


def open_rows(task: Task, best: Best) -> Tensor:
    """Return which images are still attacked, int64: they may change, and score above 0."""
    return ((best.score > 0) & (task.lower < task.upper).flatten(1).any(1)).nonzero()[:, 0]


def clean(model: Model, task: Task, loss: Loss) -> Best:
    """Return the images themselves, from which every attack begins."""
    score, value, _ = measure(model, task, task.images, loss, 0.0, backward=False)
    return Best(task.images.clone(), score, value)


class Mover(Rows, ABC):
    """Moves the iterates of a walk, with a state for each image."""

    def __init__(self, task: Task, steps: int) -> None:
        """steps: of the walk."""
        self.task = task

    @abstractmethod
    def move(self, step: int, images: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """Return the next iterates; loss (N,) and gradient are those of `images`."""


def walk(
    model: Model, task: Task, start: Tensor, best: Best, loss: Loss, mover: Mover, steps: int
) -> None:
    """Take `steps` steps of the mover from `start`, and update `best` at each.

    An image of score 0 leaves the batch.
    """
    images, rows = start, torch.arange(len(start), device=start.device)
    for step in range(steps + 1):
        last = step == steps
        score, value, gradient = measure(model, task, images, loss, step / steps, not last)
        best.update(rows, images, score, value)
        left = best.score[rows] > 0
        if last or not left.any():
            return
        images = mover.move(step, images, value, gradient)
        if not left.all():
            task, mover, images, rows = (each[left] for each in (task, mover, images, rows))
