"""Images of any format, scaled to one side; DICOM as a viewer shows it at first.

Radiology stores more than 8 bits: such an image is scaled to 0..255, a DICOM file by one of its
windows, any other by its own range, from its darkest to its brightest pixel.
"""

from collections import defaultdict
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from config import UserError
from medood.data.headers import refuse_huge
from medood.data.images import IMAGE_ENDINGS, read_bytes, read_image, to_bytes
from medood.data.names import name_of
from medood.processes import say_once

if TYPE_CHECKING:
    from pydicom import Dataset

ENDINGS = (*IMAGE_ENDINGS, ".dcm", ".dicom", ".dic", ".ima")  # many DICOM files have none
PLUGINS = '`pip install "pylibjpeg[all]"`'  # further decoders for pydicom
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # what pydicom makes RGB


def stem_of(name: str) -> str:
    """Return a file's name without its ending, if it has one: the `.7` of a DICOM UID is not."""
    ending = Path(name).suffix
    return name.removesuffix(ending) if ending.lower() in ENDINGS else name


def list_inputs(folder: Path, names: list[str]) -> list[Path]:
    """Return the file of each image that the image labels name, in their order.

    A name is that of a file in `folder`, or in a folder of it, with or without its ending; only of
    several files does the ending decide. Raises UserError for an image that is missing, or found
    twice.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: correct its name")
    images = [path for path in sorted(folder.rglob("*")) if _is_image(path)]
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        by_stem[stem_of(name_of(path))].append(path)
    found, missing = [], []
    for name in names:
        alike = by_stem[stem_of(name)]
        paths = [path for path in alike if name_of(path) == name] or alike
        if len(paths) > 1:
            raise UserError(
                f"{paths[0]} and {paths[1]} may both be the image {name} of the image labels:"
                " remove one, or name a folder without it"
            )
        found += paths
        missing += [] if paths else [name]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} images that the image labels name, such as"
            f" {missing[0]}: add them, or remove their rows"
        )
    if ignored := len(images) - len(set(found)):
        say_once(f"{folder}: images that are ignored, as the image labels lack them: {ignored}")
    return found


def _is_image(path: Path) -> bool:
    """Say whether a path is an image by its ending or, as many DICOM files have none, content."""
    if not path.is_file():
        return False
    if path.suffix.lower() in ENDINGS:
        return True
    from pydicom.misc import is_dicom  # takes a while to import

    return is_dicom(path)


def read_any(path: Path) -> np.ndarray:
    """Return an image of any format as RGB uint8 (H, W, 3).

    Grey becomes three equal channels; 16 bits of grey are scaled, from the image's own minimum to
    its maximum, to 0..255. Raises UserError for what cannot be read without a loss, is damaged, or
    has more than MAX_PIXELS.
    """
    if path.suffix.lower() in IMAGE_ENDINGS:
        return read_image(path, scaled=True)
    return read_dicom(path)


def squared(pixels: np.ndarray, side: int, nearest: bool = False) -> np.ndarray:
    """Return an image (H, W, ...) scaled to a longer side of `side`, padded to (side, side, ...).

    It is centred on black; of an odd rest the smaller half comes first. An image and its mask still
    match. nearest: for masks, whose values are not amounts.
    """
    longer = max(pixels.shape[:2])
    if longer != side:
        height, width = (max(1, round(edge * side / longer)) for edge in pixels.shape[:2])
        smooth = cv2.INTER_AREA if longer > side else cv2.INTER_LINEAR
        # the plain INTER_NEAREST takes the corner of a pixel for its middle
        kind = cv2.INTER_NEAREST_EXACT if nearest else smooth
        pixels = cv2.resize(pixels, (width, height), interpolation=kind)
    gaps = [side - edge for edge in pixels.shape[:2]]
    margins = [(gap // 2, gap - gap // 2) for gap in gaps]
    return np.pad(pixels, margins + [(0, 0)] * (pixels.ndim - 2))


def read_dicom(path: Path) -> np.ndarray:
    """Return the image of a DICOM file as RGB uint8 (H, W, 3).

    UserError for one that is damaged, has no pixels, several frames, more pixels than MAX_PIXELS
    or other colours than RGB and YBR of 8 bits, or has an unsupported compression.
    """
    from pydicom import dcmread, uid  # takes a while to import
    from pydicom.pixels import pixel_array

    data = read_bytes(path)
    try:
        file = dcmread(BytesIO(data), force=True)  # older devices write no preamble
        if "TransferSyntaxUID" not in file.file_meta:
            implicit, little = file.original_encoding
            of_little = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
            file.file_meta.TransferSyntaxUID = of_little if little else uid.ExplicitVRBigEndian
        refuse_huge(path, int(file.Rows) * int(file.Columns))
        frames, kind = int(file.get("NumberOfFrames") or 1), file.PhotometricInterpretation
        if frames > 1:
            raise UserError(f"{path} has {frames} frames: save the frame to be used as a file")
        is_compressed = "PixelData" in file and file["PixelData"].is_undefined_length
        if is_compressed and not file.file_meta.TransferSyntaxUID.is_encapsulated:
            raise ValueError("it does not name its compression")
        values = pixel_array(file)
        if kind.startswith("MONOCHROME"):
            return np.repeat(_displayed(values, file)[..., None], 3, axis=2)
    except UserError:
        raise
    except Exception as error:  # pydicom raises a dozen kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(":. ")
        raise UserError(
            f"{path} is not a complete DICOM image, or its compression is not supported ({reason}):"
            f" copy it again, save it uncompressed, or run {PLUGINS}"
        ) from None
    if kind not in COLOURS or values.ndim != 3 or values.dtype != np.uint8:
        raise UserError(
            f"{path} has {8 * values.itemsize} bits of {kind}: save it as grey, or as RGB with 8"
            " bits per channel"
        )
    return values


def _displayed(values: np.ndarray, file: "Dataset") -> np.ndarray:
    """Return stored grey values (H, W) as a viewer shows them at first, uint8.

    That is by the first window of the file, or its table, or else the range of its values. Padding
    around the image is black.
    """
    from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

    is_padding = np.zeros(values.shape, bool)
    if (padding := file.get("PixelPaddingValue")) is not None:
        ends = [padding, file.get("PixelPaddingRangeLimit", padding)]
        # a file may state an unsigned value although its pixels are signed
        low, high = sorted(np.array(ends, np.int64).astype(values.dtype).tolist())
        is_padding = (low <= values) & (values <= high)
    if not file.get("RescaleSlope") or file.get("RescaleIntercept") in (None, ""):
        file.pop("RescaleSlope", None)  # empty or 0: the image would vanish
    values = apply_modality_lut(values, file)
    if not np.isfinite(values).all():
        raise ValueError("it contains values that are not finite")
    shown = None
    file.VOILUTFunction = file.get("VOILUTFunction") or "LINEAR"  # pydicom takes no empty one
    if "WindowWidth" in file:
        with suppress(Exception):  # an invalid window, for which pydicom raises several kinds
            # it scales a window to the range of the bits: compute where the ends are mapped
            low, high = apply_windowing(np.array([-np.inf, np.inf]), file)
            shown = to_bytes(apply_windowing(values, file), low, high)
    if shown is None:
        if file.get("VOILUTSequence"):
            values = apply_voi(np.rint(values).astype(np.int32), file)
        inside = values if is_padding.all() else values[~is_padding]
        shown = to_bytes(values, inside.min(), inside.max())
    shown = 255 - shown if file.PhotometricInterpretation == "MONOCHROME1" else shown
    return np.where(is_padding, np.uint8(0), shown)
