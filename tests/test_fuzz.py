"""What must hold for any input: properties of the science, and damaged files of every kind."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from estimate_pct import choose_pct, count_samples, pnr
from medood.data.grid import patch_of, tile
from medood.evaluation.scores import Tally, all_background
from tests.fuzz import fuzz

SIDES = st.integers(1, 200)
PATCH = st.sampled_from([32, 64, 96])
UNTIMED = settings(deadline=None)  # the machine may be busy with something else


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(300, marks=pytest.mark.slow),
        pytest.param(10_000, marks=pytest.mark.endurance),
    ],
)
def test_damaged_files_end_in_a_sentence(tmp_path, count):
    refused, wrong = fuzz(tmp_path, count, seed=0)
    assert wrong == []
    for kind, share in refused.items():
        assert share > 0.2, kind  # they were really damaged


# ---------------------------------------------------------------- the science


@UNTIMED
@given(SIDES, SIDES, PATCH, st.data())
def test_the_patch_of_a_pixel_is_the_one_that_shows_it(height, width, patch_size, data):
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    image = np.zeros((height, width), np.uint8)
    image[row, column] = 1
    tiles = tile(image, patch_size)
    assert tiles[patch_of(column, row, height, width, patch_size)].any()


@UNTIMED
@given(
    st.integers(1, 400),
    st.integers(0, 400),
    st.integers(0, 400),
    st.lists(st.floats(0, 1), min_size=1, max_size=12),
    st.floats(0.01, 2),
)
def test_no_share_of_the_grid_comes_nearer_and_no_smaller_one_as_near(
    positives, negatives, available, grid, pnr_opt
):
    best, rows = choose_pct(positives, negatives, available, grid, pnr_opt)
    assert [row["pct"] for row in rows] == sorted(grid)
    for row in rows:
        count = round(row["pct"] * available)
        assert row["ood_patches"] == count
        assert row["pnr"] == pnr(positives, negatives, count)
        assert best["distance"] <= row["distance"]
        assert best["pct"] <= row["pct"] or best["distance"] < row["distance"]


@UNTIMED
@given(arrays(np.uint8, (5, 4, 4), elements=st.integers(0, 6)))
def test_a_patch_counts_as_positive_negative_or_both(masks):
    positives, negatives = count_samples([np.count_nonzero(mask) for mask in masks], 16)
    assert positives == sum(bool(mask.any()) for mask in masks)
    assert negatives == sum(not mask.all() for mask in masks)
    assert positives + negatives >= len(masks)


MASKS = arrays(np.uint8, (3, 8, 8), elements=st.integers(0, 6))


def tally(predicted, truth):
    found = Tally(len(truth), 7)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(predicted).long(), 7)
    found.add(slice(None), one_hot.permute(0, 3, 1, 2).float(), torch.from_numpy(truth))
    return found.scores()


@UNTIMED
@given(MASKS, MASKS)
def test_scores_keep_their_bounds_and_a_perfect_network_reaches_them(predicted, truth):
    scores, perfect = tally(predicted, truth), tally(truth, truth)
    for name, value in scores.items():
        if isinstance(value, float):
            assert 0 <= value <= 1, name
    for name in ("miou", "dsc", "miou_paper", "dsc_paper"):
        assert perfect[name] in (None, 1.0)
        assert (scores[name] is None) == (perfect[name] is None)
    for name in ("fg_to_bg", "bg_to_fg", "fg_to_fg"):
        assert perfect[name] in (None, 0.0)
    assert np.sum(scores["confusion"]) == truth.size
    assert (
        np.sum(scores["confusion"], 1).tolist() == np.bincount(truth.ravel(), minlength=7).tolist()
    )


@UNTIMED
@given(MASKS)
def test_the_floor_misses_all_foreground_and_invents_none(truth):
    found = Tally(len(truth), 7)
    found.add(slice(None), all_background(torch.from_numpy(truth), 7), torch.from_numpy(truth))
    scores = found.scores()
    assert scores["bg_to_fg"] in (None, 0.0)
    assert scores["fg_to_bg"] in (None, 1.0)
    assert scores["miou"] in (None, 0.0)
