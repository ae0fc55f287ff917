"""Class masks: equal to a loop over nuclei, whatever the .mat file looks like."""

import numpy as np
import pytest
from scipy.io import savemat

from config import UserError
from generate_semantic_labels import generate_semantic_labels, semantic_mask
from medood.data.labels import read_label
from tests import oracles


def small_map(*numbers):
    inst_map = np.zeros((4, 5), np.int32)
    inst_map.flat[: len(numbers)] = numbers
    return inst_map


@pytest.mark.parametrize(
    ("content", "first_pixels"),
    [
        ((small_map(), np.zeros((0, 0)), np.zeros((0, 0))), [0, 0]),  # no nucleus
        # one nucleus: a 1 x 1 array
        ((small_map(7), [[7]], [[6]]), [6, 0]),
        # no order and gaps
        ((small_map(9, 2, 40), [[40], [2], [9]], [[1], [5], [3]]), [3, 5, 1]),
        # a nucleus in `id` that the map lost, and no background pixel
        ((np.full((2, 2), 3), [[3], [8]], [[4], [2]]), [4, 4, 4, 4]),
        # numbers stored as doubles
        ((small_map(2, 1).astype(float), [[1.0], [2.0]], [[1.0], [2.0]]), [2, 1]),
    ],
)
def test_awkward_files(tmp_path, content, first_pixels):
    savemat(tmp_path / "a.mat", dict(zip(("inst_map", "id", "class"), content, strict=True)))
    inst_map, ids, classes = read_label(tmp_path / "a.mat", 7)
    mask = semantic_mask(inst_map, ids, classes)
    assert mask.dtype == np.uint8
    assert mask.ravel()[: len(first_pixels)].tolist() == first_pixels
    np.testing.assert_array_equal(mask, oracles.semantic_mask(inst_map, ids, classes))


CELL = np.empty((1, 1), object)
CELL[0, 0] = np.zeros((900, 900))
GOOD = {"inst_map": small_map(1, 2), "id": [[1], [2]], "class": [[1], [2]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "has no `id`"),
        ({"class": [[1], [7]]}, "`class` contains 7, expected 1..6"),
        ({"class": [[1]]}, "2 values in `id` but 1 in `class`"),
        ({"id": [[1], [1]]}, "lists a nucleus twice"),
        ({"id": [[1], [3]]}, "inst_map contains nucleus 2, `id` does not"),
        ({"id": [[1], [0]]}, "0, which is background"),
        ({"inst_map": small_map(1, -2)}, "whole numbers"),
        ({"inst_map": small_map(1, 2) + 0.5}, "whole numbers"),
        ({"inst_map": np.zeros((2, 2, 2))}, "has shape"),
        ({"id": "text"}, "whole numbers"),
        ({"id": CELL}, "`id` is of kind cell"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tiny, change, message):
    path = tiny.workspace / "Labels" / "region_1.mat"
    content = {key: value for key, value in (GOOD | change).items() if value is not None}
    savemat(path, content)
    for _ in range(2):  # what is kept is as bad as what was made
        with pytest.raises(UserError, match=message) as caught:
            generate_semantic_labels(tiny)
        assert "region_1.mat" in str(caught.value)
    made = {path.name for path in (tiny.workspace / "Semantic_Labels").glob("*.png")}
    assert made == {"region_0.png", "region_2.png"}  # one bad label does not cost the others


def test_a_damaged_file_or_one_of_matlab_7_3_is_named(tiny):
    path = tiny.workspace / "Labels" / "region_1.mat"
    head_7_3 = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    data_7_3 = head_7_3.ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n" + bytes(99)
    damaged = "is not a readable .mat file"
    for data, message in (
        *((b"", damaged), (path.read_bytes()[:300], damaged)),
        (data_7_3, r"is .* version 7.3.*'-struct', 's', '-v7'\)`"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"region_1.mat {message}"):
            generate_semantic_labels(tiny)
