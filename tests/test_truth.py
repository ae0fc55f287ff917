"""True masks of test images."""

import dataclasses

import numpy as np
import pytest

from config import UserError
from medood.data.images import write_png
from tests.conftest import TINY, as_settings_of
from weak.settings import ImagesConfig
from weak.truth import read_truth


@pytest.fixture
def cfg(tmp_path):
    """Settings of a folder of masks and two classes."""
    classes = (("cat", "#009e73"), ("dog", "#0072b2"))
    return as_settings_of(ImagesConfig, TINY, classes=classes, masks=tmp_path)


def write_mask(cfg, values, name="a.png"):
    write_png(cfg.masks / name, np.array(values, np.uint8))


def test_a_true_mask_is_read_by_its_stem_and_padded_with_background(cfg):
    write_mask(cfg, [[1, 2]])
    for name in ("a.dcm", "a", "a.png"):
        truth = read_truth(cfg, name, (1, 2), 4)
        assert truth.dtype == np.uint8
        assert truth.tolist() == [[0] * 4, [1, 1, 2, 2], [1, 1, 2, 2], [0] * 4]


def test_255_is_unsure_where_it_is_no_class(cfg):
    write_mask(cfg, [[0, 1], [255, 2]])
    assert read_truth(cfg, "a", (2, 2), 2).tolist() == [[0, 1], [255, 2]]
    write_mask(cfg, [[0, 255], [255, 0]], "white.png")  # a class as white, by all likelihood
    with pytest.raises(UserError, match="contains 255 and no class: set mask_values to 255 if"):
        read_truth(cfg, "white", (2, 2), 2)
    for values, white in (((1, 2), 255), ((7, 255), 2)):
        told = dataclasses.replace(cfg, mask_values=values)
        assert read_truth(told, "white", (2, 2), 2).tolist() == [[0, white], [white, 0]]


def test_a_mask_that_cannot_be_the_images_is_named(cfg):
    write_mask(cfg, [[1, 2, 0]])
    with pytest.raises(UserError, match="a.png is 3 x 1 pixels but the image a.dcm 2 x 2: replace"):
        read_truth(cfg, "a.dcm", (2, 2), 4)
    with pytest.raises(UserError, match="has no mask of b.png: add it"):
        read_truth(cfg, "b.png", (2, 2), 4)
    write_mask(cfg, [[9, 0]], "c.png")
    with pytest.raises(UserError, match="c.png contains the value 9"):
        read_truth(cfg, "c", (1, 2), 4)
