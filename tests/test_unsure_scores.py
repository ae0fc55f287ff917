"""Unsure pixels, 255 in a mask, count in no loss, no score and no attack."""

import numpy as np
import pytest
import torch

from config import UserError
from medood.attacks import ascent
from medood.attacks.fab import GoalTask, goal_margin
from medood.attacks.iterates import bounded, image_dice
from medood.attacks.square import soft_dice_loss
from medood.attacks.together import by_name
from medood.data.images import write_png
from medood.data.labels import UNSURE
from medood.evaluation.scores import all_background, confusion, paper_iou_dice
from medood.evaluation.testing import score_networks
from medood.models.network import build_model
from medood.training.augmentation import augment, draw_augmentation
from medood.training.losses import EPS, SMOOTH, segmentation_loss
from robust.attack import with_sure_pixels
from tests.small_networks import some_images, some_network
from tests.test_losses import logits_for
from tests.test_scores import one_hot, tally_of

U = UNSURE


def test_the_loss_by_hand():
    # three pixels, three classes; the truth is 0, 1 and unsure: the third counts in nothing
    p = [[[[0.5, 0.25, 0.1]], [[0.5, 0.5, 0.1]], [[0.0, 0.25, 0.8]]]]
    target = torch.tensor([[[0, 1, U]]])
    s = 2 * SMOOTH + EPS
    dice = 1 - ((1.0 + s) / (0.75 + 1 + s) + (1.0 + s) / (1.0 + 1 + s) + s / (0.25 + s)) / 3
    flat = 1 - (2.0 + s) / (4 + s)
    # cross-entropy: the mean of two pixels of probability 1/2
    for loss, expected in (("dice", dice), ("paper_code", flat), ("dice_ce", dice + np.log(2))):
        value = segmentation_loss(logits_for(p), target, torch.ones(1), loss)
        assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["dice", "dice_ce", "paper_code"])
def test_unsure_pixels_count_as_if_they_were_not_there_and_have_no_gradient(loss):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 8, generator=generator)
    target = torch.randint(0, 4, (2, 6, 8), generator=generator)
    weight = torch.tensor([1.0, 0.5])
    small = logits[..., :5].clone().requires_grad_()
    expected = segmentation_loss(small, target[..., :5], weight, loss)
    expected.backward()
    target[..., 5:] = U
    logits.requires_grad_()
    value = segmentation_loss(logits, target, weight, loss)
    value.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(logits.grad[..., :5], small.grad)
    assert (logits.grad[..., 5:] == 0).all()
    assert (logits.grad[..., :5] != 0).all()
    target[1] = U  # a patch without a sure pixel counts as no patch
    both = segmentation_loss(logits, target, weight, loss)
    torch.testing.assert_close(both, segmentation_loss(logits[:1], target[:1], weight[:1], loss))
    nothing = segmentation_loss(logits, torch.full_like(target, U), weight, loss)
    assert nothing.item() == 0
    assert (torch.autograd.grad(nothing, logits)[0] == 0).all()


def test_augmentation_moves_255_as_it_is():
    masks = torch.zeros(8, 32, 32, dtype=torch.uint8)
    masks[:, :16], masks[:, :, 20:] = 6, U
    images = torch.zeros(8, 32, 32, 3, dtype=torch.uint8)
    _, moved = augment(images, masks, draw_augmentation(8, 0))
    for patch in moved:
        assert set(patch.unique().tolist()) == {0, 6, U}
    _, moved = augment(images, torch.full_like(masks, U), draw_augmentation(8, 0))
    assert (moved == U).all()


def test_confusion_leaves_unsure_pixels_out():
    truth = torch.tensor([[[0, 1, U]], [[U, U, U]], [[2, U, 2]]], dtype=torch.uint8)
    predicted = torch.tensor([[[0, 2, 2]], [[0, 1, 2]], [[2, 0, 1]]])
    expected = [[[1, 0, 0], [0, 0, 1], [0, 0, 0]], [[0] * 3] * 3, [[0] * 3, [0] * 3, [0, 1, 1]]]
    # of many patches, the place of a class 255 would be that of a class of a later patch
    many = confusion(truth.repeat(100, 1, 1), predicted.repeat(100, 1, 1), 3)
    assert many.tolist() == 100 * expected


def test_the_papers_scores_are_those_of_a_smaller_patch():
    # probabilities of the true class 0: 0.5, 0.4, 0.9; the fourth pixel is unsure
    probability = torch.zeros(2, 3, 1, 4)
    probability[0, 0, 0] = torch.tensor([0.5, 0.4, 0.9, 0.1])
    probability[0, 1, 0] = torch.tensor([0.2, 0.6, 0.1, 0.9])
    truth = torch.tensor([[[0, 0, 0, U]], [[U] * 4]], dtype=torch.uint8)
    iou, dice = paper_iou_dice(probability, truth)
    assert iou.tolist() == [2 / (3 + 3 - 2), 0]
    assert dice.tolist() == [2 * 2 / (3 + 3), 0]


def test_every_score_is_that_of_the_sure_pixels_and_patches():
    generator = torch.Generator().manual_seed(0)
    truth, predicted = torch.randint(0, 3, (2, 4, 6, 6), generator=generator)
    expected = tally_of(truth[:3, :, :4], one_hot(predicted[:3, :, :4], 3))
    floor = tally_of(truth[:3, :, :4], all_background(truth[:3, :, :4], 3))
    truth[:, :, 4:] = U
    truth[3] = U  # no patch
    found = tally_of(truth, one_hot(predicted, 3))
    assert found.scores() == expected.scores()
    assert found.patchwise_iou() == expected.patchwise_iou()
    assert found.by_region(list("aabb")).patches.tolist() == [2, 1]
    assert floor.scores() == tally_of(truth, all_background(truth, 3)).scores()


def test_a_test_without_a_sure_pixel_is_refused(patched):
    folder = patched.workspace / "untrained"
    build_model(patched).save_pretrained(folder)
    names = sorted(path.name for path in (patched.workspace / "Mask_Patchs").glob("*.png"))
    for name in names[:2]:
        write_png(patched.workspace / "Mask_Patchs" / name, np.full((32, 32), U, np.uint8))
    with pytest.raises(UserError, match="fold 1: every pixel of the test patches is unsure"):
        score_networks(patched, {"it": folder}, names[:2], "fold 1")
    assert with_sure_pixels(patched, names[:3]) == [names[2]]
    with pytest.raises(UserError, match="every pixel of the test patches is unsure"):
        with_sure_pixels(patched, names[:2])


def test_the_score_under_attack_is_of_sure_pixels():
    target = torch.tensor([[[0, 1, 1, U]], [[0, 0, U, U]], [[U] * 4]])
    predicted = torch.tensor([[[1, 1, 0, 1]], [[0, 1, 1, 1]], [[0] * 4]])
    # class 1: one hit of two true and two called; then half of the background; then nothing
    assert image_dice(predicted, target, 3).tolist() == [2 / 4, 0.5, 0]


def test_no_loss_of_an_attack_moves_an_unsure_pixel():
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    target[:, :, :2] = U
    task = bounded(torch.zeros(2, 1, 4, 4), target, 0.0, 0.0, 1.0)
    goal_task = GoalTask(**vars(task), goal=torch.ones_like(target))
    right = logits.argmax(1) == target
    for loss in (*ascent.LOSSES.values(), goal_margin, soft_dice_loss):
        value = loss(logits, goal_task, right, 0.5)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert (gradient[..., :2] == 0).all(), loss
        assert gradient[..., 2:].any(), loss


@pytest.mark.parametrize("name", ["pgd", "sea_js", *by_name([], 3, 2, 4)])
def test_every_attack_takes_unsure_pixels(name):
    images, target = some_images((9, 7))
    target[:, 3:6], target[2] = U, U
    found = by_name([name], 3, 4, 6)[name](some_network((9, 7)), images, target, 8 / 255)
    assert (found - images).abs().max() <= 8 / 255
    assert found.isfinite().all()
    if name != "noise":
        assert torch.equal(found[2], images[2])  # there is nothing to attack
