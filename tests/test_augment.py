"""Augmentation: image and mask move together, and equal seeds give equal results."""

import numpy as np
import pytest
import torch

from medood.training import augmentation as module
from medood.training.augmentation import RANDOM, augment, draw_augmentation, parameters_of
from tests.conftest import drawn_tissue


def augmented(images, masks, seed=0):
    return augment(images, masks, draw_augmentation(len(images), seed))


@pytest.fixture
def batch():
    images, masks = zip(*(drawn_tissue(seed, 128, 128) for seed in range(6)), strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks))


def test_the_mask_goes_where_the_image_goes(batch, monkeypatch):
    for constant in ("BRIGHTNESS", "CONTRAST", "SATURATION", "TINT"):
        monkeypatch.setattr(module, constant, 0.0)
    _, masks = batch
    painted = (masks[..., None] * 40).expand(-1, -1, -1, 3)  # each class in a grey of its own
    images, moved = augmented(painted, masks)
    shown = images[:, 0] / 40
    settled = (shown - shown.round()).abs() < 1e-3  # off the edges, which bilinear blends
    assert settled.float().mean() > 0.7
    assert (shown.round().long() == moved)[settled].float().mean() > 0.99


def test_random_numbers_of_zero_leave_a_patch_as_it_is(batch):
    images, masks = augment(*batch, parameters_of(torch.zeros(6, RANDOM)))
    torch.testing.assert_close(images, batch[0].permute(0, 3, 1, 2).float(), atol=0.01, rtol=0)
    torch.testing.assert_close(masks, batch[1].long())


def test_no_black_border_comes_in(batch):
    bright = torch.full((16, 64, 64, 3), 200, dtype=torch.uint8)
    images, _ = augmented(bright, torch.zeros(16, 64, 64, dtype=torch.uint8))
    assert images.min() > 100


def test_equal_seeds_give_equal_results_and_patches_differ(batch):
    (images, masks), *others = (augmented(*batch, seed) for seed in (0, 0, 1))
    assert images.shape == (6, 3, 128, 128)
    assert 0 <= images.min() < images.max() <= 255
    assert masks.dtype == torch.int64
    assert set(masks.unique().tolist()) <= set(batch[1].unique().tolist())
    torch.testing.assert_close(images, others[0][0], rtol=0, atol=0)
    assert not torch.equal(images, others[1][0])
    same_patch = batch[0][:1].expand(6, -1, -1, -1), batch[1][:1].expand(6, -1, -1)
    images, _ = augmented(*same_patch)
    assert len({image.sum().item() for image in images}) == 6
