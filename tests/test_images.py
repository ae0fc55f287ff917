"""Images: converted where nothing is lost, refused where something is, or before decoding."""

import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from config import UserError
from medood.data.images import read_image, write_png


@pytest.mark.parametrize("kind", ["L", "P", "RGBA", "1"])
def test_what_loses_nothing_is_converted(tmp_path, kind):
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.integers(0, 2, (20, 30, 1), np.uint8) * 255, 3, axis=2)
    for ending in ("png", "tif", "bmp"):
        if (kind, ending) == ("RGBA", "bmp"):
            continue  # Pillow writes none that OpenCV knows to have alpha
        path = tmp_path / f"{kind}.{ending}"
        Image.fromarray(grey).convert(kind).save(path)
        np.testing.assert_array_equal(read_image(path), grey)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_what_would_lose_something_is_refused(tmp_path, ending):
    rng = np.random.default_rng(0)
    path = tmp_path / f"image.{ending}"
    cv2.imwrite(str(path), rng.integers(0, 2**16, (20, 30, 3), np.uint16))
    with pytest.raises(UserError, match="has 16 bits per channel"):
        read_image(path)
    cv2.imwrite(str(path), rng.integers(0, 2**16, (20, 30), np.uint16))
    with pytest.raises(UserError, match="has 16 bits per channel"):
        read_image(path)
    image = Image.fromarray(rng.integers(0, 255, (20, 30, 4), np.uint8), "RGBA")
    image.save(path)
    with pytest.raises(UserError, match="has transparent pixels"):
        read_image(path)
    if ending == "tif":
        image.convert("RGB").save(path, save_all=True, append_images=[image.convert("RGB")])
        with pytest.raises(UserError, match="holds 2 pages"):
            read_image(path)


def test_an_image_that_claims_to_be_huge_is_refused_before_it_is_decoded(tmp_path):
    write_png(tmp_path / "bomb.png", np.zeros((10, 10, 3), np.uint8))
    data = bytearray((tmp_path / "bomb.png").read_bytes())
    data[16:24] = (60_000).to_bytes(4) * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)  # a header without damage
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(UserError, match="3,600,000,000 pixels, more than max_pixels"):
        read_image(tmp_path / "bomb.png")
    write_png(tmp_path / "plain.png", np.zeros((10, 10, 3), np.uint8))
    read_image(tmp_path / "plain.png", max_pixels=100)
    with pytest.raises(UserError, match="100 pixels, more than max_pixels = 99"):
        read_image(tmp_path / "plain.png", max_pixels=99)


def test_a_truncated_png_is_refused_wherever_it_ends(tmp_path):
    path = tmp_path / "image.png"
    write_png(path, np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    data = path.read_bytes()
    for length in (0, 8, 20, 40, len(data) // 2, len(data) - 1 - 12):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"image\.png is not a whole image file"):
            read_image(path)


def test_a_photograph_stands_upright_and_its_preview_is_no_page(tmp_path):
    grey = np.repeat(np.arange(0, 240, 8, dtype=np.uint8)[:, None], 20, axis=1)
    photograph, exif = Image.fromarray(grey), Image.Exif()
    exif[0x0112] = 3  # taken upside down
    photograph.save(tmp_path / "a.jpg", quality=100, exif=exif)
    assert read_image(tmp_path / "a.jpg")[0, 0, 0] > 200
    photograph.save(tmp_path / "b.jpg", format="MPO", save_all=True, append_images=[photograph])
    assert read_image(tmp_path / "b.jpg").shape == (30, 20, 3)
