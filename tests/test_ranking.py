"""Scores that no threshold moves: by hand, against scikit-learn."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from medood.data.images import UNSURE
from medood.evaluation.ranking import curve, log_odds, rate_at
from medood.evaluation.scores import Tally, all_background
from medood.evaluation.statistics import paired_differences, pool

# six pixels, from the lowest score to the highest
LOGITS = torch.tensor([-3.0, -2, -1, 1, 2, 3])
TRUTH = torch.tensor([0, 0, 1, 0, 1, 1])
OTHER = torch.tensor([1, 0, 0, 1, 0, 1])  # the truth in the order of a worse network


def probability_of(logits):
    """Two classes, (n, 2, 1, W), from the logits of foreground, (n, W)."""
    return torch.stack([-logits, logits], 1).div(2).softmax(1)[:, :, None]


def tally_of(logits, truth):
    tally = Tally(len(truth), 2, (1, truth.shape[1]))
    tally.add(slice(None), probability_of(logits), truth[:, None])
    return tally


def counts_of(logits, truth):
    return tally_of(logits, truth).by_region(["all"] * len(truth))


def test_six_pixels_by_hand():
    scores = tally_of(LOGITS[None], TRUTH[None]).scores()
    # from the top: 1 of 1, 2 of 2, then a false one, 3 of 4
    assert scores["ap"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert scores["auroc"] == pytest.approx(8 / 9)  # one of 9 pairs is in the wrong order
    assert (scores["fg_to_bg"], scores["bg_to_fg"]) == (1 / 3, 1 / 3)


def test_the_calibration_error_by_hand():
    said = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.8, 0.8])
    truth = torch.tensor([1, 0, 0, 0, 1, 1])  # of a bin 25 % where 10 are said, and 100 where 80
    scores = tally_of(said.logit()[None], truth[None]).scores()
    assert scores["ece"] == pytest.approx((4 * 0.15 + 2 * 0.2) / 6, abs=1e-6)


def test_a_tie_is_one_threshold_and_half_a_pair():
    scores = tally_of(torch.tensor([[0.0, 0, 2]]), torch.tensor([[0, 1, 1]])).scores()
    assert scores["ap"] == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert scores["auroc"] == pytest.approx(3 / 4)


def test_matched_rates_by_hand():
    first, second = counts_of(LOGITS[None], TRUTH[None]), counts_of(LOGITS[None], OTHER[None])
    missed, false = curve(second.ranked[0])
    # the second network's, threshold by threshold from the lowest pixel up
    points = list(dict.fromkeys(zip((3 * missed).round(6), (3 * false).round(6), strict=True)))
    assert points == [(0, 3), (1, 3), (1, 2), (1, 1), (2, 1), (2, 0), (3, 0)]
    own, other = first.plain_scores(first), second.plain_scores(first)
    # by argmax, the first has 1/3 of each; on its curve both are reached, and bettered: see points
    assert (own["fg_to_bg"], own["bg_to_fg"]) == (1 / 3, 1 / 3)
    assert own["bg_to_fg_matched"] == own["fg_to_bg_matched"] == 0
    assert other["bg_to_fg_matched"] == other["fg_to_bg_matched"] == pytest.approx(1 / 3)
    rate = np.array([0.5, 2 / 3, 0, 1])
    rising, falling = np.array([[0, 1 / 3, 1]] * 4), np.array([[1, 0.6, 0]] * 4)
    assert rate_at(rising, falling, rate) == pytest.approx([0.45, 0.3, 1, 0])


def of_a_network(distance, spread, middle, share, seed=0):
    """Return the logits and the truth of 400,000 pixels in four patches, (4, 100000) each."""
    generator = torch.Generator().manual_seed(seed)
    truth = (torch.rand(4, 100_000, generator=generator) < share).long()
    drawn = torch.randn(truth.shape, generator=generator)
    return middle + spread * (drawn + distance * truth), truth


@pytest.mark.parametrize(
    "network",  # distance of foreground from background, spread of its logits, their middle, share
    [
        pytest.param((3, 2, 0, 0.2), id="strong"),
        pytest.param((1.8, 9, -2, 0.002), id="sure"),
        # after a few steps: all logits lie in what was one bin
        pytest.param((0.4, 1e-4, 0, 0.2), id="weak"),
        pytest.param((-1, 1, 3, 0.002), id="worse than chance"),
    ],
)
def test_ranks_equal_scikit_learn_on_networks_of_any_strength(network):
    logits, truth = of_a_network(*network)
    scores = tally_of(logits, truth).scores()
    odds = log_odds(probability_of(logits)).flatten()
    for name, theirs in (("ap", average_precision_score), ("auroc", roc_auc_score)):
        assert scores[name] == pytest.approx(theirs(truth.flatten(), odds), abs=2e-4), name


def test_sure_pixels_are_told_apart_at_both_ends():
    logits = torch.tensor([[-80.0, -30, -20, -10, 10, 16, 16.1, 16.2, 80]])
    ranked = counts_of(logits, torch.tensor([[1, 0] * 4 + [0]])).ranked
    assert ranked[0].sum(0).max() == 1


def test_unsure_pixels_are_ranked_nowhere():
    truth = torch.tensor([0, 0, 1, UNSURE, 1, 1])  # the one that was out of order
    assert counts_of(LOGITS[None], truth[None]).ranked.sum() == 5
    assert tally_of(LOGITS[None], truth[None]).scores()["ap"] == 1


def test_background_everywhere_ranks_nothing():
    truth = torch.tensor([[[0, 0, 0, 1]]])
    floor = Tally(1, 3, (1, 4))
    floor.add(slice(None), all_background(truth, 3), truth)
    scores = floor.by_region(["all"]).plain_scores(counts_of(LOGITS[None], TRUTH[None]))
    assert (scores["ap"], scores["auroc"]) == (1 / 4, 1 / 2)
    assert scores["bg_to_fg_matched"] == pytest.approx(1 - 1 / 3)  # chance


@pytest.mark.parametrize("value", [0, 1])
def test_without_foreground_or_background_there_is_nothing_to_rank(value):
    counts = counts_of(LOGITS[None], torch.full((1, 6), value))
    scores = counts.plain_scores(counts)
    assert scores["ap"] is scores["auroc"] is None
    assert scores["bg_to_fg_matched"] is scores["fg_to_bg_matched"] is None


def test_weights_that_are_no_numbers_still_give_scores():
    tally = Tally(1, 2, (1, 6))
    tally.add(slice(None), torch.full((1, 2, 1, 6), torch.nan), TRUTH[None, None])
    scores = tally.scores()
    assert (scores["ap"], scores["auroc"]) == (1 / 2, 1 / 2)  # all pixels are alike


def random_counts(seed, regions=8):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 2, (regions, 300), generator=torch.Generator().manual_seed(9))
    logits = 2 * torch.randn(regions, 300, generator=generator) + truth
    return tally_of(logits, truth).by_region([f"region_{i}" for i in range(regions)])


def test_a_network_does_not_differ_from_itself_at_any_rate():
    gains = paired_differences([random_counts(0)], [random_counts(0)], ("background", "nucleus"))
    for name in ("ap", "auroc", "bg_to_fg_matched", "fg_to_bg_matched"):
        assert gains[name] == (0, 0, 0)


def test_each_resample_matches_at_its_own_rate():
    ours, theirs = random_counts(1), random_counts(2)
    drawn = np.array([[2.0, 0, 1, 1, 0, 3, 1, 0]])
    together = ours.scores(np.vstack([np.ones(8), drawn]), theirs)
    alone = ours.scores(drawn, theirs)
    for name, values in alone.items():
        np.testing.assert_allclose(together[name][1:], values)
    at = theirs.scores(drawn)["fg_to_bg"]
    missed, false = curve((drawn[0] @ ours.ranked.reshape(8, -1)).reshape(2, -1))
    assert alone["bg_to_fg_matched"] == rate_at(missed[None], false[None], at)


def test_counts_of_folds_pool_with_their_ranks():
    """Networks of two folds have bins of their own, and are ranked by their scores together."""
    tests = [of_a_network(2, spread, spread, 0.1, seed) for spread, seed in ((1, 1), (3, 2))]
    first, second = (counts_of(*test) for test in tests)
    second = dataclasses.replace(second, regions=["other"])
    whole = pool([first, second])
    assert whole.ranked.sum((1, 2)).tolist() == [400_000] * 2
    assert (first.ranked[0, :, 1:] == whole.ranked[0, :, whole.ranked[0].any(0)].T).all()
    logits, truth = (torch.cat(part).flatten() for part in zip(*tests, strict=True))
    ap = whole.scores(np.ones((1, 2)))["ap"][0]
    assert ap == pytest.approx(average_precision_score(truth, logits), abs=4e-4)
