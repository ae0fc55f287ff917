"""Which masks the classifier trusts: see weak/trust.py."""

import numpy as np
import torch

from medood.data.files import read_table
from medood.data.images import write_png
from tests.conftest import TINY, as_settings_of
from weak import trust
from weak.settings import MasksConfig
from weak.trust import painted_over, ranked_by_trust, write_trust


def test_a_mask_is_painted_over_with_its_surroundings():
    image = np.full((64, 64, 3), 50, np.uint8)
    image[30:34, 30:34] = 250
    mask = np.zeros((64, 64), bool)
    mask[30:34, 30:34] = True
    assert (painted_over(image, mask) == 50).all()
    assert (painted_over(image, ~np.zeros_like(mask)) == image).all()  # nothing surrounds it
    assert painted_over(image, np.zeros_like(mask)) is image


def test_a_class_that_is_still_seen_without_its_mask_is_at_the_top(tmp_path, monkeypatch):
    """By a linear classifier: the third mask is in the wrong place, the fourth image has none."""

    def sum_of_bright(cfg, classifier, images):
        return (images[..., 0] > 200).flatten(1).sum(1, keepdim=True).float() - 1

    monkeypatch.setattr(trust, "logits_by", sum_of_bright)
    monkeypatch.setattr(trust, "with_classes", lambda cfg: cfg)
    cfg = as_settings_of(MasksConfig, TINY, workspace=tmp_path, image_size=32, method="unet")
    image = np.full((32, 32, 3), 50, np.uint8)
    image[8:12, 8:12] = 250
    masks = torch.zeros(4, 32, 32, dtype=torch.uint8)
    masks[:2, 8:12, 8:12] = 1
    masks[2, 8:12, 20:24] = 1
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path in paths:
        write_png(path, image)
    write_trust(cfg, 79, tmp_path, paths, masks)
    rows = [tuple(row.values()) for row in read_table(tmp_path / trust.TRUST)]
    right = "15.000", "-1.000"
    assert rows == [("2.png", "15.000", "15.000"), ("0.png", *right), ("1.png", *right)]
    assert ranked_by_trust(tmp_path, ["1.png", "3.png", "2.png"]) == ["2.png", "1.png"]
    assert ranked_by_trust(tmp_path / "of an earlier version", ["1.png"]) == []
