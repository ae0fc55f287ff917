"""Intervals: worked by hand, blind to the number of patches, and honest about chance."""

import numpy as np
import pytest
import torch

from medood.evaluation.scores import RegionCounts
from medood.evaluation.statistics import paired_differences, pool
from tests.conftest import TINY
from tests.test_scores import one_hot, tally_of

NAMES = TINY.class_names


def region_counts(missed, regions=None, patches=1):
    """Counts of regions with 100 pixels of class 1 per patch, of which a share is missed."""
    matrix = np.zeros((len(missed), 7, 7), np.int64)
    matrix[:, 1, 0] = np.round(100 * np.array(missed))
    matrix[:, 1, 1] = 100 - matrix[:, 1, 0]
    matrix[:, 0, 0] = 100
    names = regions or [f"region_{i}" for i in range(len(missed))]
    paper = patches * (1 - np.array(missed))
    return RegionCounts(names, patches * matrix, paper, paper, np.full(len(missed), patches))


def test_two_regions_by_hand():
    ours, theirs = region_counts([0.5, 0.2]), region_counts([0.3, 0.3])
    gain = paired_differences([ours], [theirs], NAMES)["fg_to_bg"]
    # of two regions a resample draws the first twice, both, or the second twice: 1/4, 1/2, 1/4
    assert gain == pytest.approx((0.05, -0.1, 0.2))
    assert gain.includes_zero
    assert gain.text() == "5.0 [-10.0, 20.0] n.s."
    ours, theirs = region_counts([0.1, 0.2]), region_counts([0.4, 0.3])
    gain = paired_differences([ours], [theirs], NAMES)["fg_to_bg"]
    assert gain == pytest.approx((-0.2, -0.3, -0.1))
    assert gain.text() == "-20.0 [-30.0, -10.0]"


def test_more_patches_of_the_same_regions_are_no_more_evidence():
    missed = np.random.default_rng(0).uniform(0.1, 0.5, (2, 12))
    few, many = (
        paired_differences(*([region_counts(of, patches=count)] for of in missed), NAMES)
        for count in (1, 50)
    )
    for name in ("miou", "fg_to_bg", "miou_paper", "IoU epithelial", "IoU neutrophil"):
        assert few[name] == pytest.approx(many[name], nan_ok=True)


def test_the_difference_is_that_of_the_printed_scores():
    generator = torch.Generator().manual_seed(0)
    regions = ["b", "a", "b", "c", "a"]
    tests = []
    for _ in range(2):  # folds
        truth = torch.randint(0, 6, (5, 8, 8), generator=generator)
        is_kept = [torch.rand(5, 8, 8, generator=generator) < share for share in (0.7, 0.4)]
        tests.append([tally_of(truth, one_hot(torch.where(kept, truth, 0))) for kept in is_kept])
    both = ([pair[i].by_region(regions) for pair in tests] for i in (0, 1))
    gains = paired_differences(*both, NAMES)
    scores = [[tally.scores() for tally in pair] for pair in tests]
    for name in ("miou", "dsc", "miou_paper", "dsc_paper", "fg_to_bg", "bg_to_fg", "fg_to_fg"):
        expected = np.mean([ours[name] - theirs[name] for ours, theirs in scores])
        assert gains[name].mean == pytest.approx(expected)
    expected = np.mean([ours["iou"][2] - theirs["iou"][2] for ours, theirs in scores])
    assert gains["IoU epithelial"].mean == pytest.approx(expected)
    assert np.isnan(gains["IoU connective"].mean)  # it does not occur
    assert gains["IoU connective"].text() == "-"


def test_a_single_region_gives_no_interval():
    gain = paired_differences([region_counts([0.5])], [region_counts([0.3])], NAMES)["fg_to_bg"]
    assert gain.mean == pytest.approx(0.2)
    assert np.isnan([gain.low, gain.high]).all()
    assert gain.includes_zero  # what is undefined is not a gain
    assert gain.text() == "20.0 (no interval)"
    assert gain.plain() == {"mean": pytest.approx(0.2), "low": None, "high": None}


def test_networks_tested_on_different_patches_are_refused():
    ours, theirs = region_counts([0.5, 0.2]), region_counts([0.5, 0.2], patches=2)
    with pytest.raises(ValueError, match="different patches"):
        paired_differences([ours], [theirs], NAMES)


def test_folds_pool_into_one_test():
    first = region_counts([0.5, 0.1], ["a", "b"])
    second = region_counts([0.2, 0.3], ["b", "c"], patches=2)
    whole = pool([first, second])
    assert whole.regions == ["a", "b", "c"]
    assert whole.patches.tolist() == [1, 3, 2]
    assert whole.confusion[:, 1, 0].tolist() == [50, 10 + 40, 60]
    assert whole.iou_paper == pytest.approx([0.5, 0.9 + 1.6, 1.4])


def test_trainings_that_differ_by_chance_seldom_look_like_a_gain():
    """Both networks are equally good; each of 9 trainings moves all regions by chance."""
    rng = np.random.default_rng(0)
    claims = 0
    for _ in range(30):
        missed = 0.4 + rng.normal(0, 0.03, (2, 9, 1)) + rng.normal(0, 0.02, (2, 9, 20))
        ours, theirs = ([region_counts(run) for run in of] for of in missed)
        claims += not paired_differences(ours, theirs, NAMES)["fg_to_bg"].includes_zero
    assert claims <= 5  # 5 % would be 1.5; drawing regions alone claims a gain in most
