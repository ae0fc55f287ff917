"""What must hold for any input: properties of the science, and damaged files of every kind."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medood.data.grid import patch_of, tile
from tests.fuzz import fuzz

SIDES = st.integers(1, 200)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(300, marks=pytest.mark.slow),
        pytest.param(10_000, marks=pytest.mark.endurance),
    ],
)
def test_damaged_files_end_in_a_sentence(tmp_path, count):
    refused, wrong = fuzz(tmp_path, count)
    assert wrong == []
    for kind, share in refused.items():
        assert share > 0.2, kind  # they were really damaged


@settings(deadline=None)  # the machine may be busy with something else
@given(SIDES, SIDES, st.sampled_from([32, 64, 96]), st.data())
def test_the_patch_of_a_pixel_is_the_one_that_shows_it(height, width, patch_size, data):
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    image = np.zeros((height, width), np.uint8)
    image[row, column] = 1
    tiles = tile(image, patch_size)
    assert tiles[patch_of(column, row, height, width, patch_size)].any()
