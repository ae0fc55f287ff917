"""Unsure pixels, 255 in a mask: from the mask to the scores, they count nowhere."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from config import UserError
from estimate_pct import count_samples, pixels_of
from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels, semantic_mask
from generate_unfiltered_oods import remove_foreground
from main import main
from medood.data.dataset import load_patches
from medood.data.images import read_mask, write_png
from medood.data.labels import UNSURE, read_own_mask
from medood.data.workspace import id_files, ood_files
from medood.evaluation.tables import count_classes
from medood.training.segmentation import without_classes
from studies.controls import move_silhouettes
from tests.conftest import TINY

U = UNSURE
CLASSES = (("tumour", "#d55e00"), ("stroma", "#0072b2"))


def save(path, *rows, kind=np.uint8):
    Image.fromarray(np.array(rows, kind)).save(path)
    return path


def test_a_class_mask_may_hold_255_beside_its_classes_and_nothing_else(tmp_path):
    path = save(tmp_path / "a.png", [0, 6, U], [U, 1, 0])
    assert read_mask(path, 7).tolist() == [[0, 6, U], [U, 1, 0]]
    for wrong in (7, 254):
        save(path, [0, wrong, U])
        with pytest.raises(UserError, match=r"a.png is not a class mask .*0..6, 255 where unsure"):
            read_mask(path, 7)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_unsure_pixels_of_an_own_mask_are_no_nucleus_and_stay_unsure(tmp_path, kind):
    # the unsure column parts two nuclei of class 1; one of class 2 touches it
    path = save(tmp_path / "a.png", [1, U, 1, 0], [1, U, 0, 0], [0, U, 2, 2], kind=kind)
    inst_map, ids, classes = read_own_mask(path, (), 3)
    assert ids.tolist() == [1, 2, 3]
    assert classes.tolist() == [1, 1, 2]
    expected = [[1, U, 1, 0], [1, U, 0, 0], [0, U, 2, 2]]
    assert semantic_mask(inst_map, ids, classes).tolist() == expected


def test_255_is_a_class_where_mask_values_says_so(tmp_path):
    path = save(tmp_path / "a.png", [0, 128, U])
    assert semantic_mask(*read_own_mask(path, (128, 255), 3)).tolist() == [[0, 1, 2]]
    with pytest.raises(UserError, match=r"contains the value 128 .*the first at x 1, y 0"):
        read_own_mask(path, (), 3)  # a mistake beside an unsure pixel


def test_an_id_that_is_not_listed_is_refused_beside_unsure_pixels():
    inst_map = np.array([[-1, 3, 0]])
    assert semantic_mask(inst_map, np.array([3]), np.array([1])).tolist() == [[U, 1, 0]]
    with pytest.raises(ValueError, match="contains nucleus 3"):
        semantic_mask(inst_map, np.array([4]), np.array([1]))


@pytest.fixture
def own(tmp_path):
    """Settings of two images of 64 x 64 pixels with masks of two classes, partly unsure."""
    images, masks = tmp_path / "scans", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    rng = np.random.default_rng(0)
    mask = np.zeros((64, 64), np.uint8)
    mask[4:10, 4:10], mask[40:46, 40:46] = 1, 2
    mask[8:40, 30:34] = U  # a column across the four patches
    mask[32:, :32] = U  # a patch without a sure pixel
    for name in "ab":
        write_png(images / f"{name}.png", rng.integers(0, 256, (64, 64, 3), np.uint8))
        write_png(masks / f"{name}.png", mask)
    changes = {"workspace": tmp_path / "own", "images": images, "masks": masks, "folds": (1,)}
    return dataclasses.replace(TINY, classes=CLASSES, **changes)


def test_a_class_mask_is_the_users_and_one_of_0_and_255_alone_is_refused_with_the_cure(own):
    generate_semantic_labels(own)
    stored = read_mask(own.workspace / "Semantic_Labels" / "a.png", 3)
    np.testing.assert_array_equal(stored, np.array(Image.open(own.masks / "a.png")))
    for path in own.masks.iterdir():
        save(path, *np.full((64, 64), U))
    message = "no label contains a nucleus: check the labels, and set mask_values if 255 is a class"
    with pytest.raises(UserError, match=message):
        generate_semantic_labels(own)


def test_only_sure_pixels_make_a_patch_positive_or_negative_and_count_in_tables(own):
    #             both, foreground, background; foreground + unsure, background + unsure, unsure
    foreground = [1, 4, 0, 3, 0, 0]
    sure = [4, 4, 4, 3, 1, 0]
    assert count_samples(foreground, sure) == (3, 3)
    generate_semantic_labels(own)
    generate_patches(own)
    names = [f"a_{k}.png" for k in range(4)]
    # a patch has 1024 pixels, of which the unsure column takes 48, 48, all and 16
    counts = pixels_of(own, id_files(own.workspace, names))
    assert counts == ([36, 0, 0, 36], [976, 976, 0, 1008])
    table = count_classes(own, names)  # in the report
    assert table.tolist() == [[940, 36, 0], [976, 0, 0], [0, 0, 0], [972, 0, 36]]
    patches = load_patches(id_files(own.workspace, ["a_0.png", "a_2.png"]), own.patch_size, 3)
    assert without_classes(own, patches).startswith("no training patch contains stroma:")
    with pytest.raises(UserError, match="no training mask contains a nucleus"):
        without_classes(own, load_patches(id_files(own.workspace, ["a_2.png"]), own.patch_size, 3))


def test_ood_patches_are_cut_where_unsure_and_filled_from_background_alone():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    mask = np.array([[0, 2, U], [U, 0, 0]], np.uint8)
    for fill in ("zero", "mean"):
        out = remove_foreground(image, mask, fill)
        # background reds: 0, 120, 150; greens and blues 10 and 20 above
        there = [0, 0, 0] if fill == "zero" else [90, 100, 110]
        assert out[0, 1].tolist() == out[0, 2].tolist() == out[1, 0].tolist() == there
        np.testing.assert_array_equal(out[mask == 0], image[mask == 0])
    assert (remove_foreground(image, np.full((2, 3), U, np.uint8), "mean") == 0).all()
    image, mask = np.full((16, 16, 3), 90, np.uint8), np.zeros((16, 16), np.uint8)
    mask[5:9, 5:9], image[5:9, 5:9] = U, 10
    np.testing.assert_allclose(remove_foreground(image, mask, "inpaint"), 90, atol=2)


def test_moved_silhouettes_are_those_of_nuclei_and_lie_in_background():
    mask = np.zeros((20, 20), np.uint8)
    mask[2:5, 2:5] = 1  # one nucleus; a larger unsure piece gives no hole
    mask[10:20] = U
    image = np.full((20, 20, 3), 9, np.uint8)
    for seed in range(5):
        holes = (move_silhouettes(image, mask, np.random.default_rng(seed)) == 0).all(-1)
        assert holes.sum() == 9
        assert (mask[holes] == 0).all()


def test_unsure_masks_go_all_the_way_to_the_report(own, quick_report):
    main(dataclasses.replace(own, epochs=1, loss="dice_ce"))
    report = own.workspace / "reports" / own.model_name
    scores = json.loads((report / "scores.json").read_text())["1"]
    for network in scores.values():
        assert np.sum(network["confusion"]) % 1024  # not of whole patches
        assert 0 <= network["miou_paper"] <= 1
    assert "27.73 % of their pixels are unsure" in (report / "index.html").read_text()
    ood = load_patches(ood_files(own.workspace, ["a_2.png"]), own.patch_size, 3)
    assert not ood.images.any()  # cut, as it may hold nuclei; its truth is background
    assert not ood.masks.any()
