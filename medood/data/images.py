"""Images and masks: looked at before they are decoded, read as they are, written as PNG.

Images are RGB everywhere in memory; OpenCV's BGR exists in this file only. What OpenCV would
convert in silence is converted where nothing is lost, and refused where something is.
"""

import struct
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from config import Config, UserError

cv2.setNumThreads(1)  # images are read and written in parallel: OpenCV's own threads would fight it
Image.MAX_IMAGE_PIXELS = None  # the limit is ours: Config.max_pixels

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
PNG = b"\x89PNG\r\n\x1a\n"


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; UserError if it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise missing(path) from None


def missing(path: Path) -> UserError:
    """Return what is said of a file that is not there."""
    return UserError(f"{path} is missing: put it back, or make its folder anew")


def refuse_huge(path: Path, pixels: int, max_pixels: int) -> None:
    """Raise UserError for an image that says it has more pixels than allowed."""
    if pixels > max_pixels:
        raise UserError(
            f"{path} says that it has {pixels:,} pixels, more than max_pixels = {max_pixels:,}:"
            " raise that setting if it is right, or remove the file"
        )


def _not_whole(path: Path) -> UserError:
    return UserError(f"{path} is not a whole image file: unpack or make it again")


def _png_header(path: Path, data: bytes) -> tuple[int, int, int, bool]:
    """Return width, height, bits per channel, and whether a PNG can hold transparent pixels."""
    # OpenCV fills what a truncated PNG lacks with black and says nothing: look for its last chunk
    if len(data) < 33 or b"IEND" not in data[-12:]:
        raise _not_whole(path)
    width, height, bits, kind = struct.unpack(">IIBB", data[16:26])
    return width, height, bits, kind in (4, 6) or b"tRNS" in data[: data.find(b"IDAT")]


def refuse_unfit(path: Path, data: bytes, max_pixels: int, deep: bool = False) -> bool:
    """Raise UserError for an image that is too large, has several pages or, unless `deep`, 16 bits.

    Returns whether it can hold transparent pixels, as far as its header tells.
    """
    if data.startswith(PNG):
        width, height, bits, clear = _png_header(path, data)
        if bits > 8 and not deep:
            raise UserError(f"{path} has {bits} bits per channel: save it with 8")
    else:
        try:
            with Image.open(BytesIO(data)) as file:
                (width, height), pages = file.size, getattr(file, "n_frames", 1)
                of_camera = file.format in ("JPEG", "MPO")  # the latter with a preview
                pages, clear = 1 if of_camera else pages, not of_camera
        except Exception:  # Pillow raises a dozen kinds for a damaged header
            raise _not_whole(path) from None
        if pages > 1:
            raise UserError(f"{path} holds {pages} pages: save the one to be used as a file")
    refuse_huge(path, width * height, max_pixels)
    return clear


def _decode(path: Path, data: bytes, flag: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    except cv2.error as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]})") from None
    if image is None:
        raise _not_whole(path)
    return image


def read_image(path: Path, max_pixels: int = Config.max_pixels) -> np.ndarray:
    """Return an image as RGB uint8 (H, W, 3).

    Grey, palette and opaque images are converted, for nothing is lost. Raises UserError for one
    that cannot be read, has more than max_pixels, 16 bits, transparent pixels or several pages.
    """
    data = read_bytes(path)
    if not refuse_unfit(path, data, max_pixels):
        return cv2.cvtColor(_decode(path, data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    image = _decode(path, data, cv2.IMREAD_UNCHANGED)
    if image.dtype != np.uint8:
        bits = 8 * image.dtype.itemsize
        raise UserError(f"{path} has {bits} bits per channel: save it with 8")
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 4 and image[..., 3].min() < 255:
        raise UserError(f"{path} has transparent pixels: save it again laid on a background")
    if image.shape[2] not in (3, 4):
        raise UserError(f"{path} has {image.shape[2]} channels: save it as RGB")
    return cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_BGR2RGB)


def read_mask(path: Path, classes: int, max_pixels: int = Config.max_pixels) -> np.ndarray:
    """Return a class mask as uint8 (H, W), values below `classes`; UserError for other content."""
    data = read_bytes(path)
    refuse_unfit(path, data, max_pixels)
    mask = _decode(path, data, cv2.IMREAD_UNCHANGED)
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.max() >= classes:
        raise UserError(
            f"{path} is not a class mask (one channel, 8 bits, values 0..{classes - 1}):"
            " mend it, or delete its folder if a step made it"
        )
    return mask


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image file in pixels, without decoding it."""
    data = read_bytes(path)
    if data.startswith(PNG):
        width, height, *_ = _png_header(path, data)
    else:
        try:
            with Image.open(BytesIO(data)) as file:
                width, height = file.size
        except Exception:  # Pillow raises a dozen kinds for a damaged header
            raise _not_whole(path) from None
    return height, width


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
    if not image.exists() or not mask.exists():
        lost = mask if image.exists() else image
        raise UserError(f"{lost} is missing: put it there, or remove its partner")
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
