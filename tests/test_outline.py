"""Masks that end where the brightness changes, worked by hand. A margin of 16 pixels is 1."""

import numpy as np
import pytest
import torch

from weak.outline import brighter_by, margin_of, outline, outlined

BRIGHT = {1: True}


def grey_with(value, rows, columns, ground=50.0):
    """Brightness of 16 x 16 pixels with a rectangle in it."""
    grey = np.full((16, 16), ground)
    grey[rows, columns] = value
    return grey


def mask_with(value, rows, columns):
    return grey_with(value, rows, columns, 0).astype(np.uint8)


LESION = np.s_[4:10], np.s_[4:10]
REGION = np.s_[5:9], np.s_[3:9]  # a column too far to the left; grown, it reaches the lesion's ends


BY_HAND = mask_with(1, np.s_[4:10], np.s_[4:9])  # rows 4 and 9 are grown into
BY_HAND[5:9, 9] = 1  # and column 9, without the corners of a cross


@pytest.mark.parametrize(("lesion", "is_brighter"), [(200.0, True), (10.0, False)])
def test_a_region_ends_where_the_lesion_does(lesion, is_brighter):
    found = outline(grey_with(lesion, *LESION), mask_with(1, *REGION), {1: is_brighter})
    assert found.dtype == np.uint8
    assert (found == BY_HAND).all()


def test_a_bright_part_that_the_region_does_not_touch_is_no_lesion():
    grey = grey_with(200.0, np.s_[4:7], np.s_[4:8])
    grey[8, 4] = 200  # in the margin, below the dark row 7
    found = outline(grey, mask_with(1, np.s_[4:8], np.s_[4:8]), BRIGHT)
    assert (found == mask_with(1, np.s_[4:7], np.s_[4:8])).all()


def test_a_region_vanishes_without_a_pixel_on_its_side_and_stays_in_one_brightness():
    mask = mask_with(1, np.s_[5:7], np.s_[5:7])
    grey = grey_with(10.0, np.s_[5:7], np.s_[5:7])
    assert not outline(grey, mask, BRIGHT).any()
    assert (outline(grey, mask, {1: False}) == mask).all()
    assert (outline(np.full((16, 16), 7.0), mask, BRIGHT) == mask).all()


def test_a_region_does_not_grow_into_another_and_unsure_pixels_near_it_are_decided():
    mask = mask_with(1, np.s_[4:8], np.s_[2:6])
    mask[4:8, 6:10] = 2
    mask[3, 2:6] = 255  # above the first: bright
    mask[8, 2:6] = 255  # below it: dark
    mask[12:14] = 255  # far away
    grey = grey_with(200.0, np.s_[3:8], np.s_[2:10])
    found = outline(grey, mask, {1: True, 2: True})
    assert (found[3:8, 2:6] == 1).all()
    assert (found[3:8, 6:10] == 2).all()
    assert (found[8, 2:6] == 0).all()
    assert (found[12:14] == 255).all()
    assert (found > 0).sum() == 40 + 32


def test_how_much_brighter_is_the_mean_over_images_that_show_the_class_and_its_margin():
    mask = mask_with(1, *LESION)
    pairs = [(grey_with(150.0, *LESION), mask), (grey_with(30.0, *LESION), mask)]
    empty, full = (grey_with(0.0, *LESION), mask * 0), (grey_with(0.0, *LESION), mask * 0 + 1)
    assert brighter_by([*pairs, empty, full], 1) == (100 - 20) / 2
    assert brighter_by([empty], 1) == 0


def test_training_images_alone_say_on_which_side_a_class_is():
    masks = torch.from_numpy(np.stack([mask_with(1, *REGION)] * 3))
    greys = [grey_with(200.0, *LESION), grey_with(10.0, *LESION), grey_with(10.0, *LESION)]
    images = torch.from_numpy(np.stack(greys).astype(np.uint8))[..., None].expand(-1, -1, -1, 3)
    bright = outlined(masks, images, [0], 2)
    assert (bright[0].numpy() == BY_HAND).all()
    # the other side of the threshold is what is left of the grown region: 6 of column 3, 4 of 2
    assert bright[1].sum() == 10
    dark = outlined(masks, images, [1], 2)
    assert dark[0].sum() == 10
    assert (dark[1:].numpy() == BY_HAND).all()


def test_the_margin_is_that_of_the_side():
    assert [margin_of(np.zeros((side, side))) for side in (8, 64, 512)] == [1, 3, 24]
