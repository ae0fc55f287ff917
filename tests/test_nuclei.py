"""From class masks to nuclei: separated where they touch, the same however the rows come."""

import json

import numpy as np
import pytest
from skimage.draw import disk

from medood.predicting import nuclei
from medood.predicting.nuclei import MIN_DISTANCE, NucleusFinder, outline
from tests.conftest import drawn_tissue


def discs(*places, shape=(60, 60)):
    classes = np.zeros(shape, np.uint8)
    for row, column, radius in places:
        classes[disk((row, column), radius, shape=shape)] = 1
    return classes


def find(classes, certainty=None, min_distance=MIN_DISTANCE / 0.5, min_area=1, cuts=()):
    """All nuclei of an image that is given in pieces."""
    certainty = np.full(classes.shape, 255, np.uint8) if certainty is None else certainty
    finder = NucleusFinder(classes.shape, min_distance, min_area)
    edges = [0, *cuts, len(classes)]
    return [
        nucleus
        for top, bottom in zip(edges, edges[1:], strict=False)
        for nucleus in finder.add(classes[top:bottom], certainty[top:bottom])
    ]


def polygon_area(points):
    x, y = points[:-1].T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def test_two_overlapping_discs_are_separated_and_one_is_not():
    touching = discs((30, 20, 10), (30, 36, 10))
    assert len(find(touching)) == 2
    assert len(find(touching, min_distance=None)) == 1
    assert len(find(discs((30, 20, 10)))) == 1
    toothed = discs((30, 30, 12))
    toothed[18::2, 16:20] = 0
    assert len(find(toothed)) == 1  # not one for each tooth


def test_no_pixel_is_lost_where_nuclei_touch_at_corners():
    classes = np.random.default_rng(0).integers(0, 2, (120, 150), np.uint8)
    for distance in (None, MIN_DISTANCE / 0.5):
        found = find(classes, min_distance=distance)
        assert sum(nucleus.area for nucleus in found) == classes.sum()


def test_a_nucleus_by_hand():
    classes = np.zeros((8, 10), np.uint8)
    classes[2:5, 4:8] = 3
    classes[2, 4] = 1  # of another class: a minority
    certainty = np.full(classes.shape, 51, np.uint8)  # a fifth
    (nucleus,) = find(classes, certainty)
    assert (nucleus.value, nucleus.area) == (3, 12)
    assert (nucleus.x, nucleus.y) == (6.0, 3.5)  # the middle of columns 4..8 and rows 2..5
    assert nucleus.probability == pytest.approx(0.2)
    assert nucleus.outline.min(0).tolist() == [4, 2]
    assert nucleus.outline.max(0).tolist() == [8, 5]
    pixels = [(x, y) for y in (2, 3, 4) for x in (4, 5, 6, 7) if y != 3 or x in (4, 7)]
    assert sorted(map(tuple, nucleus.border.tolist())) == sorted(pixels)


def test_an_outline_is_closed_and_holds_the_area():
    nucleus = discs((30, 30, 9)) > 0
    points = outline(nucleus)
    assert points[0].tolist() == points[-1].tolist()
    assert polygon_area(points) == pytest.approx(nucleus.sum(), rel=0.03)
    assert 0.4 < polygon_area(outline(np.ones((1, 1), bool))) <= 1
    # one piece, not the first of four
    assert polygon_area(outline(np.eye(4, dtype=bool))) > 1.5


def test_specks_are_left_out():
    classes = discs((10, 10, 5))
    classes[40, 40:43] = 1
    assert [len(find(classes, min_area=area)) for area in (3, 4)] == [2, 1]


@pytest.mark.parametrize("seed", range(4))
def test_rows_given_in_pieces_give_the_nuclei_of_the_whole(seed):
    rng = np.random.default_rng(seed)
    _, classes = drawn_tissue(seed, 200, 230)
    certainty = rng.integers(0, 256, classes.shape, np.uint8)
    cuts = sorted(rng.choice(np.arange(1, 200), 12, replace=False))

    def listed(found):
        return sorted(
            json.dumps([n.value, n.area, n.x, n.y, n.probability, n.outline.tolist()])
            for n in found
        )

    whole = find(classes, certainty)
    assert len(whole) > 20
    assert listed(find(classes, certainty, cuts=cuts)) == listed(whole)
    assert sum(n.area for n in whole) == (classes > 0).sum()


def test_a_sheet_of_touching_nuclei_that_never_ends_is_cut_and_not_held(monkeypatch):
    monkeypatch.setattr(nuclei, "LARGEST", 40)
    rows = np.ones((10, 100), np.uint8)
    finder, areas = NucleusFinder((200, 100), None, 1), []
    for _ in range(20):
        areas += [n.area for n in finder.add(rows, rows)]
        assert len(finder.classes) < 50
    assert sum(areas) == 20_000
    assert max(areas) == 40 * 40


def test_what_a_cut_leaves_in_pieces_counts_as_pieces(monkeypatch):
    monkeypatch.setattr(nuclei, "LARGEST", 10)
    comb = np.zeros((9, 20), np.uint8)
    comb[:, 0] = 1
    comb[::4] = 1  # three teeth: one piece up to column 10, three beyond
    found = find(comb, min_distance=None)
    assert sorted(n.area for n in found) == [10, 10, 10, 9 + 3 * 9]
