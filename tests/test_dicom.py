"""DICOM as scanners and archives write it: names, beginnings, windows, padding and colours."""

from types import SimpleNamespace

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLSLossless

from config import UserError
from medood.data.images import to_bytes, write_png
from tests.small_dicom import GREY, UID, write_dicom
from weak.products import png_of
from weak.read_images import list_inputs, read_any
from weak.truth import read_truth

RANGE = [[0, 64], [128, 255]]  # of GREY, from its own minimum to its maximum


def shown(path):
    """The grey values of an image."""
    return read_any(path)[..., 0].tolist()


@pytest.mark.parametrize(
    ("of_file", "of_label"), [("", ".dcm"), (".dcm", ""), (".DICOM", ".ima"), (".ima", ".ima")]
)
def test_a_dicom_and_its_mask_are_found_by_any_ending_or_none(tmp_path, of_file, of_label):
    images, stem = tmp_path / "images", f"{UID}.7"
    write_dicom(images / f"{stem}{of_file}", GREY)
    assert list_inputs(images, [f"{stem}{of_label}"]) == [images / f"{stem}{of_file}"]
    assert png_of(f"{stem}{of_label}") == f"{stem}.png"
    for of_mask in ("", of_file):
        masks = tmp_path / f"masks{of_mask}"
        masks.mkdir(exist_ok=True)
        write_png(masks / f"{stem}{of_mask}.png", np.array([[0, 1], [1, 0]], np.uint8))
        cfg = SimpleNamespace(**{"masks": masks, "mask_values": (), "class_names": ["b", "a"]})
        truth = read_truth(cfg, f"{stem}{of_label}", (2, 2), 2)
        assert truth.tolist() == [[0, 1], [1, 0]]


def test_what_is_no_dicom_or_cut_off_anywhere_is_refused(tmp_path):
    path = tmp_path / "a.dcm"
    write_dicom(path, np.tile(GREY, (20, 20)))
    whole = path.read_bytes()
    lengths = 0, 100, 140, len(whole) // 2, len(whole) - 2
    for content in (b"no DICOM at all" * 20, *(whole[:length] for length in lengths)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="a.dcm is not a complete DICOM image.*: copy it again"):
            read_any(path)
    (tmp_path / "b").write_bytes(b"\x89PNG" * 99)
    with pytest.raises(UserError, match="lacks 1 images"):
        list_inputs(tmp_path, ["b"])


def test_pixels_that_are_compressed_in_an_unknown_way_are_refused(tmp_path):
    path = tmp_path / "a.dcm"
    write_dicom(path, GREY, syntax=JPEGBaseline8Bit, content=b"some" * 9)
    content = path.read_bytes()
    plain = (ExplicitVRLittleEndian + "\0\0\0").encode()
    path.write_bytes(content.replace(JPEGBaseline8Bit.encode(), plain))
    with pytest.raises(UserError, match="it does not name its compression"):
        read_any(path)
    write_dicom(path, GREY, syntax=JPEGLSLossless, content=b"garbage")
    with pytest.raises(UserError, match=r"'JPEG-LS .*: copy it .* save it uncomp.* or run `pip"):
        read_any(path)


def test_a_jpeg_within_a_dicom_is_decoded(tmp_path):
    grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))  # as SIIM-ACR's
    jpeg = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    write_dicom(tmp_path / "a.dcm", grey, syntax=JPEGBaseline8Bit, content=jpeg)
    found = read_any(tmp_path / "a.dcm")[..., 0].astype(int)
    assert np.abs(found - to_bytes(grey, 0, 248)).max() < 4


def test_a_dicom_that_is_huge_or_has_frames_is_refused_before_it_is_decoded(tmp_path):
    write_dicom(tmp_path / "a.dcm", GREY, Rows=60_000, Columns=60_000)
    with pytest.raises(UserError, match="3,600,000,000 pixels, more than 536,870,912"):
        read_any(tmp_path / "a.dcm")
    write_dicom(tmp_path / "a.dcm", GREY, NumberOfFrames=2)
    with pytest.raises(UserError, match="a.dcm has 2 frames: save the frame"):
        read_any(tmp_path / "a.dcm")


def window(centre, width, function=None, **more):
    known = {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": function} | more
    return {name: value for name, value in known.items() if value is not None}


DARK = {"PhotometricInterpretation": "MONOCHROME1"}
SHOWN = {  # of 0, 100, 200, 400
    "no width": (window(200, ""), RANGE),
    "no centre": (window(None, 100), RANGE),
    "width 0": (window([200, 100], [0, 0]), RANGE),
    "width 0 of LINEAR_EXACT": (window(200, 0, "LINEAR_EXACT"), RANGE),
    "width below 1": (window(200, 0.5), RANGE),
    "0 shown as white": (window(200, 0, **DARK), [[255, 191], [127, 0]]),
    "width 1, which is a threshold": (window(150.5, 1), [[0, 0], [255, 255]]),
    "the first of two": (window([150.5, 9], [201, 3]), [[0, 64], [191, 255]]),
    "SIGMOID": (window(200, 200, "SIGMOID"), [[5, 30], [128, 250]]),
    "an empty function, LINEAR": (window(150.5, 201, ""), [[0, 64], [191, 255]]),
    "wider than the values": (window(400, 800, "LINEAR_EXACT"), [[0, 32], [64, 128]]),
    "in units after rescaling": (  # of -1000, -800, -600, -200, from -900 to -500
        window([-700, 40], [400, 80], "LINEAR_EXACT", RescaleSlope=2, RescaleIntercept=-1000),
        [[0, 64], [191, 255]],
    ),
    "a slope of 0 is not applied": ({"RescaleSlope": 0, "RescaleIntercept": 5}, RANGE),
    "a slope without an intercept, neither": ({"RescaleSlope": 2, "RescaleIntercept": ""}, RANGE),
}


@pytest.mark.parametrize("name", SHOWN)
def test_the_first_window_or_else_the_range_is_shown(tmp_path, name):
    entries, expected = SHOWN[name]
    write_dicom(tmp_path / "a.dcm", GREY, **entries)
    assert shown(tmp_path / "a.dcm") == expected


def test_a_table_of_values_is_followed(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4, 0, 8], [0, 10, 30, 40]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    entries = {"VOILUTSequence": pydicom.Sequence([table])}
    write_dicom(tmp_path / "a.dcm", np.array([[0, 1], [2, 3]], np.uint8), **entries)
    assert shown(tmp_path / "a.dcm") == [[0, 64], [191, 255]]


SIGNED = np.array([[-2000, -100], [0, 300]], np.int16)


@pytest.mark.parametrize(
    "padding",
    [
        {"PixelPaddingValue": -2000},
        {"PixelPaddingValue": 63536},  # the same bits, without a sign
        {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1500},
        {"PixelPaddingValue": -1500, "PixelPaddingRangeLimit": -3000},
    ],
)
def test_padding_is_black_and_takes_no_part_in_the_range(tmp_path, padding):
    def write(name, **more):
        more |= padding | {"PixelRepresentation": 1, "RescaleSlope": 1, "RescaleIntercept": -9}
        vr = "US" if max(padding.values()) > 0 else "SS"
        write_dicom(tmp_path / name, SIGNED, **more, vr=vr)
        return shown(tmp_path / name)

    assert write("a") == [[0, 0], [64, 255]]
    assert write("b", **DARK) == [[0, 255], [191, 0]]
    assert write("c", **window(91, 400, "LINEAR_EXACT", **DARK)) == [[0, 255], [191, 0]]


def test_colours_are_those_of_rgb_or_refused_by_name(tmp_path):
    path, ybr = tmp_path / "a.dcm", np.full((2, 2, 3), (100, 90, 200), np.uint8)
    kind = {"SamplesPerPixel": 3, "PlanarConfiguration": 0}
    write_dicom(path, ybr, **kind, PhotometricInterpretation="YBR_FULL")
    opencv = cv2.cvtColor(ybr[..., [0, 2, 1]], cv2.COLOR_YCrCb2RGB)
    assert np.abs(read_any(path).astype(int) - opencv).max() <= 1
    write_dicom(path, ybr, **kind | {"PlanarConfiguration": 1}, PhotometricInterpretation="RGB")
    assert read_any(path).tolist() == ybr.ravel().reshape(3, 2, 2).transpose(1, 2, 0).tolist()
    write_dicom(path, ybr.astype(np.uint16), **kind, PhotometricInterpretation="RGB")
    with pytest.raises(UserError, match="has 16 bits of RGB: save it as grey"):
        read_any(path)
    write_dicom(path, GREY.astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(UserError, match="has 8 bits of PALETTE COLOR: save it as grey"):
        read_any(path)


def test_values_that_are_not_finite_are_refused(tmp_path):
    values = GREY.astype(np.float32)
    write_dicom(tmp_path / "a.dcm", values, FloatPixelData=values.tobytes())
    assert shown(tmp_path / "a.dcm") == RANGE
    values[0, 0] = np.nan
    write_dicom(tmp_path / "a.dcm", values, FloatPixelData=values.tobytes())
    with pytest.raises(UserError, match="contains values that are not finite"):
        read_any(tmp_path / "a.dcm")


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_a_dicom_without_preamble_is_read(tmp_path, implicit, little):
    path = tmp_path / "a.dcm"
    write_dicom(path, GREY)
    content = pydicom.Dataset()
    content.update(pydicom.dcmread(path))
    if not little:
        content.PixelData = GREY.astype(">u2").tobytes()
        content["PixelData"].VR = "OW"
    content.save_as(path, implicit_vr=implicit, little_endian=little)
    assert path.read_bytes()[128:132] != b"DICM"
    assert shown(path) == RANGE
