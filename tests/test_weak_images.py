"""Images of any format come in as RGB of one side, and masks would lie on them."""

import dataclasses

import cv2
import numpy as np
import pytest
from tifffile import imwrite

from config import UserError
from medood.data.files import pngs, read_json
from medood.data.images import read_image, write_png
from tests.conftest import TINY, as_settings_of
from tests.small_dicom import GREY, UID, write_dicom
from weak.generate_images import generate_images
from weak.products import labels_there, sizes_of
from weak.read_images import list_inputs, read_any, squared
from weak.settings import ImagesConfig


def test_sixteen_bits_of_grey_are_scaled_by_their_own_range(tmp_path):
    path = tmp_path / "x-ray.png"
    cv2.imwrite(str(path), GREY + 1000)
    found = read_any(path)
    assert found.dtype == np.uint8
    assert found[..., 0].tolist() == [[0, 64], [128, 255]]  # 63.75 and 127.5
    assert (found == found[..., :1]).all()
    cv2.imwrite(str(path), np.full((2, 2), 700, np.uint16))
    assert read_any(path).max() == 0  # nothing to tell apart
    with pytest.raises(UserError, match="is stored as grey, 1 x 16 bits"):
        read_image(path)  # of tissue: what is brightest differs from image to image


@pytest.mark.parametrize(("order", "more"), [("<", {"tile": (16, 16)}), (">", {})])
def test_signed_grey_is_scaled_too_and_other_kinds_are_refused(tmp_path, order, more):
    path = tmp_path / "ct.tif"
    for values in (GREY.astype(np.int16) * 2 - 1000, GREY + 60_000):
        imwrite(path, values, byteorder=order, **more)
        assert read_any(path)[..., 0].tolist() == [[0, 64], [128, 255]]
    for number, said in ((np.int8, "1 x 8 bits, signed"), (np.float32, "1 x 32 bits, float")):
        imwrite(path, GREY.astype(number), byteorder=order, **more)
        with pytest.raises(UserError, match=said):
            read_any(path)
    imwrite(path, GREY, byteorder=order, photometric="miniswhite", **more)
    with pytest.raises(UserError, match="is stored as grey with white as 0"):
        read_any(path)


def test_images_are_found_in_nested_folders_by_name_or_stem(tmp_path, capsys):
    files = [f"study/series/{UID}.dcm", "study/other/IM0001", "b.png", "deep/c.png", "unnamed.png"]
    write_dicom(tmp_path / files[0], GREY)
    write_dicom(tmp_path / files[1], GREY)  # told by its content
    for name in files[2:]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_png(tmp_path / name, np.zeros((2, 2, 3), np.uint8))
    for no_image in ("notes.txt", "IM0002"):
        (tmp_path / no_image).write_text("no image")
    found = list_inputs(tmp_path, ["c.png", UID, "b", "IM0001"])
    assert found == [tmp_path / files[n] for n in (3, 0, 2, 1)]
    assert "images that are ignored, as the image labels lack them: 1" in capsys.readouterr().out
    list_inputs(tmp_path, ["c.png", UID, "b", "IM0001"])  # as the later steps do
    assert capsys.readouterr().out == ""


def test_an_image_that_is_missing_or_found_twice_is_named(tmp_path):
    for name in ("a.png", "deep/a.png", "b.png", "b.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="lacks 2 images that the image labels name, such as c.png"):
        list_inputs(tmp_path, ["b.tif", "c.png", "d"])
    with pytest.raises(UserError, match="a.png and .*a.png may both be the image a.png"):
        list_inputs(tmp_path, ["a.png"])
    with pytest.raises(UserError, match="b.png and .*b.tif may both be the image b "):
        list_inputs(tmp_path, ["b"])
    assert list_inputs(tmp_path, ["b.tif"]) == [tmp_path / "b.tif"]
    (tmp_path / "b.png").unlink()
    assert list_inputs(tmp_path, ["b.dcm"]) == [tmp_path / "b.tif"]  # converted since
    with pytest.raises(UserError, match="there is no folder"):
        list_inputs(tmp_path / "elsewhere", ["a"])


def test_an_image_is_scaled_to_its_longer_side_in_the_middle_of_black():
    image = np.full((6, 16, 3), 200, np.uint8)
    image[:, 8:] = 100
    found = squared(image, 8)  # 3 x 8: two rows of black above, three below
    assert found.shape == (8, 8, 3)
    assert found[:2].max() == found[5:].max() == 0
    assert (found[2:5, :4] == 200).all()
    assert (found[2:5, 4:] == 100).all()
    assert squared(np.full((1, 999, 3), 9, np.uint8), 8)[3].min() == 9  # thin: a row is left
    assert squared(np.array([[0, 100], [40, 60]], np.uint8), 1).tolist() == [[50]]
    assert squared(np.array([[0, 100]] * 2, np.uint8), 4)[0].tolist() == [0, 25, 75, 100]


@pytest.mark.parametrize("shape", [(30, 50), (7, 200), (301, 299)])
def test_image_and_mask_lie_on_each_other_and_a_mask_has_no_new_values(shape):
    mask = np.zeros(shape, np.uint8)
    rows, columns = (slice(side // 4, side - side // 3) for side in shape)
    mask[rows, columns] = 2
    found = squared(mask, 32, nearest=True)
    assert set(np.unique(found)) == {0, 2}
    of_image = squared(mask * 100, 32).astype(int)
    assert np.abs(of_image - 100 * found.astype(int)).mean() < 10
    inside = (of_image == 200) & (found != 2) | (of_image == 0) & (found != 0)
    assert not inside.any()  # they differ where a pixel is cut by the edge, at the most


@pytest.fixture
def inputs(tmp_path):
    """Settings of three images of other sizes and kinds, and of what they hold."""
    folders = {"images": tmp_path / "images", "workspace": tmp_path}
    cfg = as_settings_of(ImagesConfig, TINY, **folders, image_size=32)
    write_dicom(cfg.images / "study" / "series" / f"{UID}.dcm", np.tile(GREY, (20, 10)))
    write_png(cfg.images / "b.png", np.full((32, 32, 3), 7, np.uint8))
    write_png(cfg.images / "c.png", np.full((10, 64, 3), 9, np.uint8))
    path = cfg.workspace / "image_labels.csv"
    path.write_text(f"img_name,patient,cat\nb.png,y,1\n{UID},x,0\nc.png,y,0\n")
    return dataclasses.replace(cfg, image_labels=path)


def test_every_labelled_image_is_brought_to_one_size(inputs, capsys):
    generate_images(inputs)
    folder = inputs.workspace / "weak" / "Images"
    assert [path.name for path in pngs(folder)] == [f"{UID}.png", "b.png", "c.png"]
    assert all(read_image(path).shape == (32, 32, 3) for path in pngs(folder))
    assert (read_image(folder / "b.png") == 7).all()
    assert sizes_of(inputs) == {f"{UID}.png": [40, 20], "b.png": [32, 32], "c.png": [10, 64]}
    assert labels_there(inputs).names == ["b.png", UID, "c.png"]
    assert "3 images" in capsys.readouterr().out
    inputs.image_labels.write_text(inputs.image_labels.read_text().replace("y,0", "y,1"))
    generate_images(inputs)  # no label decides a pixel
    assert "kept, made from the same" in capsys.readouterr().out
    with pytest.raises(UserError, match="images = None: name the folder"):
        generate_images(dataclasses.replace(inputs, images=None))


def test_bad_images_are_refused_together_or_left_out(inputs, capsys):
    whole = (inputs.images / "c.png").read_bytes()
    (inputs.images / "c.png").write_bytes(whole[:-20])
    with pytest.raises(UserError, match="1 file cannot be used.*\n.*c.png is not a complete image"):
        generate_images(inputs)
    skipping = dataclasses.replace(inputs, skip_bad_files=True)
    generate_images(skipping)
    assert "bad files skipped: 1" in capsys.readouterr().out
    there = labels_there(skipping)
    assert (there.names, there.patients) == (["b.png", UID], ["y", "x"])
    assert there.labels.tolist() == [[1], [0]]
    assert sizes_of(skipping).keys() == {f"{UID}.png", "b.png"}
    record = read_json(inputs.workspace / "weak" / "Images" / "made_from.json")
    assert list(record["bad_files"]) == ["c.png"]
