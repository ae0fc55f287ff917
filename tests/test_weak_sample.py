"""The drawn sets of weak/: told apart by texture and hue, and by no threshold on brightness."""

import cv2
import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu

from medood.data.images import read_image, read_mask
from medood.data.workspace import data_name
from weak.floors import otsu_masks
from weak.image_labels import read_image_labels, split
from weak.label_patches import classes_in
from weak.sample import CLASSES, draw_lesion, draw_sample


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The settings that name the sample, its labels, images (N, 64, 64, 3) and masks."""
    workspace = tmp_path_factory.mktemp("sample")
    named = draw_sample(workspace)
    labels = read_image_labels(named["image_labels"])
    images = np.stack([read_image(named["images"] / name) for name in labels.names])
    masks = np.stack([read_mask(named["masks"] / name, 3) for name in labels.names])
    return workspace, labels, images, masks


def in_grey(images):
    return np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images])


def test_the_labels_are_what_the_masks_hold(drawn):
    _, labels, images, masks = drawn
    assert labels.classes == CLASSES
    assert labels.labels.tolist() == [classes_in(mask, 2).tolist() for mask in masks]
    assert images.shape == (60, 64, 64, 3)
    assert len(set(labels.patients)) == 20
    kinds = [tuple(row) for row in labels.labels.tolist()]
    assert kinds.count((0, 0)) == 20
    assert min(kinds.count(kind) for kind in ((1, 0), (0, 1), (1, 1))) >= 12
    for fold in (79, 158, 237):
        split(labels, fold, seed=0)  # both classes and images without are on the training side


def test_no_threshold_on_brightness_finds_a_class(drawn):
    _, labels, images, masks = drawn
    grey = in_grey(images)
    level = np.array([threshold_otsu(image) for image in grey])[:, None, None]
    for value in (1, 2):
        holds = labels.labels[:, value - 1].astype(bool)[:, None, None]  # told for free
        for side in (grey > level, grey <= level):
            found, true = side & holds, masks == value
            assert (found & true).sum() / (found | true).sum() < 0.2


def test_a_hue_tells_the_tinted_ellipses_and_none_but_them(drawn):
    _, labels, images, masks = drawn
    spread = images.max(-1).astype(int) - images.min(-1)
    assert spread[masks != 2].max() == 0
    assert spread[masks == 2].min() > 30


@pytest.mark.parametrize(("method", "images"), [("cam", 60), ("transfer", 90)])
def test_the_same_bytes_are_drawn_everywhere(tmp_path, method, images, capsys):
    for home in ("first", "second"):
        draw_sample(tmp_path / home, method)
    files = [path for path in (tmp_path / "first").rglob("*.*") if ".locks" not in path.parts]
    assert len(files) == images + images + 3  # the labels, the record, the mark
    for path in files:
        other = tmp_path / "second" / path.relative_to(tmp_path / "first")
        assert other.read_bytes() == path.read_bytes(), path
    draw_sample(tmp_path / "first", method)
    assert "kept, drawn before" in capsys.readouterr().out
    assert data_name(tmp_path / "first").startswith("SAMPLE")


# ---------------------------------------------------------------- lesions, for transfer


def lesions(count, side):
    pairs = [draw_lesion(np.random.default_rng(seed), (1,), side) for seed in range(count)]
    images, masks = (np.stack(part) for part in zip(*pairs, strict=True))
    return images, masks == 1


def test_no_threshold_on_brightness_finds_a_lesion():
    images, truth = lesions(40, 48)
    found = otsu_masks(torch.from_numpy(images), torch.ones(40)).numpy() == 1
    dice = [
        2 * (side & true).sum() / (side.sum() + true.sum())
        for side, true in zip(found, truth, strict=True)
    ]
    assert np.median(dice) < 0.3


def test_an_image_without_a_lesion_has_an_empty_mask_and_the_same_brightness():
    image, mask = draw_lesion(np.random.default_rng(0), (), 48)
    assert image.shape == (48, 48, 3)
    assert mask.max() == 0
    assert abs(image.mean() - 128) < 1


def test_the_labels_of_lesions_are_what_the_masks_hold_and_every_fold_has_both_kinds(tmp_path):
    named = draw_sample(tmp_path, "transfer")
    labels = read_image_labels(named["image_labels"])
    masks = [read_mask(named["masks"] / name, 2) for name in labels.names]
    assert labels.classes == CLASSES[:1]
    assert labels.labels[:, 0].tolist() == [int(mask.any()) for mask in masks]
    assert len(set(labels.patients)) == 30
    for fold in (79, 158, 237):
        split(labels, fold, seed=0)
