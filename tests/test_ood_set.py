"""Which OoD patches are hard, and how many of them to use."""

import numpy as np
import pytest

from estimate_pct import choose_pct, count_samples, pixels_of, pnr
from rank_prune_ood import rank_and_prune
from tests import oracles

GRID = tuple(tenth / 10 for tenth in range(11))


def test_ranking_by_hand():
    counts = np.array(
        [
            [4, 0, 0, 0, 0, 0, 0],  # sees nothing: pruned
            [3, 1, 0, 0, 0, 0, 0],  # one false pixel
            [2, 1, 1, 0, 0, 0, 0],  # two classes seen: lower miou
            [2, 0, 2, 0, 0, 0, 0],  # one class seen
            [1, 3, 0, 0, 0, 0, 0],  # more false pixels, of one class
            [3, 1, 0, 0, 0, 0, 0],  # a tie, which goes to the name
        ]
    )
    rows = rank_and_prune(["a", "z", "c", "d", "e", "b"], counts)
    assert [row[:2] for row in rows] == [[n, of] for n, of in enumerate("cedbza", start=1)]
    assert rows[0][2] == pytest.approx((0.5 + 0 + 0 + 4) / 7)
    assert rows[1][2] == pytest.approx((0.25 + 0 + 5) / 7)
    assert rows[5][2] == 1.0
    assert rows[0][3:] == [2, 1, 1, 0, 0, 0, 0, 1]
    assert rows[5][3:] == [0, 0, 0, 0, 0, 0, 0, 0]
    counts = np.array([[128 * 128 - 1, 0, 0, 0, 0, 0, 1], [128 * 128, 0, 0, 0, 0, 0, 0]])
    assert [row[-1] for row in rank_and_prune(["one", "none"], counts)] == [1, 0]  # false pixel


def test_the_papers_own_numbers():
    assert pnr(11_845, 12_249, 0) == pytest.approx(0.967, abs=5e-4)
    best, rows = choose_pct(11_845, 12_249, 9_684, GRID, 0.65)
    assert rows[0]["distance"] == pytest.approx(0.317, abs=5e-4)
    assert best["pct"] == 0.6
    assert best["ood_patches"] == 5_810
    assert 12_249 + best["ood_patches"] == 18_059
    assert best["distance"] == pytest.approx(0.006, abs=5e-4)
    assert 12_249 + rows[-1]["ood_patches"] == 21_933
    assert [row["pct"] for row in rows] == list(GRID)


def test_a_tie_goes_to_the_smaller_share():
    best, _ = choose_pct(10, 10, 0, (1.0, 0.5, 0.0), 0.65)
    assert best == {"pct": 0.0, "ood_patches": 0, "pnr": 1.0, "distance": pytest.approx(0.35)}


def test_the_estimate_equals_a_search_that_reads_every_mask_again(patched):
    paths = sorted((patched.workspace / "Mask_Patchs").glob("*.png"))
    foreground, _ = pixels_of(patched, [(path, path) for path in paths])
    positives, negatives = count_samples(foreground, patched.patch_size**2)
    for available in (5, 17, 30):
        best, _ = choose_pct(positives, negatives, available, GRID, 0.65)
        assert best["pct"] == oracles.choose_pct(paths, available, GRID, 0.65)
