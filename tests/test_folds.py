"""Splits: every patch is tested once by default; leaks: see test_training.py."""

import dataclasses

import pytest

from config import UserError
from generate_patches import generate_patches
from medood.data.folds import held_out, hold_out_patients, read_fold
from medood.data.patients import region_of
from medood.data.workspace import fold_path
from tests.conftest import TINY

NAMES = [f"region_{r}_{k}.png" for r in range(7) for k in range(5)]


@pytest.mark.parametrize("split", ["patch", "region"])
def test_the_default_folds_test_every_patch_once(split):
    cfg = dataclasses.replace(TINY, split=split)
    tested = [held_out(cfg, NAMES, fold) for fold in (79, 158, 237)]
    assert sorted(name for part in tested for name in part) == sorted(NAMES)
    assert all(len(NAMES) / 3 - 5 <= len(part) <= len(NAMES) / 3 + 5 for part in tested)


def test_a_patch_split_depends_on_seed_alone_not_on_the_order_of_the_files():
    tested = held_out(TINY, NAMES, 79)
    assert tested == held_out(TINY, NAMES[::-1], 79)
    assert tested != held_out(dataclasses.replace(TINY, seed=1), NAMES, 79)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("img_name,obj_tag\n../../other.png,test\n", "not in Image_Patchs, .*/other.png"),
        ("img_name,obj_tag\nregion_0_0.png,val\n", "and the obj_tag 'val', expected"),
        ("name,tag\nregion_0_0.png,test\n", "row 2 has the img_name None"),
        ("img_name,obj_tag\nregion_0_0.png,test\nregion_0_0.png,train\n", "twice"),
        ("img_name,obj_tag\nregion_0_0.png,train\n", "no patch tagged test"),
    ],
)
def test_a_wrong_list_is_named_with_what_is_wrong(patched, text, said):
    fold_path(patched.workspace, 1).write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        read_fold(patched, 1)
    assert "1Image_Patchs.csv" in str(caught.value)


def test_folds_that_test_the_same_part_are_pointed_out(patched, capsys):
    generate_patches(dataclasses.replace(patched, folds=(1, 4)))
    assert "some test the same part" in capsys.readouterr().out
    generate_patches(patched)
    assert "some test the same part" not in capsys.readouterr().out


def test_validation_patches_are_whole_regions_of_the_training_side(patched):
    cfg = dataclasses.replace(patched, split="patch", select="val")
    train, val, test = read_fold(cfg, 1)
    whole = read_fold(patched, 1)
    assert val
    assert {region_of(name) for name in val}.isdisjoint({region_of(name) for name in train})
    assert set(val) < set(whole.train)
    assert (train, test) == ([name for name in whole.train if name not in val], whole.test)


@pytest.mark.parametrize(("sizes", "count"), [([50, 30, 20], 1), ([1] * 40, 4), ([99, 1], 1)])
def test_just_so_many_regions_are_held_out_as_make_a_tenth(sizes, count):
    names = [f"r{i}_{k}.png" for i, size in enumerate(sizes) for k in range(size)]
    out = hold_out_patients(TINY, names, 1)
    assert len({region_of(name) for name in out}) == count
    assert len(out) < len(names)
    with pytest.raises(UserError, match="needs two regions on the training side, found 1"):
        hold_out_patients(TINY, names[:1], 1)


def test_lists_have_the_columns_of_the_authors_release(patched):
    header, first, *others = fold_path(patched.workspace, 1).read_text().splitlines()
    assert header == ",img_name,obj_tag"
    assert first in ("0,region_0_0.png,train", "0,region_0_0.png,test")
    assert len(others) == 36
