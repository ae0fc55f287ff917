"""NIfTI files of volumes, read."""

import zlib
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError

from config import UserError

Spacing = tuple[float, float, float]


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, Spacing]:
    """Return the values of a NIfTI file, float64, its affine (4, 4) and its spacing in mm."""
    try:
        file = nibabel.load(path)
        values = np.asarray(file.dataobj, dtype=np.float64)
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}): copy it again") from None
    if not np.isfinite(values).all():
        raise UserError(f"{path} holds values that are not finite: replace them")
    return values, file.affine, tuple(map(float, file.header.get_zooms()[:3]))
