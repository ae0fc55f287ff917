"""Objects by size: which of them a network finds."""

import numpy as np

from medood.evaluation.objects import (
    SIZES,
    by_size,
    count_found,
    objects_of,
    wide_bins,
    without_cut,
)

# a drawn image: class 1 in the corner, 3 + 2 pixels of class 1 and 2 that touch, one pixel of class
# 2 that touches the first at a corner, 255 unsure
DRAWN = np.array(
    [
        [1, 1, 0, 0, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, 2, 0],
        [0, 255, 0, 0, 2, 0],
        [0, 0, 2, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
)


def test_objects_of_a_drawn_image_by_hand():
    objects = objects_of(DRAWN)
    assert sorted(np.bincount(objects.flat)[1:].tolist()) == [1, 2, 3, 3]
    assert objects[3, 1] == 0
    inner = without_cut(objects)
    assert sorted(n for n in np.bincount(inner.flat)[1:].tolist() if n) == [1, 2, 3]
    predicted = DRAWN.copy()
    predicted[1, 3] = predicted[2, 3] = 2  # one of three pixels is left: lost
    predicted[3, 4] = 0  # one of two: found
    counts = count_found(inner, DRAWN, predicted)
    # 4 bins an octave: 1 pixel is in bin 0, 2 in bin 4, 3 in bin 6
    expected = np.zeros((SIZES, 2), int)
    expected[[0, 4, 6]] = (1, 1), (1, 1), (1, 0)
    assert (counts == expected).all()
    assert by_size(counts, {"up to 2": slice(6), "all": slice(SIZES), "none": slice(1, 2)}) == {
        "objects_by_size": {"up to 2": 2, "all": 3, "none": 0},
        "found_by_size": {"up to 2": 1, "all": 2 / 3, "none": None},
    }


def test_objects_of_volumes_and_of_nothing():
    volume = np.zeros((4, 4, 4), int)
    volume[1:3, 1:3, 1:3] = 1
    assert count_found(objects_of(volume), volume, volume)[12].tolist() == [1, 1]  # 8 voxels
    nothing = np.zeros((3, 3), int)
    assert count_found(objects_of(nothing), nothing, nothing).sum() == 0


def test_four_bins_hold_as_many_objects_each():
    sizes = np.zeros(SIZES, int)
    sizes[[8, 12, 16, 20]] = 5  # 4, 8, 16 and 32 pixels
    assert wide_bins(sizes) == {
        "up to 4 px": slice(0, 9),
        "5 to 9 px": slice(9, 13),
        "10 to 19 px": slice(13, 17),
        "from 20 px": slice(17, SIZES),
    }
    assert wide_bins(np.zeros(SIZES, int)) == {"all": slice(0, SIZES)}
    one = np.eye(SIZES, dtype=int)[8]
    assert sum(one[part].sum() for part in wide_bins(one).values()) == 1
