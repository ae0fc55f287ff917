"""Which masks the classifier trusts: see weak/trust.py."""

import numpy as np
import pytest
import torch

from medood.data.files import read_table
from medood.data.images import write_png
from tests.conftest import TINY, as_settings_of
from weak import trust
from weak.settings import MasksConfig
from weak.trust import painted_over, read_trust, write_trust


def test_a_mask_is_painted_over_with_its_surroundings():
    image = np.full((64, 64, 3), 50, np.uint8)
    image[30:34, 30:34] = 250
    mask = np.zeros((64, 64), bool)
    mask[30:34, 30:34] = True
    assert (painted_over(image, mask) == 50).all()
    assert (painted_over(image, ~np.zeros_like(mask)) == image).all()  # nothing surrounds it
    assert painted_over(image, np.zeros_like(mask)) is image


@pytest.fixture
def ranked(tmp_path, monkeypatch):
    """trust.csv of ten images by a linear classifier, the last mask in the wrong place."""

    def sum_of_bright(cfg, classifier, images):
        return (images[..., 0] > 200).flatten(1).sum(1, keepdim=True).float() - 1

    monkeypatch.setattr(trust, "logits_by", sum_of_bright)
    monkeypatch.setattr(trust, "with_classes", lambda cfg: cfg)
    cfg = as_settings_of(MasksConfig, TINY, workspace=tmp_path, image_size=32, method="unet")
    paths, masks = [], torch.zeros(11, 32, 32, dtype=torch.uint8)
    for number in range(11):
        image = np.full((32, 32, 3), 50, np.uint8)
        image[8:12, 8:12] = 250
        paths.append(tmp_path / f"{number:02}.png")
        write_png(paths[-1], image)
        masks[number, 8:12, 8:12] = 1
    masks[9] = masks[9].roll(12, 1)  # covers no bright pixel
    masks[10] = 0  # without a mask there is nothing to trust
    write_trust(cfg, 79, tmp_path, paths, masks)
    return tmp_path, paths


def test_a_class_that_is_still_seen_without_its_mask_is_at_the_top(ranked):
    folder, _ = ranked
    rows = read_table(folder / trust.TRUST)
    assert [row["img_name"] for row in rows] == ["09.png", *(f"{n:02}.png" for n in range(9))]
    assert [float(row["before"]) for row in rows] == [15.0] * 10
    assert [float(row["after"]) for row in rows] == [15.0] + [-1.0] * 9


def test_masks_of_an_earlier_version_have_no_trust(tmp_path):
    assert read_trust(tmp_path, ["a.png"]) == {}
