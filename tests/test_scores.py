"""Scores: against an independent count, and values worked by hand."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medood.data.folds import read_fold
from medood.evaluation.scores import Tally, all_background, paper_iou_dice, scores_of
from medood.evaluation.testing import score_networks
from medood.models.network import build_model


def one_hot(prediction, classes=7):
    return F.one_hot(prediction.long(), classes).permute(0, 3, 1, 2).float()


def tally_of(truth, probability):
    tally = Tally(len(truth), probability.shape[1])
    for part in (slice(0, 2), slice(2, None)):  # batches must not matter
        tally.add(part, probability[part], truth[part])
    return tally


def test_the_three_errors_by_hand():
    #        truth: 4 background, 2 of class 1, 2 of class 3
    matrix = np.zeros((7, 7), int)
    matrix[0, 0], matrix[0, 3] = 2, 2
    matrix[1, 1], matrix[1, 0] = 1, 1
    matrix[3, 1], matrix[3, 3] = 1, 1
    scores = scores_of(matrix)
    assert scores["fg_to_bg"] == 1 / 4
    assert scores["bg_to_fg"] == 2 / 4
    assert scores["fg_to_fg"] == 1 / 4
    nan = np.nan
    np.testing.assert_allclose(scores["iou"], [2 / 5, 1 / 3, nan, 1 / 4, nan, nan, nan])
    np.testing.assert_allclose(scores["dice"], [4 / 7, 1 / 2, nan, 2 / 5, nan, nan, nan])
    assert scores["miou"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert scores["dsc"] == pytest.approx((1 / 2 + 2 / 5) / 2)


def test_a_class_that_only_the_prediction_has_moves_no_mean():
    truth = torch.zeros(2, 8, 8, dtype=torch.long)
    truth[:, :4] = 2
    wrong = truth.clone()
    wrong[0, 7, 7] = 5  # one pixel of a class that does not occur
    scores, best = (tally_of(truth, one_hot(called)).scores() for called in (wrong, truth))
    assert scores["miou"] == best["miou"] == 1
    assert scores["bg_to_fg"] == 1 / 64
    assert scores["iou"][5] is None


def test_the_paper_measure_equals_smp(recwarn):
    from segmentation_models_pytorch.metrics import f1_score, get_stats, iou_score

    truth = torch.randint(0, 7, (4, 16, 16), generator=torch.Generator().manual_seed(0))
    logits = 2 * torch.randn(4, 7, 16, 16, generator=torch.Generator().manual_seed(1))
    probability = (logits + 5 * one_hot(truth)).softmax(1)
    stats = get_stats(probability, one_hot(truth).long(), mode="multilabel", threshold=0.5)
    iou, dice = paper_iou_dice(probability, truth)
    assert iou.mean().item() == pytest.approx(iou_score(*stats, reduction="micro-imagewise").item())
    assert dice.mean().item() == pytest.approx(f1_score(*stats, reduction="micro-imagewise").item())


def test_background_everywhere_is_the_floor():
    truth = torch.zeros(2, 10, 10, dtype=torch.long)
    truth[0, 0, :] = 1  # 10 of 100 pixels
    scores = tally_of(truth, all_background(truth, 7)).scores()
    assert scores["miou"] == scores["dsc"] == scores["bg_to_fg"] == 0
    assert scores["fg_to_bg"] == 1
    assert scores["miou_paper"] == pytest.approx((0.9 / 1.1 + 1) / 2)
    assert scores["dsc_paper"] == pytest.approx((0.9 + 1) / 2)


def test_the_patchwise_iou_gives_a_patch_without_the_class_a_whole_point():
    truth = torch.zeros(4, 4, 4, dtype=torch.long)
    truth[0, :2] = 1  # 8 pixels, of which half are found; another patch has 4 false ones
    prediction = torch.zeros(4, 4, 4, dtype=torch.long)
    prediction[0, 0] = 1
    prediction[1, 0] = 1
    iou = tally_of(truth, one_hot(prediction)).patchwise_iou()
    assert iou[1] == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    assert iou[2] == 1  # neither there nor seen
    assert tally_of(truth, all_background(truth, 7)).patchwise_iou()[1] == 3 / 4


def test_a_fold_without_nuclei_has_no_foreground_scores():
    truth = torch.zeros(2, 8, 8, dtype=torch.long)
    scores = tally_of(truth, one_hot(truth)).scores()
    assert scores["miou"] is scores["dsc"] is scores["fg_to_bg"] is None
    assert scores["miou_paper"] == 1


def test_networks_are_scored_in_float32_whatever_the_precision_of_training(patched):
    folder = patched.workspace / "models" / "untrained"
    build_model(patched).save_pretrained(folder)
    rest = {"it": folder}, read_fold(patched, 1).test, ""
    own, other = (
        score_networks(dataclasses.replace(patched, precision=precision), *rest)
        for precision in ("float32", "bfloat16")
    )
    assert own.scores == other.scores
    assert torch.equal(own.predictions["it"], other.predictions["it"])
