"""DICOM images, read as a viewer first shows them."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from config import UserError
from medood.data.images import read_bytes, refuse_huge, to_bytes

if TYPE_CHECKING:
    from pydicom import Dataset

DICOM_ENDING, MAGIC, MAGIC_AT = ".dcm", b"DICM", 128
PLUGINS = '`pip install "pylibjpeg[all]"`'  # pydicom's decoders of what it cannot decode itself


def read_dicom(path: Path, max_pixels: int) -> np.ndarray:
    """Return the image of a DICOM file as RGB uint8 (H, W, 3)."""
    from pydicom import dcmread  # takes a while to import

    data = read_bytes(path)
    try:
        file = dcmread(BytesIO(data))
        size, frames = int(file.Rows) * int(file.Columns), int(file.get("NumberOfFrames") or 1)
    except Exception as error:  # pydicom raises a dozen kinds for a damaged file
        raise _damaged(path, error) from None
    refuse_huge(path, size, max_pixels)
    if frames > 1:
        raise UserError(f"{path} holds {frames} frames: save the frame to be used as a file")
    values = _dicom_pixels(path, file)
    is_grey = str(file.get("PhotometricInterpretation")).startswith("MONOCHROME")
    if not is_grey and (values.ndim != 3 or values.dtype != np.uint8):
        raise UserError(
            f"{path} has {8 * values.itemsize} bits of {file.get('PhotometricInterpretation')}:"
            " save it as grey, or as RGB with 8 bits per channel"
        )
    try:
        return np.repeat(_displayed(values, file)[..., None], 3, axis=2) if is_grey else values
    except Exception as error:
        raise _damaged(path, error) from None


def _dicom_pixels(path: Path, file: "Dataset") -> np.ndarray:
    """Return the pixels that a DICOM file stores, (H, W) of whole numbers or RGB (H, W, 3)."""
    from pydicom.pixels import pixel_array

    try:
        return pixel_array(file)
    except Exception as error:
        syntax = file.file_meta.get("TransferSyntaxUID")
        if syntax is None or not syntax.is_compressed:
            raise _damaged(path, error) from None
        raise UserError(
            f"{path} is damaged, or compressed as nothing here can decode ({syntax.name}): run"
            f" {PLUGINS}, or save it uncompressed"
        ) from None


def _damaged(path: Path, error: Exception) -> UserError:
    reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(":. ")
    return UserError(f"{path} is not a whole DICOM image ({reason}): copy or export it again")


def _displayed(values: np.ndarray, file: "Dataset") -> np.ndarray:
    """Return stored grey values (H, W) as a viewer first shows them, uint8.

    That is the window the file names first, or its table, or else the range of its own values.
    """
    from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

    values = apply_modality_lut(values, file)
    centre, width = (_first(file.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None:
        # pydicom spreads a window over all that the bits can hold: ask it where the ends come to
        beyond = np.array([centre - 10 * width, centre + 10 * width])
        low, high = apply_windowing(beyond, file)
        values = apply_windowing(values, file)
    else:
        if file.get("VOILUTSequence"):
            values = apply_voi(np.rint(values).astype(np.int32), file)
        low, high = values.min(), values.max()
    shown = to_bytes(values, low, high)
    return 255 - shown if file.PhotometricInterpretation == "MONOCHROME1" else shown


def _first(value: object) -> float | None:
    """Return the first number of a DICOM entry that may hold one, several or none."""
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, Sequence) else value)
