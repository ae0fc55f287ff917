"""Masks: the values that a file stores, of any type, or a sentence that is true of the file."""

import numpy as np
import pytest
from PIL import Image
from tifffile import TiffFile, imwrite

from config import UserError
from generate_semantic_labels import semantic_mask
from medood.data.images import look_at_pair, read_mask, write_png
from medood.data.labels import read_own_mask
from tests.conftest import TINY

MASK = np.zeros((20, 30), np.uint8)
MASK[4:9, 4:9] = 1
MASK[12:15, 20:29] = 2
NUMBERS = (
    *("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", "float64"),
)


def classes_in(path, values=(), n_classes=3):
    return semantic_mask(*read_own_mask(path, values, n_classes))


@pytest.mark.parametrize("more", [{}, {"compression": "zlib"}, {"tile": (16, 16)}])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("number", NUMBERS)
def test_whole_numbers_of_every_type_are_read(tmp_path, number, order, more):
    path, value = tmp_path / "mask.tif", 300 if np.dtype(number).itemsize > 1 else 100
    imwrite(path, (MASK * np.int64(value // 2)).astype(number), byteorder=order, **more)
    np.testing.assert_array_equal(classes_in(path, (value // 2, value)), MASK)
    imwrite(path, MASK.astype(number), byteorder=order, **more)
    np.testing.assert_array_equal(read_mask(path, 3), MASK)


@pytest.mark.parametrize("number", ["int8", "int64"])
def test_a_negative_value_is_named(tmp_path, number):
    values = MASK.astype(number)
    values[2, 3] = -1
    imwrite(tmp_path / "mask.tif", values)
    with pytest.raises(UserError, match=r"contains the value -1 .*the first at x 3, y 2"):
        read_own_mask(tmp_path / "mask.tif", (), 3)
    with pytest.raises(UserError, match=r"is not a class mask .*, it contains -1"):
        read_mask(tmp_path / "mask.tif", 3)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 1e30])
def test_what_is_no_whole_number_is_named(tmp_path, value):
    values = MASK.astype(np.float32)
    values[2, 3] = value
    imwrite(tmp_path / "mask.tif", values)
    with pytest.raises(UserError, match=f"contains {value:g}".replace("+", r"\+") + ", which is"):
        read_mask(tmp_path / "mask.tif", 3)


def test_a_cut_off_tiff_of_64_bits_is_refused(tmp_path):
    path = tmp_path / "mask.tif"
    imwrite(path, MASK.astype(np.int64))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="mask.tif is not a complete image file"):
        read_own_mask(path, (), 3)
    imwrite(path, MASK.astype(np.int64), rowsperstrip=20)
    with TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["StripByteCounts"].overwrite(0)  # what tifffile fills with background
    with pytest.raises(UserError, match="it lacks a part"):
        read_own_mask(path, (), 3)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits"])
def test_a_compressed_tiff_is_read(tmp_path, compression):
    image = Image.fromarray(MASK.astype(np.uint16) * 50)
    image.save(tmp_path / "mask.tif", compression=compression)
    np.testing.assert_array_equal(classes_in(tmp_path / "mask.tif", (50, 100)), MASK)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("a.png", {}), ("a.png", {"bits": 1}), ("a.tif", {}), ("a.bmp", {})),
        ("a.tif", {"compression": "group4"}),
    ],
)
def test_the_second_of_two_colours_is_the_one_class(tmp_path, name, kind):
    path, pixels = tmp_path / name, Image.fromarray(MASK == 1)
    if kind == {"bits": 1}:
        pixels = Image.fromarray((MASK == 1).astype(np.uint8))
        pixels.putpalette([255, 255, 255, 0, 0, 0])
    pixels.save(path, **kind)
    for values in ((), (1,), (255,)):
        np.testing.assert_array_equal(classes_in(path, values, 2), MASK == 1)
    np.testing.assert_array_equal(read_mask(path, 7), MASK == 1)
    with pytest.raises(UserError, match="has two colours, of 3 values: save it with 8 bits"):
        read_own_mask(path, (1, 255), 3)


def test_the_indices_of_a_palette_are_the_classes_in_prepared_patches_too(tmp_path):
    mask = np.random.default_rng(0).integers(0, 7, (32, 32), np.uint8)
    mask[0, 0] = 255
    image = Image.fromarray(mask)
    image.putpalette(np.random.default_rng(1).integers(0, 256, 768, np.uint8).tolist())
    (tmp_path / "m").mkdir()
    image.save(tmp_path / "m" / "a.png", transparency=0)
    write_png(tmp_path / "a.png", np.zeros((32, 32, 3), np.uint8))
    np.testing.assert_array_equal(read_mask(tmp_path / "m" / "a.png", 7), mask)
    look_at_pair(tmp_path / "a.png", tmp_path / "m" / "a.png", TINY)


OPAQUE = np.full_like(MASK, 255)
SHOWN = np.where(MASK, 255, 0).astype(np.uint8)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([MASK, OPAQUE], None),
        ([MASK, MASK, MASK, OPAQUE], None),
        ([MASK * 0, SHOWN], "has transparent pixels"),  # black where opaque: the mask is there
        ([MASK, MASK, MASK, SHOWN], "has transparent pixels"),
        ([MASK, MASK, MASK * 2, OPAQUE], "is a mask in colour"),
    ],
)
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_mask_with_transparency_hides_nothing(tmp_path, ending, channels, message):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.dstack(channels)).save(path)
    if message is None:
        np.testing.assert_array_equal(classes_in(path), MASK)
        return
    with pytest.raises(UserError, match=message):
        read_own_mask(path, (), 3)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_grey_mask_of_few_bits_is_refused(tmp_path, bits):
    """Decoders scale its values: 3 of 2 bits becomes 255, which is unsure."""
    path = tmp_path / "a.tif"
    imwrite(path, np.full((8, bits), 255, np.uint8), photometric="minisblack", metadata=None)
    with TiffFile(path, mode="r+b") as tiff:
        for name, value in (("BitsPerSample", bits), ("ImageWidth", 8)):
            tiff.pages[0].tags[name].overwrite(value)
    with pytest.raises(UserError, match=f"is stored as grey, 1 x {bits} bits: save the"):
        read_own_mask(path, (), 3)


@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_a_mask_compressed_as_jpeg_is_refused_though_its_values_may_be_classes(tmp_path, ending):
    more = {"compression": "jpeg"} if ending == "tif" else {"quality": 100}
    Image.fromarray(MASK).save(tmp_path / f"a.{ending}", **more)
    with pytest.raises(UserError, match="as JPEG, which changes values: export the mask"):
        read_mask(tmp_path / f"a.{ending}", 3)


def test_a_mask_of_other_colours_or_depths_is_refused_in_a_true_sentence(tmp_path):
    rgb16 = np.dstack([MASK.astype(np.uint16) * 256] * 3)
    for pixels, options, message in (
        (rgb16, {"photometric": "rgb"}, "is stored as RGB, 3 x 16 bits: save the mask as grey"),
        (np.dstack([MASK] * 4), {"photometric": "separated"}, "is stored as CMYK, 4 x 8 bits"),
        (np.stack([MASK] * 2), {"photometric": "minisblack"}, "has 2 pages: save the page"),
    ):
        imwrite(tmp_path / "a.tif", pixels, **options)
        with pytest.raises(UserError, match=message):
            read_own_mask(tmp_path / "a.tif", (), 3)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.uint16])
def test_a_mask_whose_white_is_0_is_read_as_its_numbers_are_stored(tmp_path, kind):
    """So does tifffile write bool, and ImageJ a mask with an inverting lookup table."""
    pixels = MASK.astype(kind)
    imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    values = (1,) if kind is bool else (1, 2)
    inst_map, _, classes = read_own_mask(tmp_path / "a.tif", values, 1 + len(values))
    assert (np.array([0, *classes])[inst_map] == pixels).all()
