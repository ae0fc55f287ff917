"""OoD patches: no foreground is left, whatever stands in its place."""

import dataclasses

import numpy as np
import pytest

from config import UserError
from generate_patches import generate_patches
from generate_unfiltered_oods import generate_unfiltered_oods, remove_foreground
from medood.files import read_image, read_mask

IMAGE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
MASK = np.array([[0, 2, 0], [6, 0, 0]], np.uint8)


def test_zero_blackens_the_foreground_and_leaves_the_rest():
    out = remove_foreground(IMAGE, MASK, "zero")
    assert out[0, 1].tolist() == out[1, 0].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(out[MASK == 0], IMAGE[MASK == 0])


def test_mean_puts_the_mean_background_colour_there():
    out = remove_foreground(IMAGE, MASK, "mean")
    # background reds: 0, 60, 120, 150; greens and blues 10 and 20 above
    assert out[0, 1].tolist() == out[1, 0].tolist() == [82, 92, 102]
    np.testing.assert_array_equal(out[MASK == 0], IMAGE[MASK == 0])


def test_inpaint_continues_an_even_background():
    image = np.full((16, 16, 3), 90, np.uint8)
    mask = np.zeros((16, 16), np.uint8)
    mask[5:9, 5:9] = 3
    image[mask > 0] = 10
    out = remove_foreground(image, mask, "inpaint")
    np.testing.assert_allclose(out, 90, atol=2)
    np.testing.assert_array_equal(out[mask == 0], 90)


@pytest.mark.parametrize("fill", ["zero", "mean", "inpaint"])
@pytest.mark.parametrize("value", [0, 1])
def test_a_patch_of_one_kind_has_an_ood_patch_too(fill, value):
    out = remove_foreground(IMAGE, np.full((2, 3), value, np.uint8), fill)
    assert out.shape == IMAGE.shape
    if value == 0:
        np.testing.assert_array_equal(out, IMAGE)


def test_every_patch_gets_an_ood_patch_of_its_name(patched):
    folder = patched.workspace / "OoD_Patchs"
    names = sorted(path.name for path in folder.glob("*.png"))
    assert names == sorted(p.name for p in (patched.workspace / "Image_Patchs").glob("*.png"))
    for name in names:
        mask = read_mask(patched.workspace / "Mask_Patchs" / name)
        assert (read_image(folder / name)[mask > 0] == 0).all()


def test_patches_are_paired_by_name_never_by_position(patched):
    names = sorted(path.name for path in (patched.workspace / "Image_Patchs").glob("*.png"))
    (patched.workspace / "Image_Patchs" / names[3]).unlink()
    (patched.workspace / "Mask_Patchs" / names[20]).unlink()
    with pytest.raises(UserError, match=f"{names[3]} is only in one of .*2 such"):
        generate_unfiltered_oods(patched)


@pytest.mark.parametrize("folder", ["OoD_Patchs", "Image_Patchs", "Mask_Patchs"])
def test_a_patch_that_was_lost_is_made_again(patched, folder):
    lost = next((patched.workspace / folder).glob("*.png"))
    before = lost.read_bytes()
    lost.unlink()
    generate_patches(patched)
    generate_unfiltered_oods(patched)
    assert lost.read_bytes() == before


def test_another_fill_makes_them_anew(patched, capsys):
    generate_unfiltered_oods(patched)
    assert "kept" in capsys.readouterr().out
    generate_unfiltered_oods(dataclasses.replace(patched, ood_fill="mean"))
    assert "fill mean" in capsys.readouterr().out
