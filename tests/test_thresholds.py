"""Thresholds from image labels alone."""

import torch

from weak.maps import areas, detection_threshold, masks_of, threshold_of, thresholds_of
from weak.settings import IRNetConfig
from weak.train_irnet import confident_labels


def test_as_many_images_exceed_the_threshold_as_hold_the_class():
    maxima = torch.tensor([1.0, 5.0, 2.0, 4.0])
    # labels decide how many, not which
    assert detection_threshold(maxima, torch.tensor([True, False, True, False])) == 3
    assert detection_threshold(maxima, torch.tensor([True, False, False, False])) == 4.5


def test_an_area_is_what_exceeds_the_threshold_in_images_with_the_class_or_a_pixel():
    maps = torch.tensor([[[[4.0, 2.0, 3.0, 0.0]]], [[[1.0, 0.0, 0.0, 0.0]]]])  # threshold 2.5
    held = torch.tensor([[True], [False]])
    assert areas(maps, held) == [2 / 4]
    assert areas(0 * maps, held) == [1 / 4]


def test_the_threshold_of_an_area():
    maps = torch.arange(8.0).view(2, 2, 2)
    assert threshold_of(maps, 2 / 8) == 5
    assert threshold_of(maps, 3 / 8) == 4


def test_of_the_classes_that_are_held_the_one_that_exceeds_its_threshold_most_wins():
    maps = torch.tensor([[[[0.2, 0.6, 0.9]], [[0.1, 0.5, 0.3]]]]).expand(2, -1, -1, -1)
    held = torch.tensor([[True, True], [False, True]])
    # factors of (.4, .2): (.5, 1.5, 2.25) and (.5, 2.5, 1.5)
    assert masks_of(maps, held, [0.4, 0.2]).tolist() == [[[0, 2, 1]], [[0, 2, 2]]]


def test_a_band_of_area_around_a_class_teaches_irnet_nothing():
    cfg = IRNetConfig(sure_area=0.5, possible_area=1.5)
    maps = torch.arange(10.0).view(1, 1, 1, 10)
    found = confident_labels(cfg, maps, torch.tensor([[True]]), [0.4])  # 2 and 6 of 10 pixels
    assert found.tolist() == [[[0, 0, 0, 0, 255, 255, 255, 255, 1, 1]]]


def test_an_image_that_holds_a_class_keeps_its_highest_pixel():
    """Maps are divided by their maximum: less than a pixel of each would leave none."""
    maps = torch.tensor([[[[1.0, 0.4]]], [[[0.2, 1.0]]]])
    held = torch.tensor([[True], [True]])
    thresholds = thresholds_of(maps, held, [0.7 / 2])
    assert masks_of(maps, held, thresholds).tolist() == [[[1, 0]], [[0, 1]]]
