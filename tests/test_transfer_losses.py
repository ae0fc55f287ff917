"""The losses of transfer/, each by hand on a few numbers."""

import math

import pytest
import torch

from weak.transfer_losses import area, attention_loss, difference, least_squares

SAID = torch.tensor([[[[1.0, 0.0], [0.5, 1.0]]]])


@pytest.mark.parametrize(("truth", "expected"), [(1, 1.25 / 4), (0, 2.25 / 4)])
def test_least_squares_is_the_mean_of_the_squared_distance_from_the_truth(truth, expected):
    assert least_squares([SAID], truth).item() == expected


def test_every_discriminator_counts_the_same_however_many_parts_it_judges():
    of_whole_image = torch.tensor([[0.0, 0.5]])  # at a distance of 1 and of 0.5
    assert least_squares([SAID, of_whole_image], 1).item() == 1.25 / 4 + 1.25 / 2


def test_the_attention_loss_is_the_cross_entropy_of_both_kinds():
    leaving = torch.tensor([[0.0, math.log(3)]])  # of probability 1/2 and 3/4
    staying = torch.tensor([[math.log(3), -math.log(7)]])  # 3/4 and 1/8
    found = attention_loss(leaving, staying)
    expected = (math.log(2) + math.log(4 / 3)) / 2 + (math.log(4) + math.log(8 / 7)) / 2
    assert found.item() == pytest.approx(expected)
    assert attention_loss(leaving + 1, staying - 1) < found


def test_difference_and_area_are_means_over_pixels():
    image = torch.tensor([[[[1.0, -1.0], [0.0, 0.5]]]])
    assert difference(image, torch.tensor([[[[0.5, 1.0], [0.0, 0.0]]]])).item() == 3 / 4
    assert area(torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]])).item() == 0.5


def test_an_area_with_an_aim_counts_how_far_each_mask_is_from_it():
    """Areas of 0 and 1/2, an aim of 1/8: (1/8 + 3/8) / 2, though their mean is 1/4."""
    masks = torch.tensor([[[[0.0, 0.0]]], [[[1.0, 0.0]]]], requires_grad=True)
    found = area(masks, 0.125)
    assert found.item() == 0.25
    found.backward()
    assert masks.grad.flatten().tolist() == [-0.25, -0.25, 0.25, 0.25]  # an empty one is to grow
