"""The detector's view: black holes show, what is the same does not, and regions are drawn."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from config import UserError
from medood.data.folds import read_fold
from medood.data.images import write_png
from studies import detector
from tests.test_fill import draw_patches, pretend
from transfer import train_fill, training
from transfer.fill import PLAIN

CPU = torch.device("cpu")
COUNT = 200  # windows of each kind


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(detector, "STEPS", 80)
    monkeypatch.setattr(detector, "BATCH", 32)


def clouds(seed):
    """Windows of cloudy tissue, two kinds of the same distribution, uint8 (2 COUNT, 32, 32, 3)."""
    noise = np.random.default_rng(seed).standard_normal((2 * COUNT, 32, 32, 3))
    return torch.from_numpy((170 + 90 * gaussian_filter(noise, (0, 2, 2, 0))).astype(np.uint8))


def holed(seed):
    """The same, with a black hole of four pixels in each window of the first kind."""
    windows, rng = clouds(seed), np.random.default_rng(seed)
    for window, (y, x) in zip(windows[:COUNT], rng.integers(0, 29, (COUNT, 2)), strict=True):
        window[y : y + 4, x : x + 4] = 0
    return windows


@pytest.mark.parametrize(("draw", "low", "high"), [(holed, 0.95, 1.0), (clouds, 0.4, 0.6)])
def test_black_holes_are_told_from_tissue_and_what_is_the_same_is_not(draw, low, high):
    network = detector.train_detector(draw(1), 0, CPU)
    answers = detector.ask(network, draw(2), np.repeat(["a", "b"], COUNT), CPU)
    assert answers.filled.sum() == COUNT
    assert low <= detector.share_right(answers).mean <= high


def test_the_share_by_hand_weighs_both_kinds_the_same():
    filled = np.array([True, True, True, True, False])
    right = np.array([True, True, True, False, False])
    share = detector.share_right(detector.Answers(right, filled, np.array(["a"] * 5)))
    assert share.mean == (3 / 4 + 0) / 2
    assert share.low == share.high == share.mean  # of one region, there is nothing to draw


def test_the_interval_draws_regions_not_windows():
    regions = np.array(["a", "b"] * 100)
    filled = np.repeat([True, False], 100)
    share = detector.share_right(detector.Answers(regions == "a", filled, regions))
    assert tuple(share) == (0.5, 0.0, 1.0)  # a quarter of the draws hold b alone


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    """Settings of drawn patches, whose folds have a fill of generators that learned nothing."""
    plain = draw_patches(tmp_path_factory.mktemp("detector") / "run")
    settings = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_transfer", pretend)
        train_fill.train_fill(train_fill.FillConfig(**settings, channels=2))
    return plain


def test_every_fill_has_its_row_and_black_holes_show_most(cfg, capsys):
    detector.detector(dataclasses.replace(cfg, folds=(2,)))
    out = cfg.workspace / "reports" / "studies" / "detector"
    content = json.loads(out.with_suffix(".json").read_text())
    fills = [*PLAIN, "transfer", detector.IN_BOTH]
    assert [name for name in content if name in fills] == fills
    assert content["zero"]["mean"] > 0.95
    for fill in fills:
        share = content[fill]
        assert share["low"] <= share["mean"] <= share["high"]
        assert share["folds"] == [share["mean"]]
    assert content[detector.IN_BOTH]["mean"] < content["zero"]["mean"]
    assert "| holes in both |" in capsys.readouterr().out
    assert "| holes in both |" in out.with_suffix(".md").read_text()


def test_both_kinds_of_windows_get_holes_of_the_same_shapes(cfg):
    side, _ = detector.side_of(cfg, read_fold(cfg, 1).train)
    windows = detector.windows_of(side, detector.IN_BOTH, None, CPU)
    filled, real = (windows == 0).all(-1).chunk(2)
    assert torch.equal(filled, real)
    assert filled.flatten(1).any(1).all()


def test_a_side_with_too_few_windows_is_refused(cfg, tmp_path):
    for folder in ("Image_Patchs", "Mask_Patchs"):
        (tmp_path / folder).mkdir()
    write_png(tmp_path / "Image_Patchs" / "a_0.png", np.full((96, 96, 3), 9, np.uint8))
    write_png(tmp_path / "Mask_Patchs" / "a_0.png", np.zeros((96, 96), np.uint8))
    with pytest.raises(UserError, match="1 patches have 0 windows with nuclei .* at least 20"):
        detector.side_of(dataclasses.replace(cfg, workspace=tmp_path), ["a_0.png"])
