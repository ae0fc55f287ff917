"""Images: converted where nothing is lost, refused where something is, or before decoding."""

import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from tifffile import imwrite

from config import UserError
from medood.data.headers import read_header
from medood.data.images import image_size, read_image, read_mask, write_png
from medood.predicting.slides import open_image
from weak.read_images import read_any

PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


@pytest.mark.parametrize(
    ("kind", "endings"),
    [
        *((kind, ("png", "tif", "bmp")) for kind in ("1", "L", "P")),
        *(("LA", ("png", "tif")), ("PA", ("tif",)), ("RGBA", ("png", "tif"))),  # opaque
    ],
)
def test_what_loses_nothing_is_converted(tmp_path, kind, endings):
    grey = np.random.default_rng(0).integers(0, 2, (20, 30), np.uint8) * 255
    image = Image.fromarray(grey).convert("P" if kind == "PA" else kind).convert(kind)
    for ending in endings:
        image.save(tmp_path / f"a.{ending}")
        np.testing.assert_array_equal(read_image(tmp_path / f"a.{ending}"), np.dstack([grey] * 3))


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_colours_of_16_bits_which_pillow_cuts_down_are_refused(tmp_path, ending):
    cv2.imwrite(str(tmp_path / f"a.{ending}"), np.full((20, 30, 3), 2**15, np.uint16))
    with pytest.raises(UserError, match="is stored as RGB, 3 x 16 bits: save"):
        read_image(tmp_path / f"a.{ending}")


def chunk(name, content):
    return len(content).to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4)


def test_an_image_that_claims_to_be_huge_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    write_png(tmp_path / "bomb.png", np.zeros((10, 10, 3), np.uint8))
    data = bytearray((tmp_path / "bomb.png").read_bytes().removesuffix(PNG_END))
    exif = Image.Exif()
    exif[274] = 1
    data += chunk(b"eXIf", exif.tobytes()[6:]) + PNG_END  # behind the pixels
    data[16:24] = (60_000).to_bytes(4) * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)  # a header without damage
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(UserError, match="3,600,000,000 pixels, more than 536,870,912"):
        read_image(tmp_path / "bomb.png")
    write_png(tmp_path / "plain.png", np.zeros((10, 10, 3), np.uint8))
    monkeypatch.setattr("medood.data.headers.MAX_PIXELS", 100)
    read_image(tmp_path / "plain.png")
    monkeypatch.setattr("medood.data.headers.MAX_PIXELS", 99)
    with pytest.raises(UserError, match="100 pixels, more than 99"):
        read_image(tmp_path / "plain.png")


def test_a_truncated_or_changed_png_is_refused_wherever_it_is_damaged(tmp_path):
    path = tmp_path / "image.png"
    write_png(path, np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    data = path.read_bytes()
    for length in (0, 8, 20, 40, len(data) // 2, *(len(data) - cut for cut in (13, 8))):
        for more in (b"", bytes(64)):  # also where a disk filled it up
            path.write_bytes(data[:length] + more)
            with pytest.raises(UserError, match=r"image\.png is not a complete image file"):
                read_image(path)
    for place in range(0, len(data) - 12, 7):  # the chunk at the end is empty
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(UserError, match=r"image\.png is not a complete image file"):
            read_image(path)


@pytest.mark.parametrize("tail", [bytes(64), PNG_END, "itself"])
def test_a_png_with_bytes_behind_its_end_is_whole(tmp_path, tail):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    path = tmp_path / "image.png"
    mask = image[..., 0] % 7
    for pixels, read in ((image, read_image), (mask, lambda path: read_mask(path, 7))):
        write_png(path, pixels)
        data = path.read_bytes()
        path.write_bytes(data + (data if tail == "itself" else tail))
        np.testing.assert_array_equal(read(path), pixels)


@pytest.mark.parametrize("share", [0.3, 0.95])
@pytest.mark.parametrize(
    "kind",
    [
        *({"format": "JPEG"}, {"format": "JPEG", "progressive": True}, {"format": "BMP"}),
        *({"format": "TIFF"}, {"format": "TIFF", "compression": "tiff_lzw"}),
        {"format": "TIFF", "compression": "jpeg"},
    ],
)
def test_no_decoder_fills_in_what_a_file_lacks(tmp_path, kind, share):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / "image"
    Image.fromarray(image).save(path, **kind)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"image is (not a complete image file|damaged)"):
        read_image(path)


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
CMYK = Image.fromarray(GREY).convert("CMYK")
CLEAR = "has transparent pixels"


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (CMYK, {"format": "JPEG"}, "is stored as CMYK, 4 x 8 bits: save it as RGB"),
        (CMYK, {"format": "TIFF"}, "is stored as CMYK, 4 x 8 bits: save it as RGB"),
        (GREY * np.uint16(257), {"format": "PNG"}, "is stored as grey, 1 x 16 bits"),
        (GREY * np.uint16(257), {"format": "TIFF"}, "is stored as grey, 1 x 16 bits"),
        (GREY, {"format": "TIFF", "save_all": True}, "has 2 pages: save the page"),
        (GREY, {"format": "PNG", "save_all": True}, "has 2 pages: save the page"),
        (GREY, {"format": "PNG", "transparency": 7}, CLEAR),
        (np.dstack([GREY] * 3), {"format": "PNG", "transparency": (7, 7, 7)}, CLEAR),
        (np.dstack([GREY] * 2), {"format": "PNG"}, CLEAR),
        (np.dstack([GREY] * 2), {"format": "TIFF"}, CLEAR),
    ],
)
def test_other_kinds_that_would_lose_something_are_refused(tmp_path, image, kind, message):
    if "save_all" in kind:
        kind = kind | {"append_images": [Image.fromarray(255 - GREY)]}
    image = image if image is CMYK else Image.fromarray(image)
    image.save(tmp_path / "image", **kind)
    with pytest.raises(UserError, match=message):
        read_image(tmp_path / "image")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_palette_of_few_bits_and_interlaced_rows_are_read(tmp_path, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (20, 30), np.uint8)
    colours = np.random.default_rng(1).integers(0, 256, (2**bits, 3), np.uint8)
    image = Image.fromarray(values)
    image.putpalette(colours.ravel().tolist())
    image.save(tmp_path / "a.png", bits=bits)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), colours[values])


def test_the_preview_of_a_photograph_is_no_page(tmp_path):
    image = Image.fromarray(np.zeros((30, 20), np.uint8))
    image.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[image])
    assert read_image(tmp_path / "a.jpg").shape == (30, 20, 3)


def test_a_disk_or_a_memory_that_fails_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_png(path, np.zeros((4, 5, 3), np.uint8))

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("medood.data.images.np.array", fail)
        with pytest.raises(UserError, match="5 x 4 pixels, does not fit into memory"):
            read_image(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):  # as of a disk that cannot be read
        read_header(path)


PIXELS = np.zeros((64, 80, 3), np.uint8)
READERS = (read_image, read_any, image_size, open_image, lambda path: read_mask(path, 2))


@pytest.mark.parametrize("orientation", [0, 1, 2, 6, 8, 9])
@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "tiled"])
def test_what_is_to_be_turned_is_refused_by_every_reader(tmp_path, kind, orientation):
    path = tmp_path / f"a.{'tif' if kind == 'tiled' else kind}"
    if kind in ("tif", "tiled"):
        tags, tile = [(274, 3, 1, orientation, True)], (64, 64) if kind == "tiled" else None
        imwrite(path, PIXELS, photometric="rgb", extratags=tags, tile=tile)
    else:
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(PIXELS).save(path, exif=exif)
    for read in READERS[: 4 if kind == "jpg" else 5]:  # no mask is a JPEG
        if orientation in range(2, 9):
            with pytest.raises(UserError, match=f"has the orientation {orientation} .in EXIF, 1 "):
                read(path)
        else:
            read(path)
