"""True masks of test images: mask images, and run lengths."""

import dataclasses

import numpy as np
import pytest
from conftest import TINY, as_settings_of
from PIL import Image

from config import UserError
from weak.read_images import decode_rle, read_truth
from weak.settings import ImagesConfig

UID = "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819"  # as SIIM-ACR's


@pytest.fixture
def cfg(tmp_path):
    """Settings of a folder of masks and two classes."""
    (tmp_path / "masks").mkdir()
    classes = (("cat", "#009e73"), ("dog", "#0072b2"))
    folders = {"images": tmp_path / "images", "masks": tmp_path / "masks", "workspace": tmp_path}
    return as_settings_of(ImagesConfig, TINY, classes=classes, **folders)


def write_mask(cfg, values, name="a.png"):
    Image.fromarray(np.array(values, np.uint8)).save(cfg.masks / name)


def test_a_true_mask_is_read_by_its_stem_and_padded_with_background(cfg):
    write_mask(cfg, [[1, 2]])
    for name in ("a.dcm", "a", "a.png"):
        truth = read_truth(cfg, name, (1, 2), 4)
        assert truth.dtype == np.uint8
        assert truth.tolist() == [[0] * 4, [1, 1, 2, 2], [1, 1, 2, 2], [0] * 4]


def test_values_of_the_users_stand_for_the_classes(cfg):
    of_user = dataclasses.replace(cfg, mask_values=(7, 255))
    write_mask(cfg, [[0, 7], [255, 0]])
    assert read_truth(of_user, "a", (2, 2), 2).tolist() == [[0, 1], [2, 0]]


def test_255_is_unsure_where_it_is_no_class(cfg):
    write_mask(cfg, [[0, 1], [255, 2]])
    assert read_truth(cfg, "a", (2, 2), 2).tolist() == [[0, 1], [255, 2]]
    write_mask(cfg, [[0, 255], [255, 0]], "white.png")  # a class as white, by all likelihood
    with pytest.raises(UserError, match="contains 255 and no class: set mask_values to 255 if"):
        read_truth(cfg, "white", (2, 2), 2)
    told = dataclasses.replace(cfg, mask_values=(1, 2))
    assert read_truth(told, "white", (2, 2), 2).tolist() == [[0, 255], [255, 0]]


def test_a_mask_that_cannot_be_the_images_is_named(cfg):
    write_mask(cfg, [[1, 2, 0]])
    with pytest.raises(UserError, match="a.png is 3 x 1 pixels but the image a.dcm 2 x 2: replace"):
        read_truth(cfg, "a.dcm", (2, 2), 4)
    with pytest.raises(UserError, match="has no mask of b.png: add it"):
        read_truth(cfg, "b.png", (2, 2), 4)
    write_mask(cfg, [[9, 0]], "c.png")
    with pytest.raises(UserError, match="c.png contains the value 9"):
        read_truth(cfg, "c", (1, 2), 4)
    absent = dataclasses.replace(cfg, masks=cfg.masks / "elsewhere")
    with pytest.raises(UserError, match="name the folder, or the CSV, of true masks"):
        read_truth(absent, "a", (1, 3), 4)


# ---------------------------------------------------------------- run lengths


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("-1", [[0, 0, 0], [0, 0, 0]]),
        (" -1 ", [[0, 0, 0], [0, 0, 0]]),
        ("0 1", [[1, 0, 0], [0, 0, 0]]),
        ("1 2", [[0, 1, 0], [1, 0, 0]]),  # down the first column, on at the head of the second
        ("1 1 2 2", [[0, 0, 1], [1, 0, 1]]),  # the second gap counts from the end of the first run
        ("0 6", [[1, 1, 1], [1, 1, 1]]),
        ("5 1", [[0, 0, 0], [0, 0, 1]]),
        ("0 1 0 1", [[1, 0, 0], [1, 0, 0]]),
    ],
)
def test_run_lengths_go_down_the_columns_and_from_run_to_run(text, mask):
    found = decode_rle(text, 2, 3)
    assert found.dtype == np.uint8
    assert found.tolist() == mask


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1", "not pairs"),
        ("1 2 3", "not pairs"),
        ("", "not pairs"),
        ("1 -2", "not pairs"),
        ("-1 2", "not pairs"),
        ("1 x", "not pairs"),
        ("1 2.0", "not pairs"),
        ("5 2", "end at pixel 7 of an image of 3 x 2 = 6"),
        ("0 1 99999999999999999999 1", "end at pixel 100000000000000000001"),
    ],
)
def test_run_lengths_that_are_none_are_refused(text, problem):
    with pytest.raises(UserError, match=problem):
        decode_rle(text, 2, 3)


@pytest.fixture
def rle(cfg):
    """Settings of a table of run lengths, laid out as SIIM-ACR's, and one class."""
    path = cfg.workspace / "rle.csv"
    path.write_text(f"ImageId, EncodedPixels\n{UID}, -1\ntwo,0 1\ntwo,5 1\nodd,1\n")
    return dataclasses.replace(cfg, masks=path, classes=cfg.classes[:1])


def test_all_run_lengths_of_an_image_are_united(rle):
    assert read_truth(rle, f"{UID}.dcm", (2, 3), 3).max() == 0
    truth = read_truth(rle, "two", (2, 3), 3)
    assert truth.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    with pytest.raises(UserError, match="rle.csv, image odd: the run lengths '1' are not pairs"):
        read_truth(rle, "odd", (2, 3), 3)
    with pytest.raises(UserError, match="has no mask of three"):
        read_truth(rle, "three", (2, 3), 3)


def test_run_lengths_tell_of_one_class(rle, cfg):
    with pytest.raises(UserError, match="describe one class, but there are 2"):
        read_truth(dataclasses.replace(rle, classes=cfg.classes), "two", (2, 3), 3)
    rle.masks.write_text("image,runs\ntwo,-1\n")
    with pytest.raises(UserError, match="lacks the columns ImageId and EncodedPixels"):
        read_truth(rle, "two", (2, 3), 3)
