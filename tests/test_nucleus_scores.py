"""Scores by nucleus, on nuclei that can be counted by hand, and against MONAI."""

import numpy as np
import pytest
import torch

from medood.evaluation.nuclei import count_nuclei
from medood.evaluation.scores import COUNTS, nucleus_scores
from medood.predicting.nuclei import nuclei_of


def numbered(drawing):
    """The numbers of a drawing of nuclei: a digit is a nucleus, a dot background."""
    rows = drawing.split()
    return np.array([[int(mark.replace(".", "0")) for mark in row] for row in rows])


TRUTH = numbered("""
    11......
    11......
    ........
    ...2222.
    ...2222.
    ........
    33......
    33......
""")
# the first is found, of the second less than half, the third is renamed, the fourth is invented
CALLED = numbered("""
    11....44
    11....44
    ........
    ...2....
    ...2....
    ........
    33......
    33......
""")
TRUE_CLASS, CALLED_CLASS = np.array([0, 1, 1, 2]), np.array([0, 1, 1, 1, 2])


def counted(
    truth=TRUTH, called=CALLED, true_class=TRUE_CLASS, called_class=CALLED_CLASS, classes=3
):
    found = (truth, true_class), (called, called_class)
    counts = count_nuclei(*found, called > 0, classes, radius=1.0)
    return [dict(zip(COUNTS, row, strict=True)) for row in counts], counts


def test_four_nuclei_by_hand():
    (every, first, second), counts = counted()
    assert every == {
        **{"true": 3, "predicted": 4, "matched": 2, "iou": 2.0, "found": 2},
        **{"invented": 1, "missed": 0, "misnamed": 1},
    }
    assert first == {
        **{"true": 2, "predicted": 3, "matched": 1, "iou": 1.0, "found": 1},
        **{"invented": 0, "missed": 0, "misnamed": 0},
    }
    assert second == {
        **{"true": 1, "predicted": 1, "matched": 0, "iou": 0.0, "found": 0},
        **{"invented": 1, "missed": 0, "misnamed": 1},
    }
    scores = nucleus_scores(counts)
    assert scores["pq"].tolist()[1:] == [1 / 2.5, 0]
    assert np.isnan([scores["pq"][0], scores["sq"][2]]).all()
    assert scores["mpq"] == 0.2
    assert scores["bpq"] == scores["f1"] == pytest.approx(2 / 3.5)
    assert scores["nuclei_invented"] == 0.25
    assert scores["nuclei_missed"] == 0
    assert scores["nuclei_misnamed"] == 0.5


def random_nuclei(rng):
    """The nuclei of a random drawing, and those of one that is shifted and has other classes."""
    blocks = rng.integers(1, 4, (12, 12)) * (rng.random((12, 12)) < 0.5)
    others = np.where(rng.random((12, 12)) < 0.7, blocks, rng.integers(0, 4, (12, 12)))
    drawings = (np.kron(kinds, np.ones((8, 8))).astype(np.uint8) for kinds in (blocks, others))
    true, called = (nuclei_of(drawing, 2.0, 4.0) for drawing in drawings)
    return true, (np.roll(called[0], 1, 1), called[1])


@pytest.mark.parametrize("seed", range(5))
def test_panoptic_quality_is_that_of_monai(seed):
    from monai.metrics.panoptic_quality import compute_panoptic_quality

    (truth, kinds), (called, guesses) = random_nuclei(np.random.default_rng(seed))
    counts = count_nuclei((truth, kinds), (called, guesses), called > 0, 4, 6.0)
    scores = nucleus_scores(counts)
    for c in range(4):
        own, theirs = (
            torch.from_numpy(np.where((of[drawn] == c) | (c == 0), drawn, 0)).int()
            for drawn, of in ((truth, kinds), (called, guesses))
        )
        tp, fp, fn, iou = compute_panoptic_quality(
            theirs, own, remap=True, output_confusion_matrix=True
        ).tolist()
        every = dict(zip(COUNTS, counts[c], strict=True))
        assert (every["matched"], every["iou"]) == (tp, pytest.approx(iou, rel=1e-6))
        assert (every["predicted"] - tp, every["true"] - tp) == (fp, fn)
    assert scores["bpq"] == pytest.approx(counts[0, 3] / (counts[0, :2].sum() / 2))
