"""DICOM images, told from other files and read as a viewer first shows them."""

import math
import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from config import UserError
from medood.data.headers import refuse_huge
from medood.data.images import read_bytes, to_bytes

if TYPE_CHECKING:
    from pydicom import Dataset

DICOM_ENDINGS = (".dcm", ".dicom", ".dic", ".ima")  # many files have none
MAGIC, MAGIC_AT = b"DICM", 128
HEAD = MAGIC_AT + len(MAGIC)  # bytes that tell a DICOM file
FIRST_GROUPS = (2, 8)  # of the first tag of a file without a preamble ...
LONGEST_FIRST = 256  # ... and bytes of its value, at most
PLUGINS = '`pip install "pylibjpeg[all]"`'  # pydicom's decoders of what it cannot decode itself
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # what pydicom makes RGB
LEAST_WIDTH = math.ulp(0.0)  # of a window; that of LINEAR, which ends on whole numbers, is 1


def is_dicom(head: bytes) -> bool:
    """Say whether a file begins as DICOM does. head: its first HEAD bytes.

    That is a preamble and the magic word or, as many scanners write it, the first tag at once.
    """
    if head[MAGIC_AT:] == MAGIC:
        return True
    if len(head) < HEAD:
        return False
    for order in "<>":
        group, length = struct.unpack_from(f"{order}H2xI", head)
        if group in FIRST_GROUPS:
            # a length, or the two letters of an explicit type before it
            return length < LONGEST_FIRST or head[4:6].isalpha() and head[4:6].isupper()
    return False


def read_dicom(path: Path) -> np.ndarray:
    """Return the image of a DICOM file as RGB uint8 (H, W, 3).

    UserError for one that is damaged, has no pixels, several frames, more pixels than MAX_PIXELS
    or other colours than RGB and YBR of 8 bits, or is compressed as nothing here can decode.
    """
    file = _parse(path, read_bytes(path))
    try:
        size, frames = int(file.Rows) * int(file.Columns), int(file.get("NumberOfFrames") or 1)
    except Exception as error:  # pydicom raises a dozen kinds for a damaged file
        raise _damaged(path, error) from None
    refuse_huge(path, size)
    if frames > 1:
        raise UserError(f"{path} holds {frames} frames: save the frame to be used as a file")
    values, kind = _pixels(path, file), str(file.get("PhotometricInterpretation"))
    if kind.startswith("MONOCHROME"):
        try:
            return np.repeat(_displayed(values, file)[..., None], 3, axis=2)
        except Exception as error:
            raise _damaged(path, error) from None
    if kind not in COLOURS or values.ndim != 3 or values.dtype != np.uint8:
        raise UserError(
            f"{path} has {8 * values.itemsize} bits of {kind}: save it as grey, or as RGB with 8"
            " bits per channel"
        )
    return values


def _parse(path: Path, data: bytes) -> "Dataset":
    """Return what a DICOM file holds, its pixels as they are stored."""
    from pydicom import dcmread, uid  # takes a while to import

    if not is_dicom(data[:HEAD]):
        raise _damaged(path, "it does not begin as one")
    try:
        file = dcmread(BytesIO(data), force=True)  # without a preamble, too
        if "TransferSyntaxUID" not in file.file_meta:
            implicit, little = file.original_encoding
            of_little = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
            file.file_meta.TransferSyntaxUID = of_little if little else uid.ExplicitVRBigEndian
    except Exception as error:
        raise _damaged(path, error) from None
    if not any(f"{kind}PixelData" in file for kind in ("", "Float", "DoubleFloat")):
        raise _damaged(path, "it holds no pixels")
    return file


def _pixels(path: Path, file: "Dataset") -> np.ndarray:
    """Return the pixels that a DICOM file stores, (H, W) of numbers or RGB (H, W, 3)."""
    from pydicom import uid
    from pydicom.pixels import pixel_array

    syntax = file.file_meta.TransferSyntaxUID
    is_plain = syntax in uid.UncompressedTransferSyntaxes
    if is_plain and "PixelData" in file and file["PixelData"].is_undefined_length:
        raise UserError(
            f"{path} does not say how its pixels are compressed: export it again, uncompressed"
        )
    try:
        return pixel_array(file)
    except Exception as error:
        if is_plain:
            raise _damaged(path, error) from None
        raise UserError(
            f"{path} is damaged, or compressed as nothing here can decode ({syntax.name}): run"
            f" {PLUGINS}, or save it uncompressed"
        ) from None


def _damaged(path: Path, error: Exception | str) -> UserError:
    reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(":. ")
    return UserError(f"{path} is not a whole DICOM image ({reason}): copy or export it again")


def _displayed(values: np.ndarray, file: "Dataset") -> np.ndarray:
    """Return stored grey values (H, W) as a viewer first shows them, uint8.

    That is the first window of the file that can be applied, or its table, or else the range of
    its own values. Padding, which lies around the image, is black.
    """
    from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

    is_padding = _is_padding(values, file)
    if not file.get("RescaleSlope") or file.get("RescaleIntercept") in (None, ""):
        file.pop("RescaleSlope", None)  # empty or 0: nothing would be left of the image
    values = apply_modality_lut(values, file)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    if (window := _window(file)) is not None:
        index, centre, width = window
        # pydicom spreads a window over all that the bits can hold: ask it where the ends come to
        beyond = np.array([centre - 10 * width, centre + 10 * width])
        low, high = apply_windowing(beyond, file, index=index)
        values = apply_windowing(values, file, index=index)
    else:
        if file.get("VOILUTSequence"):
            values = apply_voi(np.rint(values).astype(np.int32), file)
        inside = values if is_padding.all() else values[~is_padding]
        low, high = inside.min(), inside.max()
    shown = to_bytes(values, low, high)
    shown = 255 - shown if file.PhotometricInterpretation == "MONOCHROME1" else shown
    return np.where(is_padding, np.uint8(0), shown)


def _is_padding(values: np.ndarray, file: "Dataset") -> np.ndarray:
    """Return which stored values (H, W) only fill the rectangle around an image, bool."""
    padding = file.get("PixelPaddingValue")
    if padding is None:
        return np.zeros(values.shape, bool)
    ends = [padding, file.get("PixelPaddingRangeLimit", padding)]
    # a file may state as unsigned what its pixels have a sign for
    low, high = sorted(np.array(ends, np.int64).astype(values.dtype).tolist())
    return (low <= values) & (values <= high)


def _window(file: "Dataset") -> tuple[int, float, float] | None:
    """Return number, centre and width of the first window that can be applied, or None.

    Sets the function of the windows, if the file leaves it empty.
    """
    function = file.VOILUTFunction = str(file.get("VOILUTFunction") or "LINEAR").upper()
    least = {"LINEAR": 1.0, "LINEAR_EXACT": LEAST_WIDTH, "SIGMOID": LEAST_WIDTH}.get(function)
    windows = zip(_numbers(file, "WindowCenter"), _numbers(file, "WindowWidth"), strict=False)
    for number, (centre, width) in enumerate(windows):
        if least and math.isfinite(centre) and least <= width < math.inf:
            return number, centre, width
    return None


def _numbers(file: "Dataset", name: str) -> list[float]:
    """Return the numbers of a DICOM entry that may hold one, several, none or something else."""
    try:
        value = file.get(name)
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        return [float(number) for number in (value if is_list else [value])]
    except (TypeError, ValueError):
        return []
