"""Images and masks: checked before they are decoded, read as they are, written as PNG.

Images are RGB everywhere in memory; OpenCV's BGR exists in this file only. An image of another kind
is converted if nothing is lost, and refused otherwise.
"""

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from config import Config, UserError
from medood import UNSURE
from medood.data.files import missing
from medood.data.headers import FORMATS, TIFF, WHITE_AS_0, Header, incomplete, read_header

cv2.setNumThreads(1)  # images are resized in parallel: OpenCV's own threads would compete

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
KNOWN_COLOURS = ("grey", WHITE_AS_0, "palette", "RGB")


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; UserError if it is missing."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise missing(path) from None


def read_image(path: Path, scaled: bool = False) -> np.ndarray:
    """Return an image as RGB uint8 (H, W, 3).

    Grey, palette and opaque images are converted, as nothing is lost. Raises UserError for one that
    cannot be read, has more than MAX_PIXELS, 16 bits, transparent pixels or several pages.
    scaled: 16 bits of grey are scaled by their own range (see `to_bytes`), not refused.
    """
    data = read_bytes(path)
    header = read_header(path, data)
    require_plain(path, header, scaled)
    pixels = _decode(path, data, header, as_colours=True)
    if header.bits > 8:
        pixels = to_bytes(pixels, pixels.min(), pixels.max())
    elif pixels.dtype == bool:
        pixels = 255 * pixels.astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        if pixels[..., -1].min() < 255:
            raise transparent(path)
        pixels = pixels[..., :-1]
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    is_grey = pixels.shape[2] == 1
    return np.repeat(pixels, 3, axis=2) if is_grey else np.ascontiguousarray(pixels)


def to_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values scaled so that low..high become 0..255, as uint8; 0 if both are equal."""
    low, high = float(low), float(high)
    shares = (values.astype(np.float64) - low) / ((high - low) or 1.0)
    return np.rint(255 * shares.clip(0, 1)).astype(np.uint8)


def require_plain(path: Path, header: Header, scaled: bool = False) -> None:
    """Raise UserError for an image that is not RGB or grey with 8 bits, from 0, per channel.

    scaled: 16 bits of grey, signed or not, are accepted.
    """
    own_channels = 3 if header.colours == "RGB" else 1
    fits = header.colours in KNOWN_COLOURS and header.channels - header.has_alpha == own_channels
    is_byte = header.kind == "u" and header.bits <= 8
    is_grey = header.colours == "grey" and header.channels == 1
    is_scaled = scaled and is_grey and header.kind in "ui" and 8 < header.bits <= 16
    if not (fits and is_byte or is_scaled):
        raise UserError(f"{path} is {header}: save it as RGB or grey with 8 bits, unsigned")


def transparent(path: Path) -> UserError:
    """Return the error to raise for an image or a mask with transparent pixels."""
    return UserError(f"{path} has transparent pixels: save it again on an opaque background")


def read_values(path: Path) -> np.ndarray:
    """Return the values that a mask stores, bool or whole numbers of any type (H, W).

    Of a palette these are the indices, and if white is 0 the numbers as stored, as in ImageJ and
    tifffile. A mask in grey may be saved as opaque RGB. Raises UserError for one that cannot be
    read, has more than MAX_PIXELS, or has lost part of its values.
    """
    data = read_bytes(path)
    header = read_header(path, data)
    if header.is_lossy:
        raise UserError(
            f"{path} is compressed as JPEG, which changes values: export the mask again as PNG"
        )
    few_bits = header.bits in (2, 4) and header.colours == "grey"  # programs scale these values
    one_number = header.channels == 1 or header.bits <= 8
    if header.colours not in KNOWN_COLOURS or few_bits or not one_number:
        raise UserError(f"{path} is {header}: save the mask as grey PNG with 8 or 16 bits")
    values = _decode(path, data, header, as_colours=False)
    if header.bits == 1:  # also of a palette
        values = values.astype(bool)
    if values.ndim == 3:
        if header.has_alpha and values[..., -1].min() < 255:
            raise transparent(path)
        values = values[..., :-1] if header.has_alpha else values
        if (values != values[..., :1]).any():
            raise UserError(
                f"{path} is a mask in colour: save it with one channel of whole numbers, 0"
                " background and classes as in mask_values"
            )
        values = values[..., 0]
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        with np.errstate(invalid="ignore"):
            broken = ~((values % 1 == 0) & (np.abs(values) < 2**53))
        if broken.any():
            raise UserError(
                f"{path} contains {values[broken][0]:g}, which is not a whole number: save the mask"
                " with whole numbers, 0 background"
            )
        values = values.astype(np.int64)
    return values


def read_mask(path: Path, classes: int) -> np.ndarray:
    """Return a class mask as uint8 (H, W), values below `classes`, or UNSURE.

    In a mask of two colours, 1 bit, the second is class 1. Raises UserError for other content.
    """
    mask = read_values(path)
    known = (mask >= 0) & (mask < classes)
    if mask.dtype != bool:
        known |= mask == UNSURE
    if not known.all():
        raise UserError(
            f"{path} is not a class mask (values 0..{classes - 1}, {UNSURE} where unsure), it"
            f" contains {mask[~known][0]}: correct it, or delete its folder if a step generated it"
        )
    return mask.astype(np.uint8)


def _decode(path: Path, data: bytes, header: Header, as_colours: bool) -> np.ndarray:
    """Return the pixels of an image as stored in its file, (H, W) or (H, W, C).

    as_colours: of a palette, or if a colour marks transparency, not the values but the colours,
    RGB or RGBA. Raises UserError for content that cannot be decoded.
    """
    is_common = header.kind == "u" and header.bits <= 16
    as_stored = header.colours == WHITE_AS_0 and not as_colours  # Pillow inverts such values
    try:
        if data.startswith(TIFF) and (as_stored or not is_common):  # Pillow confuses such numbers
            return _decode_by_tifffile(data)
        with Image.open(BytesIO(data), formats=FORMATS) as file:
            if as_colours and header.bits <= 8:
                if file.has_transparency_data:
                    file = file.convert("RGBA")
                elif file.mode in ("P", "YCbCr"):
                    file = file.convert("RGB")
            return np.array(file)
    except MemoryError:
        raise UserError(
            f"{path}, {header.width} x {header.height} pixels, does not fit into memory: cut it"
            " into parts"
        ) from None
    except Exception as error:  # both raise a dozen kinds for damaged content
        raise incomplete(path, str(error) or type(error).__name__) from None


def _decode_by_tifffile(data: bytes) -> np.ndarray:
    from tifffile import TiffFile  # here: it takes a tenth of a second

    with TiffFile(BytesIO(data)) as file:
        page = file.pages.first
        if not all(page.databytecounts):  # tifffile fills a part without bytes with zeros
            raise EOFError("it lacks a part")
        return page.asarray()


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image file in pixels, without decoding it."""
    return read_header(path, read_bytes(path))[:2]


def write_png(path: Path, image: np.ndarray) -> None:
    """Write RGB uint8 (H, W, 3) or a mask uint8 (H, W)."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    # OpenCV's default settings write a patch in 0.4 ms; asking for a level takes twice that
    encoded = cv2.imencode(".png", image)[1]
    path.write_bytes(encoded.tobytes())


def require_side(path: Path, pixels: np.ndarray, side: int) -> None:
    """Raise UserError for a patch, or its mask, that is not `side` pixels high and wide."""
    height, width = pixels.shape[:2]
    if (height, width) != (side, side):
        raise UserError(
            f"{path} is {width} x {height} pixels but patch_size is {side}: set patch_size to its"
            " size, or regenerate the patches"
        )


def require_match(path: Path, image: np.ndarray, label: np.ndarray) -> None:
    """Raise UserError if the label of a region does not match its image, at `path`."""
    if image.shape[:2] != label.shape:
        raise UserError(
            f"{path} is {image.shape[1]} x {image.shape[0]} pixels but its label {label.shape[1]} x"
            f" {label.shape[0]}: replace it with the image of this label"
        )


def look_at_pair(image: Path, mask: Path, cfg: Config) -> None:
    """Raise UserError if a patch and its mask cannot be used."""
    require_side(image, read_image(image), cfg.patch_size)
    require_side(mask, read_mask(mask, len(cfg.class_names)), cfg.patch_size)
