"""Pictures: chosen by rule, and showing what they say they show."""

import numpy as np
import pytest
import torch

from config import LIZARD
from medood.data.dataset import Patches
from medood.data.images import read_image
from medood.data.labels import palette
from medood.evaluation import figures


@pytest.fixture
def patches():
    """Three grey patches of 16 x 16 pixels."""
    images = torch.full((3, 16, 16, 3), 128, dtype=torch.uint8)
    masks = torch.zeros(3, 16, 16, dtype=torch.uint8)
    return Patches(["a_0.png", "a_1.png", "b_0.png"], images, masks, torch.ones(3).bool())


def pixels_of(path, colour):
    return int((read_image(path) == np.array(colour, np.uint8)).all(-1).sum())


def test_the_contact_sheet_paints_what_is_seen_in_the_patches(tmp_path, patches):
    predicted = torch.zeros(3, 16, 16, dtype=torch.uint8)
    figures.draw_contact_sheet(tmp_path / "none.png", "nothing seen", patches, predicted, LIZARD)
    predicted[0] = 2  # all of one patch of three
    figures.draw_contact_sheet(tmp_path / "one.png", "epithelial seen", patches, predicted, LIZARD)
    green, grey = palette(LIZARD)[2], (128, 128, 128)
    only_legend = pixels_of(tmp_path / "none.png", green)
    painted = pixels_of(tmp_path / "one.png", green) - only_legend
    left = pixels_of(tmp_path / "none.png", grey) - pixels_of(tmp_path / "one.png", grey)
    assert painted > 5000
    assert painted == pytest.approx(left, rel=0.05)  # what was one patch of the six pictures
    assert painted == pytest.approx(pixels_of(tmp_path / "none.png", grey) / 6, rel=0.05)


def test_examples_are_the_best_the_median_and_the_worst_change():
    baseline = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5])
    med_ood = torch.tensor([0.6, 0.2, 0.5, 0.9, 0.4])
    chosen = figures.choose_examples({"baseline": baseline, "Med-OoD": med_ood})
    assert chosen == {"best change": 3, "median change": 2, "worst change": 1}


def test_bars_leave_out_what_no_run_defines(tmp_path):
    bars = {"baseline": {"x": [0.2, 0.4], "y": [None, None]}, "Med-OoD": {"x": [0.3, 0.5], "y": []}}
    figures.draw_bars(tmp_path / "bars.png", "title", "IoU", bars)
    with_y = {**bars, "baseline": {"x": [0.2, 0.4], "y": [0.5]}}
    figures.draw_bars(tmp_path / "more.png", "title", "IoU", with_y)
    without, more = (read_image(tmp_path / f"{name}.png").mean() for name in ("bars", "more"))
    assert without > more  # a bar is darker than none


def test_intervals_that_hold_zero_are_grey(tmp_path):
    blue = tuple(int(figures.BLUE[i : i + 2], 16) for i in (1, 3, 5))
    figures.draw_intervals(tmp_path / "a.png", "title", "points", {"gain": (0.1, -0.1, 0.3)})
    figures.draw_intervals(tmp_path / "b.png", "title", "points", {"gain": (0.2, 0.1, 0.3)})
    assert pixels_of(tmp_path / "a.png", blue) == 0
    assert pixels_of(tmp_path / "b.png", blue) > 50


def test_no_false_pixel_at_all_can_be_drawn(tmp_path):
    figures.draw_false_pixels(tmp_path / "false.png", "title", np.zeros((4, 6), int), LIZARD)
    assert (tmp_path / "false.png").exists()
