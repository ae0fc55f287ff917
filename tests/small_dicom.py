"""Small DICOM files."""

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

UID = "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819"  # as SIIM-ACR's
GREY = np.array([[0, 100], [200, 400]], np.uint16)


def write_dicom(path, values, syntax=ExplicitVRLittleEndian, content=None, vr=None, **entries):
    """Write grey values, uint16 (H, W), as a DICOM file with more entries than it needs.

    vr: of the padding among the entries.
    """
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = UID
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, UID
    file.Rows, file.Columns = values.shape[:2]
    file.SamplesPerPixel, file.PixelRepresentation = 1, 0
    file.PhotometricInterpretation = "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 8 * values.itemsize
    file.HighBit = file.BitsStored - 1
    for name, value in entries.items():
        setattr(file, name, value)
        if name.startswith("PixelPadding"):
            file[name].VR = vr
    if "FloatPixelData" in entries:
        del file.PixelRepresentation
    elif content is None:
        file.PixelData = values.tobytes()
    else:
        file.PixelData = pydicom.encaps.encapsulate([content])
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)
