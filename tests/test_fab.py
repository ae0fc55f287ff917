"""FAB: the nearest boundary, in closed form."""

from itertools import pairwise

import pytest
import torch

from medood.attacks.fab import BoundaryStep, GoalTask, Nearest, fab, goal_margin, to_plane
from medood.attacks.iterates import bounded, clean, image_dice, walk
from tests.small_networks import in_every_space, linear, seeded


@in_every_space
def test_fab_finds_the_nearest_boundary_and_comes_nearer(space):
    """A linear mean margin m with slopes g is 0 at the distance |m| / sum |g|."""
    model = linear([[1.0, -1.0], [-1.0, 0.5]], [0.0, 0.0])
    images = torch.rand(2, 2, *space, generator=seeded()) * 0.2 + 0.4
    images[:, 0] += 0.2
    target = torch.zeros(2, *space, dtype=torch.long)
    task = bounded(images, target, 0.001, 0.0, 1.0)
    task = GoalTask(**vars(task), goal=torch.ones_like(target))
    logits, distances = model(images), []
    exact = (logits[:, 0] - logits[:, 1]).flatten(1).mean(1) / 3.5
    for steps in (1, 2, 3, 6, 12):
        found = Nearest(clean(model, task, goal_margin), task)
        walk(model, task, images, found, goal_margin, BoundaryStep(task, 1), steps)
        distances.append(0.001 * found.distance)
        reached = (found.nearest - images).abs().flatten(1).amax(1)
        torch.testing.assert_close(distances[-1], reached, rtol=1e-3, atol=0)
    assert all((later <= earlier).all() for earlier, later in pairwise(distances))
    torch.testing.assert_close(distances[0], 1.05 * exact, rtol=1e-3, atol=0)
    torch.testing.assert_close(distances[-1], exact, rtol=0.01, atol=0)


def test_fab_takes_what_came_closest_where_the_boundary_is_out_of_reach():
    """One pixel of ten is foreground: all others cannot turn, and outweigh it in the mean."""
    bias = torch.tensor([4.5, *[100.0] * 9]).view(1, 1, 10)

    def model(images):
        return torch.cat([torch.zeros_like(images), 10 * images - bias], 1)

    images = torch.full((1, 1, 10), 0.5)
    target = torch.tensor([[1, *[0] * 9]])
    found = fab(model, images, target, 0.1, steps=3)
    assert image_dice(model(found).argmax(1), target, 2).item() == 0


def test_the_way_to_a_plane_goes_round_the_ends_of_the_range():
    """Slopes 3 and 1; the first value has room for 0.1 only, so the second moves by 0.7."""
    start = torch.tensor([0.9, 0.0]).view(1, 2, 1, 1)
    task = bounded(start, torch.zeros(1, 1, 1, dtype=torch.long), 0.01, 0.0, 1.0)
    gradient = torch.tensor([3.0, 1.0]).view(1, 2, 1, 1)
    change = to_plane(task, start, gradient, torch.tensor([-1.0]))
    assert change.flatten().tolist() == pytest.approx([0.1, 0.7])
    change = to_plane(task, start, gradient, torch.tensor([-9.0]))  # out of reach
    assert change.flatten().tolist() == pytest.approx([0.1, 1.0])
