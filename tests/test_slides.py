"""Slides, read in rows of any scale, and ordinary images, read whole."""

import numpy as np
import pytest
from tifffile import TiffWriter

from config import UserError
from medood.data.images import write_png
from medood.predicting.slides import File, Slide, open_image
from tests.conftest import write_slide


def test_a_slide_is_read_in_rows_as_it_is(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (700, 530, 3), np.uint8)
    write_slide(tmp_path / "slide.tif", image)
    source = open_image(tmp_path / "slide.tif")
    assert isinstance(source, Slide)
    assert (source.height, source.width) == (700, 530)
    np.testing.assert_array_equal(source.rows(123, 456, 700, 530), image[123:456])


def test_a_pyramid_is_read_from_the_level_that_is_fine_enough(tmp_path):
    fine = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    coarse = np.zeros((256, 256, 3), np.uint8)
    with TiffWriter(tmp_path / "slide.tif") as tiff:
        tiff.write(fine, tile=(256, 256), photometric="rgb", subifds=0)
        tiff.write(coarse, tile=(256, 256), photometric="rgb", subfiletype=1)
    source = open_image(tmp_path / "slide.tif")
    half = fine.reshape(512, 2, 512, 2, 3).mean((1, 3))
    assert np.abs(source.rows(100, 200, 512, 512) - half[100:200]).max() <= 1
    assert source.rows(0, 64, 256, 256).max() == 0  # of the coarse level, which is black here


@pytest.mark.parametrize(
    ("stored", "mpp"),
    [
        ({"description": "Aperio Image |AppMag = 40|MPP = 0.2520", "metadata": None}, 0.252),
        ({"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}, 0.5),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),  # a default, not a scanner's
        ({}, None),
    ],
)
def test_the_scale_of_a_slide_is_read(tmp_path, stored, mpp):
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    write_slide(tmp_path / "slide.tif", image, **stored)
    assert open_image(tmp_path / "slide.tif").mpp == mpp


def test_wide_rows_are_read_in_blocks(tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (300, 530, 3), np.uint8)
    write_slide(tmp_path / "slide.tif", image)
    source = open_image(tmp_path / "slide.tif")
    whole = source.rows(10, 100, 150, 265)
    monkeypatch.setattr("medood.predicting.slides.BLOCK", 64)
    np.testing.assert_array_equal(source.rows(10, 100, 300, 530), image[10:100])
    assert np.abs(source.rows(10, 100, 150, 265).astype(int) - whole).max() <= 1


def test_a_damaged_slide_is_named(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    write_slide(tmp_path / "slide.tif", image, compression="zlib")
    data = bytearray((tmp_path / "slide.tif").read_bytes())
    data[2000:200_000] = bytes(198_000)
    (tmp_path / "slide.tif").write_bytes(data)
    with pytest.raises(UserError, match=r"slide\.tif is"):
        open_image(tmp_path / "slide.tif").rows(0, 600, 600, 600)


def test_an_ordinary_image_is_resized_once_and_whole(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (100, 80, 3), np.uint8)
    write_png(tmp_path / "image.png", image)
    source = open_image(tmp_path / "image.png")
    assert isinstance(source, File)
    half = image.reshape(50, 2, 40, 2, 3).mean((1, 3))
    parts = [source.rows(top, top + 10, 50, 40) for top in range(0, 50, 10)]
    assert np.abs(np.concatenate(parts) - half).max() <= 1
