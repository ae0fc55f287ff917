"""Square: its windows, its objective, and no gradient."""

import math

import pytest
import torch
import torch.nn.functional as F

from medood.attacks.iterates import bounded, image_dice
from medood.attacks.square import Search, soft_dice_loss, square, window_share
from tests.small_networks import attacked, in_every_space, scores, seeded


def test_the_objective_of_square_is_the_score_of_sure_predictions():
    target, predicted = torch.randint(0, 3, (2, 4, 6, 6), generator=seeded())
    target[0], target[1] = 0, target[1].clamp_max(1)  # no foreground, and one class of two
    logits = 50 * F.one_hot(predicted, 3).movedim(-1, 1).float()
    task = bounded(torch.zeros(4, 1, 6, 6), target, 0.0, 0.0, 1.0)
    loss = soft_dice_loss(logits, task)[1:, 0]
    expected = 1 - image_dice(predicted, target, 3)[1:].float()
    torch.testing.assert_close(loss, expected)


def test_the_windows_of_square_shrink_with_the_queries():
    halvings = [math.log2(0.8 / window_share(n, 1000)) for n in (0, 1, 2, 5, 6, 800, 997)]
    assert halvings == pytest.approx([0, 0, 1, 1, 2, 8, 9])


@in_every_space
def test_a_window_is_a_square_or_a_cube_at_the_ends_of_eps(space):
    images, target = torch.full((2, 3, *space), 0.5), torch.zeros(2, *space, dtype=torch.long)
    task = bounded(images, target, 0.1, 0.0, 1.0)
    chances = torch.rand(2, 1, len(space) + 3, generator=seeded())
    search = Search(task, images, torch.zeros(2), chances)
    side = 3
    changed = search.propose(0, side ** len(space) / math.prod(space)) != images
    for window in changed.flatten(0, 1):
        places = window.nonzero()
        assert len(places) == side ** len(space)
        assert (places.amax(0) - places.amin(0) == side - 1).all()
    ends = search.propose(0, 1.0)
    assert ((ends == task.lower) | (ends == task.upper) | (ends == images)).all()


def test_square_asks_for_no_gradient_and_counts_its_queries():
    (model, images, target), seen = attacked(), []

    def black_box(batch):
        if torch.is_grad_enabled():
            raise AssertionError("a gradient was asked for")
        seen.append(len(batch))
        return model(batch)

    found = square(black_box, images, target, 8 / 255, queries=30, generator=seeded())
    assert seen == [3] * 30
    assert (scores(model, found, target) < scores(model, images, target)).any()
