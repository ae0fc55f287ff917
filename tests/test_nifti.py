"""A volume is the same, and so is what is made of it, however its file stores its axes."""

import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy.spatial.transform import Rotation

from config import UserError
from robust.nifti import as_stored, read_nifti
from robust.volume_training import load_network
from robust.volumes import Case, Task, read_volume
from tests.small_volumes import CPU

ORIENTATIONS = [
    np.array([axes, flips], float).T
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
SPACING = (0.5, 1.25, 4.0)
SHAPE = (3, 4, 5)
IMAGE_VALUES = np.random.default_rng(0).random(SHAPE).astype(np.float32)
CLASSES = np.random.default_rng(1).integers(0, 3, SHAPE, np.uint8)


def affine_of(degrees=(0, 0, 0)):
    """The affine of a scan, turned by some degrees about each axis."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * SPACING
    affine[:3, 3] = -12.5, 30, 7
    return affine


def store(path, values, affine, orientation=ORIENTATIONS[0], form="both", change=None):
    """Write a volume whose axes run as AXES along other ones."""
    stored = apply_orientation(values, orientation)
    affine = affine @ inv_ornt_aff(orientation, values.shape[:3])
    image = nibabel.Nifti1Image(stored, affine)
    image.set_qform(affine, 1 if form != "sform" else 0)
    image.set_sform(affine, 1 if form != "qform" else 0)
    if change:
        change(image)
    path.parent.mkdir(exist_ok=True, parents=True)
    nibabel.save(image, path)
    return image


def case_in(folder):
    return Case("a", folder / "image.nii", folder / "label.nii")


def task_of(case, modalities=1):
    return Task([case], modalities, ("background", "one", "two"))


def to_range(values):
    wide = values.astype(np.float64)
    return ((wide - wide.min()) / np.ptp(wide)).astype(np.float32)


@hypothesis_settings(deadline=None, max_examples=20)
@given(
    of_image=st.sampled_from(ORIENTATIONS),
    of_label=st.sampled_from(ORIENTATIONS),
    degrees=st.tuples(*[st.floats(-20, 20)] * 3),
    forms=st.tuples(*[st.sampled_from(["sform", "qform", "both"])] * 2),
)
def test_a_volume_is_the_same_in_every_orientation(
    tmp_path_factory, of_image, of_label, degrees, forms
):
    case, affine = case_in(tmp_path_factory.getbasetemp() / "turned"), affine_of(degrees)
    store(case.image, IMAGE_VALUES, affine, of_image, forms[0])
    store(case.label, CLASSES, affine, of_label, forms[1])
    volume = read_volume(task_of(case), case)
    np.testing.assert_array_equal(volume.image[0], to_range(IMAGE_VALUES))
    np.testing.assert_array_equal(volume.label, CLASSES)
    np.testing.assert_allclose(volume.spacing, SPACING, rtol=1e-5)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_mask_is_written_along_the_axes_of_its_image_with_its_header(tmp_path, orientation):
    def describe(image):
        image.header.set_xyzt_units("mm", "sec")
        image.header["descrip"] = b"scan"
        image.header["cal_max"] = 900  # a viewer would show classes of 1 and 2 as black

    path, affine = tmp_path / "a.nii.gz", affine_of((9, -5, 3))
    image = store(path, IMAGE_VALUES, affine, orientation, change=describe)
    mask = read_nifti(path).values > 0.5
    nibabel.save(as_stored(path, mask.astype(np.uint8)), tmp_path / "b.nii.gz")
    written = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(written.get_fdata(), image.get_fdata() > 0.5)
    assert written.get_data_dtype() == np.uint8
    for name in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units", "descrip"):
        np.testing.assert_array_equal(written.header[name], image.header[name])
    np.testing.assert_array_equal(written.get_qform(), image.get_qform())
    assert written.header["cal_max"] == 0


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
def test_a_mask_of_a_volume_of_channels_has_three_axes(tmp_path, kind, order):
    values = np.stack([IMAGE_VALUES] * 2, -1)
    header = kind.header_class(endianness=order)
    header.set_slope_inter(2, 1)
    affine = affine_of() @ inv_ornt_aff(ORIENTATIONS[20], SHAPE)
    image = kind(apply_orientation(values, ORIENTATIONS[20]), affine, header)
    nibabel.save(image, tmp_path / "a.nii")
    nibabel.save(as_stored(tmp_path / "a.nii", CLASSES), tmp_path / "b.nii.gz")
    written = nibabel.load(tmp_path / "b.nii.gz")
    assert isinstance(written, kind)
    np.testing.assert_array_equal(written.affine, nibabel.load(tmp_path / "a.nii").affine)
    np.testing.assert_array_equal(written.get_fdata(), apply_orientation(CLASSES, ORIENTATIONS[20]))


def test_spacing_is_in_millimetres_whatever_the_unit(tmp_path):
    case = case_in(tmp_path)
    for unit, factor in (("unknown", 1), ("mm", 1), ("meter", 1000), ("micron", 1e-3)):
        for path, values in ((case.image, IMAGE_VALUES), (case.label, CLASSES)):
            store(path, values, affine_of(), change=lambda i, u=unit: i.header.set_xyzt_units(u))
        spacing = read_volume(task_of(case), case).spacing
        np.testing.assert_allclose(spacing, np.multiply(SPACING, factor))
    store(case.label, CLASSES, affine_of())  # in no unit, which is mm
    with pytest.raises(UserError, match="a corner .* voxels off"):
        read_volume(task_of(case), case)


@pytest.mark.parametrize("spacing", [1.0, 1e-3])
def test_a_label_lies_on_its_image_within_a_tenth_of_a_voxel(tmp_path, spacing):
    case, affine = case_in(tmp_path), np.diag([spacing] * 3 + [1])
    store(case.image, IMAGE_VALUES, affine)
    moved = affine.copy()
    for distance in (0.05, 0.5, 1):
        moved[2, 3] = distance * spacing
        store(case.label, CLASSES, moved, ORIENTATIONS[20])
        if distance < 0.1:
            read_volume(task_of(case), case)
        else:
            with pytest.raises(UserError, match=f"a corner {distance:g} voxels off"):
                read_volume(task_of(case), case)
    # of the shape of the image's file, in another orientation
    store(case.image, IMAGE_VALUES, affine, ORIENTATIONS[20])
    store(case.label, apply_orientation(CLASSES, ORIENTATIONS[20]), affine)
    with pytest.raises(UserError, match=r"shape \(.*\) along the axes RAS .* does not match its"):
        read_volume(task_of(case), case)


def test_a_network_of_before_the_turning_is_refused(trained_volumes):
    folder = trained_volumes.home / "models" / "79_unet"
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"axes"', '"other"'))
    with pytest.raises(UserError, match="along their stored axes, by an earlier version: train"):
        load_network(trained_volumes, folder, CPU)


@pytest.mark.parametrize(
    ("dtype", "slope", "least"),
    [("<i2", 1, 0), ("u1", 0.1, 0), ("<i4", 1, 2**28), ("<f8", 1, 2**28), (">i2", 1, 0)],
)
def test_what_is_stored_is_scaled_to_its_range_to_the_last_bit(tmp_path, dtype, slope, least):
    """Also what float32 does not hold."""
    case, values = case_in(tmp_path), np.random.default_rng(2).integers(0, 120, SHAPE) + least
    header = nibabel.Nifti1Header(endianness=">" if dtype == ">i2" else "<")
    image = nibabel.Nifti1Image(values.astype(dtype), np.eye(4), header, dtype=dtype)
    image.header.set_slope_inter(slope, 0)
    nibabel.save(image, case.image)
    store(case.label, CLASSES, np.eye(4))
    found = read_volume(task_of(case), case).image[0]
    np.testing.assert_array_equal(found, to_range(nibabel.load(case.image).get_fdata()))


def test_channels_are_scaled_one_by_one_and_one_channel_is_no_axis(tmp_path):
    case = case_in(tmp_path)
    two = np.stack([IMAGE_VALUES, 100 - 50 * IMAGE_VALUES], -1)
    store(case.label, CLASSES[..., None], affine_of(), ORIENTATIONS[11])
    for values in (two, two[:, :, :, None]):  # NIfTI has the time before the channels
        store(case.image, values, affine_of(), ORIENTATIONS[20])
        volume = read_volume(task_of(case, modalities=2), case)
        np.testing.assert_array_equal(volume.label, CLASSES)
        np.testing.assert_allclose(volume.image[1], 1 - volume.image[0], atol=1e-5)
    store(case.image, IMAGE_VALUES[..., None], affine_of())
    assert read_volume(task_of(case), case).image.shape == (1, *SHAPE)
    store(case.image, np.full(SHAPE, 7.5), affine_of())  # of one value: all zero
    assert read_volume(task_of(case), case).image.abs().max() == 0


@pytest.mark.parametrize(
    ("stored", "slope", "said"),
    [
        ([0, 0.9999999, 1.99999999], 1, None),
        ([0, 127, 254], 1 / 127, None),
        ([0, 1, 1.9979999999], 1, "1.9979999999"),
        ([0, 1, -1], 1, "-1.0"),
        ([0, 1, 255], 1, "255.0"),
    ],
)
def test_labels_off_a_whole_number_by_rounding_are_rounded_and_no_others(
    tmp_path, stored, slope, said
):
    case = case_in(tmp_path)
    store(case.image, IMAGE_VALUES, np.eye(4))
    values = np.array(stored)[CLASSES].astype(np.float64 if slope == 1 else np.uint8)
    store(case.label, values, np.eye(4), change=lambda i: i.header.set_slope_inter(slope, 0))
    if said is None:
        np.testing.assert_array_equal(read_volume(task_of(case), case).label, CLASSES)
        return
    with pytest.raises(UserError, match=f"label.nii: value {said}, expected whole numbers from 0"):
        read_volume(task_of(case), case)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda _: np.zeros(SHAPE, [(c, "u1") for c in "RGB"]), "contains colours or complex"),
        (lambda v: v.astype(np.complex64), "contains colours or complex"),
        (lambda v: np.where(v == v.max(), np.nan, v), "are not finite"),
        (lambda v: np.where(v == v.max(), np.inf, v), "are not finite"),
        (lambda v: v[0], r"shape \(4, 5\), expected three axes"),
        (lambda v: np.stack([v, v], -1), r"shape \(3, 4, 5, 2\)"),
        (lambda v: v[:0], "expected three axes of voxels"),
    ],
)
@pytest.mark.parametrize("side", ["image", "label"])
def test_values_that_are_no_volume_are_named_as_what_they_are(tmp_path, change, sentence, side):
    case = case_in(tmp_path)
    store(case.image, IMAGE_VALUES, np.eye(4))
    store(case.label, CLASSES, np.eye(4))
    values = change(IMAGE_VALUES if side == "image" else CLASSES.astype(np.float32))
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), getattr(case, side))
    with pytest.raises(UserError, match=f"{side}.nii.*{sentence}"):
        read_volume(task_of(case), case)


def test_an_affine_that_places_no_voxel_is_refused(tmp_path):
    case = case_in(tmp_path)
    store(case.image, IMAGE_VALUES, np.eye(4), form="sform")
    store(case.label, CLASSES, np.eye(4))
    content = bytearray(case.image.read_bytes())
    content[280:296] = bytes(16)  # a row of the sform
    case.image.write_bytes(content)
    with pytest.raises(UserError, match="its affine, .* does not define all axes"):
        read_volume(task_of(case), case)
