"""Patches and their inverse, at sizes below, at and above multiples of the patch size."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from config import UserError
from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels
from generate_unfiltered_oods import generate_unfiltered_oods
from medood.check import check
from medood.data.dataset import load_patches
from medood.data.files import pngs
from medood.data.folds import read_fold
from medood.data.grid import join, tile
from medood.data.images import read_image, write_png
from medood.data.records import RECORD
from medood.data.workspace import id_files, require_data
from tests import oracles

SIDES = [1, 127, 128, 129, 257]


@pytest.mark.parametrize("height", SIDES)
@pytest.mark.parametrize("width", SIDES)
def test_tiling_equals_slicing_and_comes_back(height, width):
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    tiles = tile(image, 128)
    np.testing.assert_array_equal(tiles, oracles.tile(image, 128))
    np.testing.assert_array_equal(join(tiles[..., 0], height, width), image[..., 0])
    np.testing.assert_array_equal(tile(image[..., 0], 128), tiles[..., 0])


def test_red_stays_red(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200
    write_png(tmp_path / "red.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "red.png"), image)
    assert cv2.imread(str(tmp_path / "red.png"))[0, 0].tolist() == [0, 0, 200]  # OpenCV's BGR


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("Lizard_Images", "Labels"),
        ("lizard_images", "labels"),
        ("Lizard_Images1", "Lizard_Labels/Labels"),
        ("lizard_images2/Lizard_Images2", "lizard_labels/Lizard_Labels/Labels"),
    ],
)
def test_every_layout_of_the_archives_is_found(tiny, images, labels):
    (tiny.workspace / "Lizard_Images").rename(tiny.workspace / "i")
    (tiny.workspace / "Labels").rename(tiny.workspace / "l")
    for source, target in (("i", images), ("l", labels)):
        (tiny.workspace / target).parent.mkdir(parents=True, exist_ok=True)
        (tiny.workspace / source).rename(tiny.workspace / target)
    (tiny.workspace / images / "._region_0.png").write_bytes(b"what macOS adds")
    generate_semantic_labels(tiny)
    generate_patches(tiny)
    assert len(list((tiny.workspace / "Image_Patchs").glob("*.png"))) == 37


def test_prepared_patches_may_be_called_in_upper_case(patched):
    for folder in ("Lizard_Images", "Labels", "Semantic_Labels", "k_folds"):
        shutil.rmtree(patched.workspace / folder)
    for kind in ("Image", "Mask", "OoD"):
        folder = patched.workspace / f"{kind}_Patchs"
        (folder / RECORD).unlink()
        for path in pngs(folder):
            path.rename(path.with_suffix(".PNG"))
        assert len(pngs(folder)) == 37
    require_data(patched)
    assert not check(patched).stops
    generate_patches(patched)
    generate_unfiltered_oods(patched)  # keeps those of the user's
    fold = read_fold(patched, 1)
    assert len(fold.train + fold.test) == 37
    assert {Path(name).suffix for name in fold.train + fold.test} == {".PNG"}
    images = load_patches(id_files(patched.workspace, fold.test[:1]), patched.patch_size, 7).images
    path = patched.workspace / "Image_Patchs" / fold.test[0]
    np.testing.assert_array_equal(images[0].numpy(), read_image(path))


def test_patches_of_the_user_are_not_overwritten_and_a_label_without_an_image_is_named(tiny):
    generate_semantic_labels(tiny)
    folder = tiny.workspace / "Image_Patchs"
    folder.mkdir()
    write_png(folder / "mine_0.png", np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(UserError, match="is user-supplied"):
        generate_patches(tiny)
    assert [path.name for path in folder.iterdir()] == ["mine_0.png"]
    shutil.rmtree(folder)
    (tiny.workspace / "Lizard_Images" / "region_1.png").unlink()
    with pytest.raises(UserError, match="region_1 has a label but no image"):
        generate_patches(tiny)
