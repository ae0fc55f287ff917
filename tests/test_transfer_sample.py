"""The drawn lesions of transfer/: told by their texture, and by no threshold on brightness."""

import numpy as np
import torch

from medood.data.images import read_image, read_mask
from medood.data.workspace import SAMPLE_MARK
from weak.baselines import otsu_masks
from weak.image_labels import read_image_labels, split
from weak.transfer_sample import CLASSES, SETTINGS, draw_image, draw_sample


def drawn(count, side):
    pairs = [draw_image(np.random.default_rng(seed), (1,), side) for seed in range(count)]
    images, masks = (np.stack(part) for part in zip(*pairs, strict=True))
    return images, masks == 1


def test_a_lesion_is_as_bright_and_as_varied_as_the_ground_of_its_image():
    for image, lesion in zip(*drawn(20, 48), strict=True):
        grey = image[..., 0].astype(float)
        assert abs(grey[lesion].mean() - grey[~lesion].mean()) < 1
        assert abs(grey[lesion].std() - grey[~lesion].std()) < 2


def test_no_threshold_on_brightness_finds_a_lesion():
    images, lesions = drawn(40, 48)
    found = otsu_masks(torch.from_numpy(images), torch.ones(40)).numpy() == 1
    dice = [
        2 * (side & true).sum() / (side.sum() + true.sum())
        for side, true in zip(found, lesions, strict=True)
    ]
    assert np.median(dice) < 0.3


def test_an_image_without_a_lesion_has_an_empty_mask_and_the_same_brightness():
    image, mask = draw_image(np.random.default_rng(0), (), 48)
    assert image.shape == (48, 48, 3)
    assert mask.max() == 0
    assert abs(image.mean() - 128) < 1


def test_the_labels_are_what_the_masks_hold_and_every_fold_has_both_kinds(tmp_path):
    named = draw_sample(tmp_path)
    labels = read_image_labels(named["image_labels"])
    masks = [read_mask(named["masks"] / name, 2) for name in labels.names]
    assert labels.classes == CLASSES
    assert labels.labels[:, 0].tolist() == [int(mask.any()) for mask in masks]
    assert len(set(labels.patients)) == 30
    side = SETTINGS["patch_size"]
    assert read_image(named["images"] / labels.names[0]).shape == (side, side, 3)
    for fold in (79, 158, 237):
        split(labels, fold, seed=0)
    assert "weak/transfer_sample.py" in (tmp_path / SAMPLE_MARK).read_text()


def test_the_same_bytes_are_drawn_again(tmp_path):
    for home in ("first", "second"):
        draw_sample(tmp_path / home)
    files = [path for path in (tmp_path / "first").rglob("*") if path.is_file()]
    assert len(files) == 90 + 90 + 3  # the labels, the record, the mark
    for path in files:
        other = tmp_path / "second" / path.relative_to(tmp_path / "first")
        assert other.read_bytes() == path.read_bytes(), path
