"""Attacks against those of adv-lib, and Square against its paper: as many steps or queries."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medood.attacks import apgd, fab, square, worst_case
from medood.attacks.ascent import SEA_LOSSES
from tests.small_networks import draw_discs, scores, seeded, trained

STEPS = 20
EPS = [eps / 255 for eps in (2, 3, 4, 6, 8)]


@pytest.fixture(autouse=True)
def eager():
    """adv-lib compiles a function, which takes longer than to call it."""
    with torch.compiler.set_stance("force_eager"):
        yield


class Centre(nn.Module):
    """What the trained network says of the middle of an image: logits (N, K), or of one pixel."""

    def __init__(self, space):
        super().__init__()
        self.model, self.space = trained()[0], space

    def forward(self, images):
        return self.model(images)[:, :, 8:12, 8:12].mean((2, 3)).unflatten(1, (-1, *self.space))


def accuracy(images, label):
    return (Centre(()).eval()(images).argmax(1) == label).double().mean().item()


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_is_as_strong_as_that_of_adv_lib_on_whole_images(loss):
    """An image whose classes are one for all is a segmentation of one pixel."""
    from adv_lib.attacks import apgd as theirs

    images, _ = draw_discs(48, 2)
    label, ours_, theirs_ = Centre(())(images).argmax(1), [], []
    for eps in EPS:
        torch.manual_seed(0)
        found = theirs(Centre(()), images, label, eps, math.inf, n_iter=STEPS, loss_function=loss)
        theirs_.append(accuracy(found, label))
        pixel = label[:, None, None]
        options = {"steps": STEPS, "loss": loss, "generator": seeded()}
        ours_.append(accuracy(apgd(Centre((1, 1)), images, pixel, eps, **options), label))
    assert max(theirs_) - min(theirs_) > 0.3  # weak and strong ones are compared
    assert sum(ours_) / len(EPS) <= sum(theirs_) / len(EPS) + 0.01


def test_fab_is_as_strong_as_that_of_adv_lib_on_whole_images():
    from adv_lib.attacks import fab as theirs

    images, _ = draw_discs(48, 2)
    label, ours_, theirs_ = Centre(())(images).argmax(1), [], []
    torch.manual_seed(0)
    options = {"n_iter": STEPS, "targeted_restarts": True, "restarts": 2}  # both other classes
    nearest = theirs(Centre(()), images, label, math.inf, **options)
    for eps in EPS:
        inside = (nearest - images).abs().flatten(1).amax(1) <= eps
        theirs_.append(accuracy(torch.where(inside.view(-1, 1, 1, 1), nearest, images), label))
        found = fab(Centre((1, 1)), images, label[:, None, None], eps, steps=STEPS)
        ours_.append(accuracy(found, label))
    assert max(theirs_) - min(theirs_) > 0.3
    assert sum(ours_) / len(EPS) <= sum(theirs_) / len(EPS) + 0.01


@pytest.mark.parametrize("rate", [0.001, 0.01])
def test_sea_is_as_strong_as_alma_prox_of_adv_lib_in_the_changes_that_this_needs(rate):
    """ALMA-prox looks for a small change; SEA may change each image by as much. 60 steps each."""
    from adv_lib.attacks.segmentation import alma_prox

    model, images, target = trained()
    found = alma_prox(model, images, target, num_steps=3 * STEPS, lr_init=rate)
    eps = (found - images).abs().amax((1, 2, 3), keepdim=True).clamp_max(1)
    options = {"steps": STEPS, "sea": True}
    found_by = [
        apgd(model, images, target, eps, loss=loss, generator=seeded(), **options)
        for loss in SEA_LOSSES
    ]
    ours = worst_case(model, images, target, found_by)
    assert (scores(model, ours, target) <= scores(model, found, target) + 0.01).all()


def square_of_its_paper(model, images, label, eps, queries):
    """Return images after Algorithms 1 and 2 of Andriushchenko et al. (2020), on the margin.

    p = 0.8, halved as AutoAttack does; each image has windows of its own.
    """
    numbers = seeded()

    def signs(*shape):
        return 2.0 * torch.randint(2, shape, generator=numbers) - 1

    def margin(changed):
        logits = model(changed)
        others = logits.masked_fill(F.one_hot(label, logits.shape[1]).bool(), -math.inf)
        return logits[torch.arange(len(label)), label] - others.amax(1)

    count, channels, height, width = images.shape
    change = eps * signs(count, channels, 1, width).expand_as(images)
    lowest = margin((images + change).clamp(0, 1))
    for number in range(queries - 1):
        done = 10_000 * number / queries
        halvings = sum(done > mark for mark in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        side = max(1, round((0.8 / 2**halvings * height * width) ** 0.5))
        tried = change.clone()
        for image in range(count):
            top = torch.randint(height - side + 1, (), generator=numbers)
            left = torch.randint(width - side + 1, (), generator=numbers)
            window = tried[image, :, top : top + side, left : left + side]
            window.copy_(eps * signs(channels, 1, 1).expand_as(window))
        of_tried = margin((images + tried).clamp(0, 1))
        lower = of_tried < lowest
        lowest = torch.where(lower, of_tried, lowest)
        change[lower] = tried[lower]
    return (images + change).clamp(0, 1)


def test_square_is_as_strong_as_that_of_its_paper_on_whole_images():
    images, _ = draw_discs(48, 2)
    images = images.repeat(12, 1, 1, 1)  # searches of each: a single one differs by up to 0.05
    label, options = Centre(())(images).argmax(1), {"eps": 6 / 255, "queries": 50}
    theirs = accuracy(square_of_its_paper(Centre(()), images, label, **options), label)
    found = square(Centre((1, 1)), images, label[:, None, None], **options, generator=seeded())
    assert 0.3 < theirs < 0.9  # it is an attack, and does not always succeed
    assert accuracy(found, label) <= theirs + 0.01
