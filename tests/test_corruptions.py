"""Corruptions without an attacker: their bounds and seeds, and what is said of them."""

import math

import numpy as np
import pytest
import torch

from medood.evaluation.statistics import mean_difference
from robust.by_corruption import corruption_table, mean_errors
from robust.corruptions import OF_IMAGES, OF_VOLUMES, STRENGTHS, corrupt
from tests.small_networks import seeded

KINDS = [(OF_IMAGES[name], (3, 32, 32)) for name in OF_IMAGES]
KINDS += [(OF_VOLUMES[name], (1, 16, 20, 12)) for name in OF_VOLUMES]
every_kind = pytest.mark.parametrize(("kind", "shape"), KINDS, ids=[*OF_IMAGES, *OF_VOLUMES])


def smooth(shape, count=2):
    """Images in 0..1 with structures of several sizes."""
    axes = torch.meshgrid(*(torch.linspace(0, 6, size) for size in shape[1:]), indexing="ij")
    waves = sum(torch.sin((k + 1) * axis) for k, axis in enumerate(axes))
    grain = torch.rand(count, *shape, generator=seeded())
    return (0.4 + 0.1 * waves + 0.2 * grain).clamp(0, 1)


@every_kind
def test_the_strongest_changes_most_and_the_same_seed_the_same_whatever_the_batch(kind, shape):
    images = smooth(shape)
    before = images.clone()
    assert corrupt(images, kind, 0, 7) is images
    change = [(corrupt(images, kind, s, 7) - images).abs().mean().item() for s in STRENGTHS]
    assert torch.equal(images, before)
    assert 0 < change[0] < change[-1]
    for strength in STRENGTHS:
        found = corrupt(images, kind, strength, 7)
        assert type(found) is torch.Tensor
        assert (found.shape, found.dtype) == (images.shape, torch.float32)
        assert ((found >= 0) & (found <= 1)).all()
    assert torch.equal(found[:1], corrupt(images[:1], kind, 5, 7))


def test_a_stain_by_no_change_is_the_image():
    image = smooth((3, 32, 32))[0]
    found = OF_IMAGES["stain"].apply(image, 0.0, 0)
    torch.testing.assert_close(found, image, atol=1e-2, rtol=0)


def test_the_mean_errors_of_hendrycks_and_dietterich_by_hand():
    """Two kinds of two strengths; errors of .2 clean, then .4 and .6, .5 and .7 of the first."""

    def scores(clean, **kinds):
        found = {kind: {"1": {"miou": a}, "2": {"miou": b}} for kind, (a, b) in kinds.items()}
        return {"clean": {"0": {"miou": clean}}, **found}

    first, ours = scores(0.8, a=(0.6, 0.4), b=(0.5, 0.3)), scores(0.7, a=(0.6, 0.6), b=(0.7, 0.5))
    plain = (0.8 / 1.0 + 0.8 / 1.2) / 2
    relative = ((0.1 + 0.1) / (0.2 + 0.4) + (0.0 + 0.2) / (0.3 + 0.5)) / 2
    assert mean_errors(ours, first) == pytest.approx((plain, relative))
    assert mean_errors(first, first) == pytest.approx((1, 1))


def test_the_table_has_the_networks_that_every_fold_has():
    row = {"miou": 0.5}
    one = {"clean": {"0": {"miou": 0.8}}, "a": {"1": row, "2": row}}
    attacked = {fold: {"unet": {"8": {"worst_case": row}}} for fold in "12"}
    header, rows = corruption_table(
        {"1": {"unet": one}, "2": {"unet": one, "other": one}}, attacked
    )
    assert header[:3] == ["network", "clean", "a"]
    assert [[cells[0], len(cells)] for cells in rows] == [["unet", len(header)]]
    assert corruption_table({"1": {"unet": one}, "2": {"other": one}}, attacked)[1] == []


def test_the_mean_over_conditions_is_of_the_scores_and_its_interval_of_regions():
    """Two conditions, two regions; the second network loses half of the pixels in one of them."""

    def pixels(*hits):
        return np.array([[[[0, 0], [10 - hit, hit]] for hit in of] for of in hits])

    ours, theirs = pixels((10, 10), (10, 10)), pixels((10, 10), (5, 10))
    names = ["a", "b"]
    gain = mean_difference([(names, ours)], [(names, theirs)])
    assert gain.mean == pytest.approx((0 + 0.25) / 2)
    assert gain.low == 0
    assert gain.high == pytest.approx(0.25)
    assert math.isnan(mean_difference([(["a"], ours[:, :1])], [(["a"], theirs[:, :1])]).low)
