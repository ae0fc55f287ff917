"""Images that carry an orientation: upright everywhere, and never with a mask that is not."""

import dataclasses

import cv2
import numpy as np
import pytest
from PIL import Image
from tifffile import imwrite

from config import UserError
from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels
from generate_unfiltered_oods import cut_source
from medood.check import check
from medood.data.images import look_at_pair, read_image, read_mask, read_values, write_png
from medood.predicting.slides import open_image
from tests.conftest import TINY, as_settings_of
from weak.generate_images import generate_images
from weak.products import png_of, sizes_of
from weak.read_images import read_any
from weak.settings import ImagesConfig
from weak.truth import read_truth

TURNED = (2, 3, 6, 8)
KINDS = ("png", "jpg", "tif", "tiled")
GREY = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 5), np.uint8), (80, 64))
IMAGE = np.dstack([GREY, GREY // 2, 255 - GREY])  # 64 x 80
CLASS = (("nucleus", "#d55e00"),)
OFF = {"jpg": 4}  # grey levels, in the mean, that compression may change


def stored(upright, orientation):
    """The pixels of a file of this orientation that shows `upright`."""
    if orientation in (3, 4, 7, 8):
        upright = upright[::-1]
    if orientation in (2, 3, 6, 7):
        upright = upright[:, ::-1]
    return np.ascontiguousarray(upright.swapaxes(0, 1) if orientation > 4 else upright)


def write(folder, upright, orientation, kind, stem="a"):
    """Write an image or mask; 1 is no entry at all."""
    path = folder / f"{stem}.{'tif' if kind == 'tiled' else kind}"
    pixels, exif = stored(upright, orientation), Image.Exif()
    if kind in ("tif", "tiled"):
        tile = (64, 64) if kind == "tiled" else None
        tags = [(274, 3, 1, orientation, True)] if orientation != 1 else ()
        photometric = "rgb" if upright.ndim == 3 else "minisblack"
        imwrite(path, pixels, tile=tile, extratags=tags, photometric=photometric)
        return path
    if orientation != 1:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **({"quality": 100} if kind == "jpg" else {}))
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_one_picture_has_the_same_pixels_however_it_is_stored(tmp_path, kind, orientation):
    path = write(tmp_path, IMAGE, orientation, kind)
    source = open_image(path)
    assert (source.height, source.width) == (64, 80)
    cut_source(path, dataclasses.replace(TINY, patch_size=64), tmp_path)
    for found in (read_image(path), read_any(path), source.rows(0, 64, 64, 80)):
        assert found.shape == IMAGE.shape
        assert np.abs(found.astype(int) - IMAGE).mean() <= OFF.get(kind, 0)
    patch = read_image(tmp_path / "source-a_0.png")
    np.testing.assert_array_equal(patch, read_image(path)[:, :64])


@pytest.mark.parametrize("orientation", TURNED)
def test_a_mask_is_turned_as_an_image_is(tmp_path, orientation):
    mask = (GREY > 128).astype(np.uint8)
    for kind in ("tif", "png"):
        np.testing.assert_array_equal(read_mask(write(tmp_path, mask, orientation, kind), 2), mask)
    path = write(tmp_path, mask.astype(np.int64), orientation, "tif")
    with pytest.raises(UserError, match="1 x 64 bits, signed, with an orientation"):
        read_values(path)


@pytest.fixture
def own(tmp_path):
    """Settings of images and masks of the user's, of which there are none yet."""
    folders = {"workspace": tmp_path, "images": tmp_path / "i", "masks": tmp_path / "m"}
    for name in ("images", "masks"):
        folders[name].mkdir()
    return dataclasses.replace(TINY, classes=CLASS, folds=(1,), **folders)


def square(side=64):
    """A grey image and the mask that lies on it."""
    image, mask = np.zeros((side, side), np.uint8), np.zeros((side, side), np.uint8)
    image[3:30, 5:20], mask[3:30, 5:20] = 200, 1
    return image, mask


def patches_of(cfg):
    generate_semantic_labels(cfg)
    generate_patches(cfg)
    pairs = [[folder / f"a_{k}.png" for folder in folders(cfg)] for k in range(4)]
    return [(read_image(image)[..., 0], read_mask(mask, 2)) for image, mask in pairs]


def folders(cfg):
    return cfg.workspace / "Image_Patchs", cfg.workspace / "Mask_Patchs"


@pytest.mark.parametrize(("kind", "orientation"), zip(KINDS, (2, 3, 6, 8), strict=True))
def test_a_square_image_that_is_turned_takes_no_mask_that_is_not(own, kind, orientation):
    image, mask = square()
    write(own.images, image, orientation, kind)
    write(own.masks, mask, 1, "png")
    message = f"a.* has the orientation {orientation} and its label .*a.png 1 .*save both"
    with pytest.raises(UserError, match=message):
        patches_of(own)
    (found,) = check(own).bad.values()
    assert f"has the orientation {orientation}" in found


@pytest.mark.parametrize("orientation", [3, 6])
def test_image_and_mask_of_one_orientation_lie_on_each_other(own, orientation):
    image, mask = square()
    write(own.images, image, orientation, "png")
    write(own.masks, mask, orientation, "tif")
    for image_patch, mask_patch in patches_of(own):
        np.testing.assert_array_equal(image_patch, 200 * mask_patch)


def test_prepared_patches_that_are_turned_are_refused_unless_both_are(tmp_path):
    image, mask = square(32)
    cfg = dataclasses.replace(TINY, workspace=tmp_path)
    (tmp_path / "m").mkdir()
    turned, upright = write(tmp_path, image, 3, "png"), write(tmp_path / "m", mask, 1, "png")
    with pytest.raises(UserError, match="has the orientation 3 and its label .* 1 "):
        look_at_pair(turned, upright, cfg)
    look_at_pair(turned, write(tmp_path / "m", mask, 3, "png"), cfg)


@pytest.fixture
def weak(own):
    """The same as settings of weak/, with the image `a` labelled beside a black one."""
    table = own.workspace / "image_labels.csv"
    table.write_text("img_name,nucleus\na,1\nb,0\n")
    write_png(own.images / "b.png", np.zeros((64, 64, 3), np.uint8))
    cfg = as_settings_of(ImagesConfig, own, image_size=64)
    return dataclasses.replace(cfg, image_labels=table)


def truth_of(cfg):
    generate_images(cfg)
    size = tuple(sizes_of(cfg)[png_of("a")])
    return read_truth(cfg, "a", size, cfg.image_size)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_true_mask_lies_on_its_image_or_is_refused(weak, orientation):
    image, mask = square()
    write(weak.images, image, orientation, "png")
    write(weak.masks, mask, orientation, "tif")
    truth = truth_of(weak)
    made = weak.workspace / "weak" / "Images" / "a.png"
    np.testing.assert_array_equal(read_image(made)[..., 0], 200 * truth)
    (weak.masks / "a.tif").unlink()
    write(weak.masks, mask, 1, "png")
    with pytest.raises(UserError, match=f"has the orientation {orientation} and its label"):
        truth_of(weak)
