"""Slides, read in rows of any scale, and ordinary images, read whole."""

import numpy as np
import openslide
import pytest
from tifffile import TiffWriter, imwrite

from config import UserError
from medood.data.images import write_png
from medood.predicting.slides import File, Slide, open_image
from tests.conftest import write_slide

APERIO = "Aperio Image Library v11.2.1\n512x512 |AppMag = 40|MPP = 0.2520"
TILED = {"tile": (128, 128), "photometric": "rgb", "metadata": None}
STRIPS = TILED | {"tile": None}
RGB = np.random.default_rng(0).integers(0, 256, (140, 150, 3), np.uint8)
SLIDE = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
HALF, LABEL = SLIDE[::2, ::2].copy(), SLIDE[:100, :90].copy()


def write_pages(path, *pages, description=None):
    """Write a TIFF of images, each with what tifffile is to be told of it."""
    with TiffWriter(path) as tiff:
        for number, (image, options) in enumerate(pages):
            tiff.write(image, **options, description=description if number == 0 else None)


def test_a_pyramid_is_read_from_the_level_that_is_fine_enough(tmp_path):
    fine = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    coarse = np.zeros((256, 256, 3), np.uint8)
    pages = (fine, TILED), (coarse, TILED | {"subfiletype": 1})
    write_pages(tmp_path / "slide.tif", *pages)
    source = open_image(tmp_path / "slide.tif")
    half = fine.reshape(512, 2, 512, 2, 3).mean((1, 3))
    assert np.abs(source.rows(100, 200, 512, 512) - half[100:200]).max() <= 1
    assert source.rows(0, 64, 256, 256).max() == 0  # of the coarse level, which is black here


@pytest.mark.parametrize(
    ("stored", "mpp"),
    [
        ({"description": APERIO}, (0.252, 0.252)),
        # a scanner that steps farther down than across
        ({"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}, (0.5, 0.25)),
        (STRIPS | {"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}, (0.5, 0.25)),
        ({"resolution": (40_000, 20), "resolutionunit": "CENTIMETER"}, None),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),  # a default, not a scanner's
        (STRIPS | {"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({}, None),
    ],
)
def test_the_scale_of_a_tiff_is_read_whichever_way_it_is_stored(tmp_path, stored, mpp):
    imwrite(tmp_path / "slide.tif", RGB, **TILED | stored)
    assert open_image(tmp_path / "slide.tif").mpp == mpp


def test_wide_rows_are_read_in_blocks(tmp_path, monkeypatch):
    write_slide(tmp_path / "slide.tif", SLIDE)
    source = open_image(tmp_path / "slide.tif")
    whole = source.rows(10, 100, 256, 256)
    monkeypatch.setattr("medood.predicting.slides.BLOCK", 60)
    np.testing.assert_array_equal(source.rows(10, 100, 512, 512), SLIDE[10:100])
    assert np.abs(source.rows(10, 100, 256, 256).astype(int) - whole).max() <= 1


def test_a_damaged_slide_is_named(tmp_path):
    write_slide(tmp_path / "slide.tif", SLIDE, compression="zlib")
    data = bytearray((tmp_path / "slide.tif").read_bytes())
    data[2000:200_000] = bytes(198_000)
    (tmp_path / "slide.tif").write_bytes(data)
    with pytest.raises(UserError, match=r"slide\.tif is"):
        open_image(tmp_path / "slide.tif").rows(0, 512, 512, 512)


def test_a_slide_that_claims_more_than_it_holds_is_named(tmp_path, monkeypatch):
    write_slide(tmp_path / "slide.tif", np.zeros((300, 200, 3), np.uint8))
    known = {openslide.PROPERTY_NAME_BOUNDS_WIDTH: "-1677721536"}
    monkeypatch.setattr(openslide.OpenSlide, "properties", known)
    with pytest.raises(UserError, match=r"damaged .it has 200 x 300 pixels, but -16777215"):
        open_image(tmp_path / "slide.tif")


def test_an_ordinary_image_is_resized_once_and_whole(tmp_path):
    write_png(tmp_path / "image.png", RGB)
    source = open_image(tmp_path / "image.png")
    assert isinstance(source, File)
    half = RGB.reshape(70, 2, 75, 2, 3).mean((1, 3))
    parts = [source.rows(top, top + 10, 70, 75) for top in range(0, 70, 10)]
    assert np.abs(np.concatenate(parts) - half).max() <= 1


GREY = RGB[..., 0]
OPAQUE = np.full_like(GREY, 255)
FOUR = np.dstack([RGB, GREY])
PALETTE = np.random.default_rng(1).integers(0, 256, (3, 256), np.uint8)
OF_GREY, OF_RGB = {"photometric": "minisblack"}, {"photometric": "rgb"}
TWO = OF_GREY | {"planarconfig": "contig"}
ALPHA = {"extrasamples": ["unassalpha"]}
CMYK = {"photometric": "separated", "planarconfig": "contig"}
REFUSED = {
    "16 bits": (GREY.astype(np.uint16) * 257, OF_GREY, "is stored as grey, 1 x 16 bits: save it"),
    "8 bits, signed": ((GREY // 2).astype(np.int8), OF_GREY, "1 x 8 bits, signed"),
    "floats": (GREY / np.float32(255), OF_GREY, "1 x 32 bits, floating-point"),
    "a stack": (np.stack([GREY] * 3), OF_GREY, "has 3 pages: save the page"),
    "OME's stack": (np.stack([GREY] * 3), {"ome": True} | OF_GREY, "has 3 pages: save the page"),
    "transparency": (FOUR, OF_RGB | ALPHA, "has transparent pixels"),
    "CMYK": (FOUR, CMYK, "is stored as CMYK, 4 x 8 bits"),
    "two stains": (RGB[..., :2], TWO, "is stored as grey, 2 x 8 bits"),
    "colours and a stain": (FOUR, OF_RGB | {"extrasamples": ["unspecified"]}, "RGB, 4 x 8 bits"),
}
COLOURS = {"photometric": "palette", "colormap": PALETTE.astype(np.uint16) * 257}
READ = {
    "RGB": (RGB, OF_RGB, RGB),
    "OME": (RGB, OF_RGB | {"ome": True}, RGB),
    "channels apart": (np.moveaxis(RGB, 2, 0), OF_RGB | {"planarconfig": "separate"}, RGB),
    "grey": (GREY, OF_GREY, GREY),
    "grey, white as 0": (GREY, {"photometric": "miniswhite"}, 255 - GREY),
    "two colours": (GREY > 99, OF_GREY, 255 * (GREY > 99).astype(np.uint8)),
    "a palette": (GREY, COLOURS, PALETTE.T[GREY]),
    "opaque RGBA": (np.dstack([RGB, OPAQUE]), OF_RGB | ALPHA, RGB),
    "opaque grey": (np.dstack([GREY, OPAQUE]), TWO | ALPHA, GREY),
}


@pytest.mark.parametrize("tile", [(64, 64), None], ids=["tiled", "strips"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_loses_something_is_refused_tiled_or_not(tmp_path, kind, tile):
    pixels, options, message = REFUSED[kind]
    imwrite(tmp_path / "a.tif", pixels, tile=tile, **options)
    with pytest.raises(UserError, match=message):
        open_image(tmp_path / "a.tif").rows(0, 140, 140, 150)


@pytest.mark.parametrize("tile", [(64, 64), None], ids=["tiled", "strips"])
@pytest.mark.parametrize("kind", READ)
def test_what_loses_nothing_is_read_as_it_is_tiled_or_not(tmp_path, kind, tile):
    pixels, options, expected = READ[kind]
    imwrite(tmp_path / "a.tif", pixels, tile=tile, **options)
    source = open_image(tmp_path / "a.tif")
    assert (source.height, source.width) == (140, 150)
    expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
    np.testing.assert_array_equal(source.rows(0, 140, 140, 150), expected)


@pytest.mark.parametrize(
    ("pages", "description"),
    [
        ([(SLIDE, TILED), (HALF, TILED | {"subfiletype": 1})], None),
        ([(SLIDE, TILED | {"subifds": 1}), (HALF, TILED | {"subfiletype": 1})], None),
        ([(SLIDE, TILED), (LABEL, STRIPS), (HALF, TILED | {"subfiletype": 1})], None),
        # Aperio: thumbnail, level, label and overview, of which it marks the last two
        (
            [
                *((SLIDE, TILED), (HALF, STRIPS), (HALF, TILED)),
                *((LABEL, STRIPS | {"subfiletype": 1}), (LABEL, STRIPS | {"subfiletype": 9})),
            ],
            APERIO,
        ),
    ],
)
def test_levels_and_pictures_of_the_slide_itself_are_no_pages(tmp_path, pages, description):
    write_pages(tmp_path / "slide.tif", *pages, description=description)
    source = open_image(tmp_path / "slide.tif")
    assert isinstance(source, Slide)
    np.testing.assert_array_equal(source.rows(0, 512, 512, 512), SLIDE)


@pytest.mark.parametrize(
    ("pages", "description"),
    [
        ([(SLIDE, TILED), (HALF, TILED)], None),  # no copy: nothing says so
        ([(HALF, TILED), (SLIDE, TILED)], None),
        ([(HALF, TILED | {"subfiletype": 1}), (SLIDE, TILED)], None),  # the copy would be read
        ([(SLIDE, STRIPS), (LABEL, STRIPS)], None),
        ([(SLIDE, TILED), (SLIDE[::-1], TILED)], APERIO),  # a stack of focal planes
    ],
)
def test_pages_that_are_images_of_their_own_are_refused(tmp_path, pages, description):
    write_pages(tmp_path / "slide.tif", *pages, description=description)
    with pytest.raises(UserError, match="has 2 pages: save the page to be used as a file"):
        open_image(tmp_path / "slide.tif")
