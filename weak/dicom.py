"""DICOM images, read as a viewer shows them at first."""

from contextlib import suppress
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
PLUGINS = '`pip install "pylibjpeg[all]"`'  # further decoders for pydicom
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # what pydicom makes RGB


def read_dicom(path: Path) -> np.ndarray:
    """Return the image of a DICOM file as RGB uint8 (H, W, 3).

    UserError for one that is damaged, has no pixels, several frames, more pixels than MAX_PIXELS
    or other colours than RGB and YBR of 8 bits, or has an unsupported compression.
    """
    file = _parse(path, read_bytes(path))
    try:
        size, frames = int(file.Rows) * int(file.Columns), int(file.get("NumberOfFrames") or 1)
    except Exception as error:  # pydicom raises a dozen kinds for a damaged file
        raise _damaged(path, error) from None
    refuse_huge(path, size)
    if frames > 1:
        raise UserError(f"{path} has {frames} frames: save the frame to be used as a file")
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
    """Return the content of a DICOM file, its pixels as stored."""
    from pydicom import dcmread, uid  # takes a while to import

    try:
        file = dcmread(BytesIO(data), force=True)  # without a preamble, too
        if "TransferSyntaxUID" not in file.file_meta:
            implicit, little = file.original_encoding
            of_little = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
            file.file_meta.TransferSyntaxUID = of_little if little else uid.ExplicitVRBigEndian
    except Exception as error:
        raise _damaged(path, error) from None
    if not any(f"{kind}PixelData" in file for kind in ("", "Float", "DoubleFloat")):
        raise _damaged(path, "it contains no pixels")
    return file


def _pixels(path: Path, file: "Dataset") -> np.ndarray:
    """Return the stored pixels of a DICOM file, (H, W) of numbers or RGB (H, W, 3)."""
    from pydicom import uid
    from pydicom.pixels import pixel_array

    syntax = file.file_meta.TransferSyntaxUID
    is_plain = syntax in uid.UncompressedTransferSyntaxes
    if is_plain and "PixelData" in file and file["PixelData"].is_undefined_length:
        raise UserError(
            f"{path} does not name the compression of its pixels: export it again, uncompressed"
        )
    try:
        return pixel_array(file)
    except Exception as error:
        if is_plain:
            raise _damaged(path, error) from None
        raise UserError(
            f"{path} is damaged, or its compression, {syntax.name}, is not supported: run"
            f" {PLUGINS}, or save it uncompressed"
        ) from None


def _damaged(path: Path, error: Exception | str) -> UserError:
    reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(":. ")
    return UserError(f"{path} is not a complete DICOM image ({reason}): copy or export it again")


def _displayed(values: np.ndarray, file: "Dataset") -> np.ndarray:
    """Return stored grey values (H, W) as a viewer shows them at first, uint8.

    That is by the first valid window of the file, or its table, or else the range of its values.
    Padding around the image is black.
    """
    from pydicom.pixels import apply_modality_lut, apply_voi

    is_padding = _is_padding(values, file)
    if not file.get("RescaleSlope") or file.get("RescaleIntercept") in (None, ""):
        file.pop("RescaleSlope", None)  # empty or 0: the image would vanish
    values = apply_modality_lut(values, file)
    if not np.isfinite(values).all():
        raise ValueError("it contains values that are not finite")
    shown = _windowed(values, file)
    if shown is None:
        if file.get("VOILUTSequence"):
            values = apply_voi(np.rint(values).astype(np.int32), file)
        inside = values if is_padding.all() else values[~is_padding]
        shown = to_bytes(values, inside.min(), inside.max())
    shown = 255 - shown if file.PhotometricInterpretation == "MONOCHROME1" else shown
    return np.where(is_padding, np.uint8(0), shown)


def _is_padding(values: np.ndarray, file: "Dataset") -> np.ndarray:
    """Return which stored values (H, W) only fill the rectangle around an image, bool."""
    padding = file.get("PixelPaddingValue")
    if padding is None:
        return np.zeros(values.shape, bool)
    ends = [padding, file.get("PixelPaddingRangeLimit", padding)]
    # a file may state an unsigned value although its pixels are signed
    low, high = sorted(np.array(ends, np.int64).astype(values.dtype).tolist())
    return (low <= values) & (values <= high)


def _windowed(values: np.ndarray, file: "Dataset") -> np.ndarray | None:
    """Return values by the first valid window, uint8; None if there is none."""
    from pydicom.pixels import apply_windowing

    file.VOILUTFunction = file.get("VOILUTFunction") or "LINEAR"
    for index in range(file["WindowWidth"].VM if "WindowWidth" in file else 0):
        with suppress(Exception):  # pydicom raises several kinds for an invalid window
            # it scales a window to the range of the bits: compute where the ends are mapped
            low, high = apply_windowing(np.array([-np.inf, np.inf]), file, index=index)
            return to_bytes(apply_windowing(values, file, index=index), low, high)
    return None
