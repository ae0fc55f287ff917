"""OoD patches: no foreground is left in them; which are hard, and how many of them to use."""

import dataclasses
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from config import UserError
from estimate_pct import choose_pct, count_samples, estimate_pct, pixels_of, pnr
from generate_unfiltered_oods import generate_unfiltered_oods, remove_foreground
from medood.data.files import read_table
from medood.data.folds import read_fold
from medood.data.images import read_image, write_png
from medood.data.ood_set import ood_candidates, read_hard_oods
from medood.data.records import RECORD
from medood.data.workspace import model_folder, ranking_path
from medood.models.checkpoints import read_run
from rank_prune_ood import rank_and_prune, rank_prune_ood
from tests import oracles
from train import train
from train_ood import train_ood


@pytest.mark.parametrize("fill", ["zero", "mean", "inpaint"])
def test_a_patch_of_one_kind_has_an_ood_patch_too(fill):
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    assert remove_foreground(image, np.ones((2, 3), np.uint8), fill).shape == image.shape
    np.testing.assert_array_equal(remove_foreground(image, np.zeros((2, 3), np.uint8), fill), image)


def test_patches_are_paired_by_name_never_by_position(patched):
    names = sorted(path.name for path in (patched.workspace / "Image_Patchs").glob("*.png"))
    (patched.workspace / "Image_Patchs" / names[3]).unlink()
    (patched.workspace / "Mask_Patchs" / names[20]).unlink()
    with pytest.raises(UserError, match="36 of its 37 files are present.*generate_patches.py"):
        generate_unfiltered_oods(patched)
    for folder in ("Image_Patchs", "Mask_Patchs"):
        (patched.workspace / folder / RECORD).unlink()  # now they are the user's
    shutil.rmtree(patched.workspace / "k_folds")
    with pytest.raises(UserError, match=f"{names[3]} is only in one of .*2 in all"):
        generate_unfiltered_oods(patched)


@pytest.fixture
def external(patched, tmp_path_factory):
    """Settings with two external images, of 2 x 3 and of one whole patch."""
    folder = tmp_path_factory.mktemp("external")
    rng = np.random.default_rng(0)
    for name, shape in (("wide.png", (70, 100, 3)), ("one.jpg", (32, 33, 3))):
        image = rng.integers(0, 256, shape, np.uint8)
        (folder / name).write_bytes(cv2.imencode(Path(name).suffix, image)[1].tobytes())
    return dataclasses.replace(patched, ood_source=folder, folds=(1,))


def test_external_images_are_cut_into_whole_patches_and_smaller_ones_refused(external):
    write_png(external.ood_source / "small.png", np.zeros((31, 64, 3), np.uint8))
    with pytest.raises(UserError, match="small.png is 64 x 31 pixels, smaller than a patch of 32"):
        generate_unfiltered_oods(external)
    generate_unfiltered_oods(dataclasses.replace(external, skip_bad_files=True))
    folder = external.workspace / "OoD_Source_Patchs"
    names = sorted(path.name for path in folder.glob("*.png"))
    assert names == ["source-one_0.png"] + [f"source-wide_{k}.png" for k in range(6)]
    whole = read_image(external.ood_source / "wide.png")
    np.testing.assert_array_equal(read_image(folder / "source-wide_4.png"), whole[32:64, 32:64])


def test_external_patches_are_mined_and_trained_on(external, quick_report):
    cfg = dataclasses.replace(external, ood_source_use="beside", pct_grid=(1.0,), epochs=1)
    generate_unfiltered_oods(cfg)
    for step in (train, rank_prune_ood, estimate_pct, train_ood):
        step(cfg)
    mined = {row["img_name"] for row in read_table(ranking_path(cfg, 1))}
    cut = set(read_fold(cfg, 1).train)
    assert (len(mined - cut), cut - mined) == (7, set())
    instead = dataclasses.replace(cfg, ood_source_use="instead")
    assert set(ood_candidates(instead, [*cut])) == mined - cut
    kept = len(read_hard_oods(cfg, 1))
    assert read_run(model_folder(cfg, 1, ood=True))["ood_patches"] == kept > 0


def test_a_ranking_of_other_candidates_is_refused(report, external):
    cut = report[0]
    external = dataclasses.replace(cut, ood_source=external.ood_source)
    generate_unfiltered_oods(external)
    changed = r"\.csv is out of date \(candidates changed\).*rank_prune_ood\.py"
    for step in (estimate_pct, train_ood):
        with pytest.raises(UserError, match=changed):
            step(external)
    generate_unfiltered_oods(dataclasses.replace(cut, ood_fill="mean"))
    with pytest.raises(UserError, match="ood_fill was mean, is zero.*generate_unfiltered_oods.py"):
        train_ood(cut)
    with pytest.raises(UserError, match=changed):
        train_ood(dataclasses.replace(cut, ood_fill="mean"))


GRID = tuple(tenth / 10 for tenth in range(11))


def test_ranking_by_hand():
    counts = np.array(
        [
            [4, 0, 0, 0, 0, 0, 0],  # sees nothing: pruned
            [3, 1, 0, 0, 0, 0, 0],  # one false pixel
            [2, 1, 1, 0, 0, 0, 0],  # two classes seen: lower miou
            [2, 0, 2, 0, 0, 0, 0],  # one class seen
            [1, 3, 0, 0, 0, 0, 0],  # more false pixels, of one class
            [3, 1, 0, 0, 0, 0, 0],  # a tie, which goes to the name
        ]
    )
    rows = rank_and_prune(["a", "z", "c", "d", "e", "b"], counts)
    assert [row[:2] for row in rows] == [[n, of] for n, of in enumerate("cedbza", start=1)]
    assert rows[0][2] == pytest.approx((0.5 + 0 + 0 + 4) / 7)
    assert rows[1][2] == pytest.approx((0.25 + 0 + 5) / 7)
    assert rows[5][2] == 1.0
    assert rows[0][3:] == [2, 1, 1, 0, 0, 0, 0, 1]
    assert rows[5][3:] == [0, 0, 0, 0, 0, 0, 0, 0]
    counts = np.array([[128 * 128 - 1, 0, 0, 0, 0, 0, 1], [128 * 128, 0, 0, 0, 0, 0, 0]])
    assert [row[-1] for row in rank_and_prune(["one", "none"], counts)] == [1, 0]  # false pixel


def test_the_papers_own_numbers():
    assert pnr(11_845, 12_249, 0) == pytest.approx(0.967, abs=5e-4)
    best, rows = choose_pct(11_845, 12_249, 9_684, GRID, 0.65)
    assert rows[0]["distance"] == pytest.approx(0.317, abs=5e-4)
    assert best["pct"] == 0.6
    assert best["ood_patches"] == 5_810
    assert 12_249 + best["ood_patches"] == 18_059
    assert best["distance"] == pytest.approx(0.006, abs=5e-4)
    assert 12_249 + rows[-1]["ood_patches"] == 21_933
    assert [row["pct"] for row in rows] == list(GRID)


def test_a_tie_goes_to_the_smaller_share():
    best, _ = choose_pct(10, 10, 0, (1.0, 0.5, 0.0), 0.65)
    assert best == {"pct": 0.0, "ood_patches": 0, "pnr": 1.0, "distance": pytest.approx(0.35)}


def test_the_estimate_equals_a_search_that_reads_every_mask_again(patched):
    paths = sorted((patched.workspace / "Mask_Patchs").glob("*.png"))
    foreground, _ = pixels_of(patched, [(path, path) for path in paths])
    positives, negatives = count_samples(foreground, patched.patch_size**2)
    for available in (5, 17, 30):
        best, _ = choose_pct(positives, negatives, available, GRID, 0.65)
        assert best["pct"] == oracles.choose_pct(paths, available, GRID, 0.65)
