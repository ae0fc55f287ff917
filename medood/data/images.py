"""Images and masks: checked before they are decoded, read as they are, written as PNG.

Images are RGB everywhere in memory; OpenCV's BGR exists in this file only. An image of another kind
is converted if nothing is lost, and refused otherwise. An image or mask with an orientation, as
cameras record it, is turned upright.
"""

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from config import Config, UserError
from medood import UNSURE
from medood.data.files import missing
from medood.data.headers import WHITE_AS_0, Header, read_header

cv2.setNumThreads(1)  # images are resized in parallel: OpenCV's own threads would compete

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# compressions, as tifffile names them; all programs read the plain ones
PLAIN, LOSSY = ("", "NONE", "JPEG"), ("JPEG", "OJPEG")


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; UserError if it is missing."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise missing(path) from None


def read_image(path: Path, scaled: bool = False) -> np.ndarray:
    """Return an image as RGB uint8 (H, W, 3), upright.

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
    bits, colours = header.bits, header.colours
    is_scaled = scaled and colours == "grey" and header.channels == 1 and 8 < bits <= 16
    if colours not in ("grey", "palette", "RGB") and (colours != WHITE_AS_0 or bits > 8):
        raise UserError(f"{path} is stored as {colours}: save it as RGB")
    if header.kind == "f" or not is_scaled and (bits > 8 or header.kind == "i"):
        kind = {"f": ", floating-point", "i": ", signed", "u": ""}[header.kind]
        raise UserError(f"{path} has {bits} bits per channel{kind}: save it with 8 bits, unsigned")
    if header.channels - header.has_alpha != (3 if colours == "RGB" else 1):
        raise UserError(f"{path} has {header.channels} channels: save it as RGB")


def transparent(path: Path) -> UserError:
    """Return the error to raise for an image or a mask with transparent pixels."""
    return UserError(f"{path} has transparent pixels: save it again on an opaque background")


def read_values(path: Path) -> np.ndarray:
    """Return the values that a mask stores, bool or whole numbers of any type (H, W), upright.

    Of a palette these are the indices, and if white is 0 the numbers as stored, as in ImageJ and
    tifffile. A mask in grey may be saved as RGB. Raises UserError for one that cannot be read, has
    more than MAX_PIXELS, or has lost part of its values.
    """
    data = read_bytes(path)
    header = read_header(path, data)
    problem = None
    if header.compression in LOSSY:
        problem = "is compressed as JPEG, which changes values: export the mask again as PNG"
    elif header.bits in (2, 4) and header.colours == "grey":
        problem = f"has {header.bits} bits, which programs read as different values: save it with 8"
    elif header.channels > 1 and header.bits > 8:
        problem = f"has {header.channels} channels of {header.bits} bits: save it with one channel"
    elif header.colours not in ("grey", WHITE_AS_0, "palette", "RGB"):
        problem = f"is stored as {header.colours}: save it with one channel of whole numbers"
    if problem:
        raise UserError(f"{path} {problem}")
    values = _decode(path, data, header, as_colours=False)
    if header.bits == 1:  # also of a palette
        values = values.astype(bool)
    if values.ndim == 3:
        values = _grey(path, values, header.has_alpha)
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


def _grey(path: Path, values: np.ndarray, has_alpha: bool) -> np.ndarray:
    """Return the one value of each pixel of a mask saved with several channels (H, W)."""
    if has_alpha:
        values, alpha = values[..., :-1], values[..., -1]
    value = values[..., 0]
    if (values != value[..., None]).any():
        raise UserError(
            f"{path} is a mask in colour: save it with one channel of whole numbers, 0 background"
            " and classes as in mask_values"
        )
    # transparency that only repeats which pixels are background is accepted
    if has_alpha and (alpha != 255).any() and (alpha != np.where(value, 255, 0)).any():
        raise transparent(path)
    return value


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
    """Return the pixels of an image as stored in its file, (H, W) or (H, W, C), upright.

    as_colours: of a palette, or if a colour marks transparency, not the values but the colours,
    RGB or RGBA. Raises UserError for content that cannot be decoded.
    """
    decoders = [_decode_by_pillow]
    as_stored = header.colours == WHITE_AS_0 and not as_colours  # Pillow inverts such values
    if header.compression and (header.bits > 8 or as_stored):  # a TIFF
        # Pillow does not support 64 bits, and reads the bytes of some numbers in the wrong order
        may_fall_back = not as_stored and (data.startswith(b"II") or header.kind == "u")
        decoders = [_decode_by_tifffile, *decoders * may_fall_back]
    errors = []
    for decode in decoders:
        try:
            return decode(data, header, as_colours)
        except MemoryError:
            raise UserError(
                f"{path}, {header.width} x {header.height} pixels, does not fit into memory: cut it"
                " into parts"
            ) from None
        except Exception as error:  # both raise a dozen kinds for damaged content
            errors.append(str(error) or type(error).__name__)
    if header.compression in PLAIN:
        raise UserError(
            f"{path} is not a complete image file ({errors[0]}): unpack or export it again"
        )
    raise UserError(
        f"{path} is damaged, or its compression, {header.compression}, is not supported"
        f" ({errors[0]}): save it again without compression"
    )


def _decode_by_pillow(data: bytes, header: Header, as_colours: bool) -> np.ndarray:
    with Image.open(BytesIO(data)) as file:
        is_tiff = file.format == "TIFF"
        if as_colours and header.bits <= 8:
            if file.has_transparency_data:
                file = file.convert("RGBA")
            elif file.mode in ("P", "YCbCr"):
                file = file.convert("RGB")
        pixels = np.array(file)
    if pixels.dtype != bool:
        pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        pixels = pixels.view(f"{header.kind}{pixels.itemsize}")  # Pillow confuses some kinds
    # Pillow turns TIFFs upright, and only these
    return pixels if is_tiff else _turned(pixels, header.orientation)


def _decode_by_tifffile(data: bytes, header: Header, _: bool) -> np.ndarray:
    from tifffile import TiffFile  # here: it takes a tenth of a second

    with TiffFile(BytesIO(data)) as file:
        page = file.pages.first
        parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        # tifffile fills what a file lacks with zeros
        if any(not count or start + count > len(data) for start, count in parts):
            raise EOFError("it is cut off")
        return _turned(page.asarray(), header.orientation)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return stored pixels upright; orientation: 1..8, as TIFF and EXIF count."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image file in pixels, upright, without decoding it."""
    return read_header(path, read_bytes(path))[:2]


def orientation_of(path: Path) -> int:
    """Return how an image or label is stored: 1 upright, 2..8 as TIFF and EXIF count.

    Other files than those of IMAGE_ENDINGS, such as .mat or DICOM, are upright.
    """
    is_image = path.suffix.lower() in IMAGE_ENDINGS
    return read_header(path, read_bytes(path)).orientation if is_image else 1


def require_one_orientation(
    image: Path, label: Path, orientations: tuple[int, int], *shapes: tuple[int, ...]
) -> None:
    """Raise UserError if a label may be turned against its image.

    Only the sizes show whether a label without an orientation was drawn on the image as stored or
    as displayed, and only if the image is turned by 90 degrees. orientations: of the image and its
    label. shapes: height and width of both when upright.
    """
    one, other = orientations
    (height, width), of_label = shapes
    is_known = max(one, other) > 4 and 1 in (one, other) and (height, width) == of_label
    is_known = is_known and height != width
    if one != other and not is_known:
        raise UserError(
            f"{image} has the orientation {one} and its label {label} {other} (in EXIF, 1 is"
            " upright), so the label may be turned: save both upright, without an orientation"
        )


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


def require_match(path: Path, image: np.ndarray, label_path: Path, label: np.ndarray) -> None:
    """Raise UserError if the label of a region does not match its image, at `path`."""
    orientations = orientation_of(path), orientation_of(label_path)
    require_one_orientation(path, label_path, orientations, image.shape[:2], label.shape)
    if image.shape[:2] != label.shape:
        raise UserError(
            f"{path} is {image.shape[1]} x {image.shape[0]} pixels but its label {label.shape[1]} x"
            f" {label.shape[0]}: replace it with the image of this label"
        )


def look_at_pair(image: Path, mask: Path, cfg: Config) -> None:
    """Raise UserError if a patch and its mask cannot be used."""
    require_side(image, read_image(image), cfg.patch_size)
    require_side(mask, read_mask(mask, len(cfg.class_names)), cfg.patch_size)
    orientations = orientation_of(image), orientation_of(mask)
    require_one_orientation(image, mask, orientations, *2 * [(cfg.patch_size, cfg.patch_size)])


def whole_patches(path: Path, image: np.ndarray, side: int) -> int:
    """Return how many whole patches an image of ood_source gives; UserError if it gives none."""
    height, width = image.shape[:2]
    if height < side or width < side:
        raise UserError(
            f"{path} is {width} x {height} pixels, smaller than a patch of {side}: remove it from"
            " ood_source or enlarge it"
        )
    return (height // side) * (width // side)
