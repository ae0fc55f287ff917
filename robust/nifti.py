"""NIfTI files of volumes: read in one orientation, whatever theirs is, and written in theirs.

The affine of a file defines its axes. In memory the first runs to the right, the second to the
front and the third upwards (RAS), as nearly as the axes of the file allow.
"""

import gzip
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from config import UserError

AXES = "RAS"  # directions of those of a volume in memory
MILLIMETRES = {1: 1e3, 2: 1.0, 3: 1e-3}  # in a metre, millimetre and micron, by a header's code
SPATIAL = 7  # the bits of xyzt_units with that code


class Stored(NamedTuple):
    """The content of a NIfTI file, its axes as AXES."""

    values: np.ndarray  # float32, or float64 where that is needed, (X, Y, Z) or (X, Y, Z, C)
    affine: np.ndarray  # (4, 4), from voxels to mm


def read_nifti(path: Path) -> Stored:
    """Return the values of a NIfTI file, without axes of one channel or time.

    Its axes are swapped and flipped; oblique ones become those that they are nearest to. A file
    without a unit is in mm. UserError for one that is damaged, has other values than finite
    real numbers along at least three axes, or an affine that does not define them.
    """
    try:
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as content:
            file = type(nibabel.load(path)).from_stream(content)
            dtype = file.get_data_dtype()
            if dtype.fields or dtype.kind == "c":
                raise ValueError("it contains colours or complex numbers, not one number per voxel")
            # float32 represents 16 bits exactly, but not after scaling by any slope
            is_wide = np.promote_types(dtype, np.float32).itemsize > np.float32().itemsize
            is_scaled = (file.dataobj.slope, file.dataobj.inter) != (1, 0)
            values = np.asarray(file.dataobj, np.float64 if is_wide or is_scaled else np.float32)
            while content.read(2**20):  # up to the checksum, before which nibabel stops
                pass
        unit = MILLIMETRES.get(int(file.header["xyzt_units"]) & SPATIAL, 1.0)
        affine = np.diag([unit, unit, unit, 1]) @ file.affine
    except Exception as error:  # nibabel raises a dozen kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}): copy or save it again") from None
    if values.ndim < 3 or not values.size:
        raise UserError(f"{path}: shape {values.shape}, expected three axes of voxels: replace it")
    with np.errstate(over="ignore", invalid="ignore"):
        if not np.isfinite(values.max() - values.min()):
            raise UserError(f"{path} contains values that are not finite: replace them")
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < len(affine):
        raise UserError(
            f"{path}: its affine, {affine[:3].tolist()}, does not define all axes: replace it with"
            " that of the scan"
        )
    of_one = tuple(axis for axis in range(3, values.ndim) if values.shape[axis] == 1)
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(values.squeeze(of_one), affine))
    return Stored(np.asanyarray(turned.dataobj), turned.affine)


def apart(stored: Stored, other: Stored) -> float:
    """Return the largest distance in voxels of the corners of two volumes of one shape."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * np.subtract(stored.values.shape[:3], 1)
    found = apply_affine(np.linalg.inv(stored.affine) @ other.affine, corners)
    return float(np.linalg.norm(found - corners, axis=1).max())


def as_stored(path: Path, mask: np.ndarray) -> nibabel.Nifti1Image:
    """Return a mask of the volume that was read from a file, with the file's axes and header.

    mask: uint8 (X, Y, Z), with axes as AXES.
    """
    file = nibabel.load(path)
    back = ornt_transform(axcodes2ornt(AXES), io_orientation(file.affine))
    header = file.header.copy()
    header.set_data_dtype(np.uint8)
    # of channels, and of intensities
    header.set_intent("none")
    header["cal_min"] = header["cal_max"] = 0
    return type(file)(apply_orientation(mask, back), file.affine, header)
