"""Images and masks: checked before they are decoded, read as they are, written as PNG.

Images are RGB everywhere in memory; OpenCV's BGR exists in this file only. An image of another kind
is converted where nothing is lost, and refused where something is.
"""

import math
import struct
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from config import Config, UserError
from medood.data.files import missing

cv2.setNumThreads(1)  # images are read and written in parallel: OpenCV's own threads would fight it
Image.MAX_IMAGE_PIXELS = None  # the limit is ours: Config.max_pixels

UNSURE = 255  # in a class mask: nobody knows this pixel's class; Config refuses so many classes
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"  # how such files begin
TO_RGB = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}  # by channels


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; UserError if it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise missing(path) from None


def refuse_huge(path: Path, pixels: int, max_pixels: float) -> None:
    """Raise UserError for a file that claims to hold more pixels than allowed."""
    if pixels > max_pixels:
        raise UserError(
            f"{path} claims to have {pixels:,} pixels, more than max_pixels = {max_pixels:,}:"
            " raise that setting if the claim is right, or remove the file"
        )


def check_header(path: Path, data: bytes, max_pixels: float = math.inf) -> tuple[int, int]:
    """Return height and width of an image in pixels, as `data`, the content of its file, claims.

    Raises UserError for a file that is cut off, claims more than max_pixels or has several pages.
    """
    pages = 1
    try:
        if data.startswith(PNG):  # read by hand in a tenth of Pillow's time
            width, height = struct.unpack(">II", data[16:24])
            # OpenCV 4 fills what a truncated PNG lacks with black and says nothing
            if b"IEND" not in data[-12:]:
                raise EOFError
        else:
            with Image.open(BytesIO(data)) as file:
                width, height = file.size
                # a JPEG's second page is a preview
                pages = 1 if data.startswith(JPEG) else getattr(file, "n_frames", 1)
    except Exception:  # Pillow raises a dozen kinds for a damaged header
        raise UserError(f"{path} is not a whole image file: unpack or make it again") from None
    if pages > 1:
        raise UserError(f"{path} holds {pages} pages: save the page to be used as a file")
    refuse_huge(path, width * height, max_pixels)
    return height, width


def _decode(path: Path, max_pixels: int) -> np.ndarray:
    """Return the pixels of an image as its file holds them, grey (H, W), BGR or BGRA (H, W, C).

    Raises UserError for a file that cannot be read or that `check_header` refuses.
    """
    data = read_bytes(path)
    check_header(path, data, max_pixels)
    # asked for colours, OpenCV turns a photograph upright as its EXIF entry says
    flag = cv2.IMREAD_COLOR if data.startswith(JPEG) else cv2.IMREAD_UNCHANGED
    reason = "its content is damaged"
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        image, reason = None, str(error).splitlines()[0]
    if image is None:
        raise UserError(f"{path} is not a whole image file ({reason}): unpack or make it again")
    return image


def read_image(path: Path, max_pixels: int = Config.max_pixels, scaled: bool = False) -> np.ndarray:
    """Return an image as RGB uint8 (H, W, 3).

    Grey, palette and opaque images are converted, for nothing is lost. Raises UserError for one
    that cannot be read, has more than max_pixels, 16 bits, transparent pixels or several pages.
    scaled: 16 bits of grey are no error, but scaled by their own range (see `to_bytes`).
    """
    image = _decode(path, max_pixels)
    if scaled and image.ndim == 2 and image.dtype in (np.uint16, np.int16):
        image = to_bytes(image, image.min(), image.max())
    channels = 1 if image.ndim == 2 else image.shape[2]
    if image.dtype != np.uint8:
        raise UserError(f"{path} has {8 * image.itemsize} bits per channel: save it with 8")
    if channels not in TO_RGB:
        raise UserError(f"{path} has {channels} channels: save it as RGB")
    if channels == 4 and image[..., 3].min() < 255:
        raise UserError(f"{path} has transparent pixels: save it again laid on a background")
    return cv2.cvtColor(image, TO_RGB[channels])


def to_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values scaled so that low..high become 0..255, as uint8; 0 where both are one."""
    low, high = float(low), float(high)
    shares = (values.astype(np.float64) - low) / ((high - low) or 1.0)
    return np.rint(255 * shares.clip(0, 1)).astype(np.uint8)


def read_mask(path: Path, classes: int, max_pixels: int = Config.max_pixels) -> np.ndarray:
    """Return a class mask as uint8 (H, W), values below `classes`, or UNSURE.

    Raises UserError for other content.
    """
    mask = _decode(path, max_pixels)
    is_mask = mask.ndim == 2 and mask.dtype == np.uint8
    if not is_mask or ((mask >= classes) & (mask != UNSURE)).any():
        raise UserError(
            f"{path} is not a class mask (one channel, 8 bits, values 0..{classes - 1}, {UNSURE}"
            " where unsure): mend it, or delete its folder if a step made it"
        )
    return mask


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image file in pixels, without decoding it."""
    return check_header(path, read_bytes(path))


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
            " size, or make the patches anew"
        )


def require_same_size(path: Path, image: np.ndarray, label: np.ndarray) -> None:
    """Raise UserError for the image of a region, at `path`, whose label is of another size."""
    if image.shape[:2] != label.shape:
        raise UserError(
            f"{path} is {image.shape[1]} x {image.shape[0]} pixels but its label {label.shape[1]} x"
            f" {label.shape[0]}: put the image that the label belongs to there"
        )


def look_at_pair(image: Path, mask: Path, cfg: Config) -> None:
    """Raise UserError if a patch and its mask cannot be used."""
    require_side(image, read_image(image, cfg.max_pixels), cfg.patch_size)
    require_side(mask, read_mask(mask, len(cfg.class_names), cfg.max_pixels), cfg.patch_size)


def whole_patches(path: Path, image: np.ndarray, side: int) -> int:
    """Return how many whole patches an image of ood_source gives; UserError if it gives none."""
    height, width = image.shape[:2]
    if height < side or width < side:
        raise UserError(
            f"{path} is {width} x {height} pixels, smaller than a patch of {side}: remove it from"
            " ood_source or enlarge it"
        )
    return (height // side) * (width // side)
