"""The networks of transfer/ and their losses: nothing outside the mask changes, to the bit."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weak.generator import (
    EPS,
    Attention,
    Generator,
    InstanceLayerNorm,
    Judges,
)
from weak.transfer import area, attention_loss, difference, least_squares


def random_images(count=2, height=16, width=20):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return Generator(2)


def with_mask(generator, value):
    """The generator, with a mask of 0 or 1 everywhere."""
    nn.init.zeros_(generator.mask.weight)
    nn.init.constant_(generator.mask.bias, 200.0 if value else -200.0)
    return generator


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_mask_of_0_gives_the_input_and_one_of_1_the_fake_to_the_bit(generator, bfloat16):
    images, made = random_images(), []
    for value in (0, 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):  # anew: it keeps old weights
            made.append(with_mask(generator, value)(images))
    unchanged, changed = made
    assert torch.equal(unchanged.composite, images)
    assert torch.equal(changed.composite, changed.fake)
    assert not torch.equal(changed.fake, images)


def test_outside_the_mask_the_fake_is_the_reconstruction(generator):
    out = with_mask(generator, 0)(random_images())
    assert torch.equal(out.fake, out.reconstruction)


@pytest.mark.parametrize("part", ["composite", "fake"])
def test_the_gradient_of_what_is_made_reaches_the_mask(generator, part):
    getattr(generator(random_images()), part).square().mean().backward()
    assert generator.mask.weight.grad.abs().max() > 0


@pytest.mark.parametrize(("height", "width"), [(16, 16), (20, 36), (48, 48)])
def test_any_size_that_is_divisible_by_4_comes_back(generator, height, width):
    images = random_images(1, height, width)
    out = generator(images)
    for made in (out.fake, out.composite, out.reconstruction):
        assert made.shape == images.shape
    assert out.mask.shape == (1, 1, height, width)
    assert out.heat.shape == (1, 1, height // 4, width // 4)
    assert 0 <= out.mask.min() <= out.mask.max() <= 1
    assert len(Judges(2)(images)) == 4


def test_no_image_of_a_batch_changes_another(generator):
    images = random_images(2)
    together = generator(images)
    for index in range(2):
        alone = generator(images[index : index + 1])
        for both, one in zip(together, alone, strict=True):
            torch.testing.assert_close(both[index : index + 1], one, atol=1e-4, rtol=1e-4)


def test_the_mean_of_the_heat_is_the_first_logit(generator):
    out = generator(random_images())
    torch.testing.assert_close(out.heat.mean((1, 2, 3)), out.logits[:, 0])


def test_attention_weighs_channels_as_its_classifiers_do():
    mean, maximum = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        mean.weight.copy_(torch.tensor([[1.0, -1.0]]))
        maximum.weight.copy_(torch.tensor([[0.5, 2.0]]))
    features = torch.tensor([[[[1.0, 3.0]], [[4.0, 0.0]]]])  # means 2 and 2, maxima 3 and 4
    attended, logits, heat = Attention(mean, maximum, nn.Identity())(features)
    assert logits.tolist() == [[2 - 2, 0.5 * 3 + 2 * 4]]
    assert heat.tolist() == [[[[1 - 4, 3 - 0]]]]
    assert attended[0, :, 0].tolist() == [[1, 3], [-4, 0], [0.5, 1.5], [8, 0]]


def test_the_ratio_leads_from_the_normalisation_of_the_image_to_that_of_each_channel():
    features = random_images()
    gain, shift = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.0, 0.5, 1.0])
    ends = F.group_norm(features, 1, eps=EPS), F.instance_norm(features, eps=EPS)
    for ratio in (0.0, 0.25, 1.0):
        expected = torch.lerp(*ends, ratio) * gain[:, None, None] + shift[:, None, None]
        found = InstanceLayerNorm(3, ratio)(features, gain, shift)
        torch.testing.assert_close(found, expected)


def test_a_ratio_is_brought_back_to_0_to_1():
    norm = InstanceLayerNorm(3, 0.5)
    norm.ratio.data += torch.tensor([-1.0, 0.0, 1.0])
    norm.clip()
    assert norm.ratio.tolist() == [0, 0.5, 1]


# ---------------------------------------------------------------- losses, each by hand

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
