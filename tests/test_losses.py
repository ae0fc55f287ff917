"""The loss: lambda by hand (the rest: test_unsure_scores.py), and traps that delete the method."""

import math

import pytest
import torch

from medood.training.losses import EPS, SMOOTH, segmentation_loss
from tests import oracles

LOSSES = ["dice", "dice_ce", "paper_code"]


def logits_for(probabilities):
    """Logits whose softmax is the given (N, C, H, W)."""
    return torch.tensor(probabilities).clamp_min(1e-30).log()


def test_lambda_weighs_the_pixels_of_ood_patches_by_hand():
    # an ID pixel of class 1 and an OoD pixel, one class beside background
    p = [[[[0.4]], [[0.6]]], [[[0.7]], [[0.3]]]]
    target = torch.tensor([[[1]], [[0]]])
    weight = torch.tensor([1.0, 2.0])
    s = 3 * SMOOTH + EPS
    background = (2 * 2 * 0.7 + s) / (0.4 + 2 * 0.7 + 2 + s)
    foreground = (2 * 0.6 + s) / (0.6 + 2 * 0.3 + 1 + s)
    loss = segmentation_loss(logits_for(p), target, weight, "dice")
    assert loss.item() == pytest.approx(1 - (background + foreground) / 2, rel=1e-5)
    cross_entropy = -(math.log(0.6) + 2 * math.log(0.7)) / 3
    loss = segmentation_loss(logits_for(p), target, weight, "dice_ce")
    expected = 1 - (background + foreground) / 2 + cross_entropy
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def some_logits(trained=False):
    """Logits that know nothing, or are sure of most pixels and see a false nucleus."""
    logits = torch.randn(8, 7, 128, 128, generator=torch.Generator().manual_seed(0))
    if trained:
        logits[:, 0] += 6
        logits[:, 2, 40:50, 40:50] += 8
    return logits.requires_grad_()


ALL_OOD = torch.zeros(8, 128, 128, dtype=torch.long)
SOME_ID = ALL_OOD.clone()
SOME_ID[:, 10:30, 10:30] = 2
SOME_ID[:, 60:80, 60:80] = 3


@pytest.mark.parametrize("loss", LOSSES)
def test_an_all_ood_batch_has_a_useful_gradient(loss):
    def gradient_norm(logits, target):
        value = segmentation_loss(logits, target, torch.ones(8), loss)
        return torch.autograd.grad(value, logits)[0].norm()

    from_ood = gradient_norm(some_logits(), ALL_OOD)
    assert from_ood > 5e-5
    assert from_ood > 0.4 * gradient_norm(some_logits(), SOME_ID)
    assert gradient_norm(some_logits(trained=True), ALL_OOD) > 1e-5


def test_lambda_zero_makes_ood_patches_cost_nothing():
    logits = torch.randn(2, 7, 8, 8, requires_grad=True)
    target = torch.zeros(2, 8, 8, dtype=torch.long)
    for loss in LOSSES:
        value = segmentation_loss(logits, target, torch.zeros(2), loss)
        assert value.isfinite()
        assert value.item() == pytest.approx(0, abs=1e-6)


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.randn(2, 7, 64, 64, dtype=torch.bfloat16)
    target = torch.randint(0, 7, (2, 64, 64))
    loss = segmentation_loss(logits, target, torch.ones(2), "dice")
    assert loss.dtype == torch.float32
    assert loss == segmentation_loss(logits.float(), target, torch.ones(2), "dice")


def test_dice_equals_a_plain_loop_over_classes(monkeypatch):
    logits = torch.randn(4, 7, 64, 64, generator=torch.Generator().manual_seed(0))
    target = torch.randint(0, 7, (4, 64, 64), generator=torch.Generator().manual_seed(1))
    # the loop smooths by 1 pixel
    monkeypatch.setattr("medood.training.losses.SMOOTH", 1 / target.numel())
    ours = segmentation_loss(logits, target, torch.ones(4), "dice")
    torch.testing.assert_close(ours, oracles.plain_loss(logits, target))
