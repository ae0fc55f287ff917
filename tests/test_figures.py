"""Pictures: chosen by rule, and showing what they say they show."""

import numpy as np
import torch

from medood.data.images import read_image
from medood.evaluation import figures


def pixels_of(path, colour):
    return int((read_image(path) == np.array(colour, np.uint8)).all(-1).sum())


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


def test_the_search_of_every_fold_is_drawn_also_of_more_than_there_are_colours(tmp_path):
    grid = [{"pct": 0.0, "pnr": 1.0}, {"pct": 1.0, "pnr": 0.5}]
    marks = []
    for folds in (5, 6):
        estimates = {k: {"pct": 1.0, "pnr": 0.5, "grid": grid} for k in range(folds)}
        figures.draw_pct_search(tmp_path / "pct.svg", estimates, 0.65)
        marks.append((tmp_path / "pct.svg").read_text().count("<path"))
    assert marks[1] > marks[0]
