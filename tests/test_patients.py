"""Patients: the images of one stay together in folds, in what is held out, and in intervals."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from config import UserError
from generate_patches import generate_patches
from medood.check import check
from medood.data.folds import held_out, hold_out_patients, read_fold
from medood.data.images import write_png
from medood.data.patients import patients_of
from medood.data.workspace import fold_path, id_files
from medood.evaluation.scores import RegionCounts, Tally
from medood.evaluation.testing import score_networks
from medood.runs.products import BASELINE, FOLD, network_made_from
from medood.runs.provenance import require
from robust.report import _by_patient
from studies import leakage, recipe
from tests.conftest import TINY

PATTERN = r"(p\d+)_.*"
PATIENTS = [f"p{number}" for number in range(6)]
IMAGES = [f"{patient}_{scan}" for patient in PATIENTS for scan in ("a", "b", "c")]
PATCHES = [f"{image}_{k}.png" for image in IMAGES for k in range(2)]
TABLE = "img_name,patient\n" + "".join(f"{image}.png,{image[:2]}\n" for image in IMAGES)


def of_patients(patches):
    return {patch.split("_")[0] for patch in patches}


@pytest.fixture
def prepared(tmp_path):
    """Settings of prepared patches: six patients with three images of two patches each."""
    rng = np.random.default_rng(0)
    for folder in ("Image_Patchs", "Mask_Patchs"):
        (tmp_path / folder).mkdir()
    for name in PATCHES:
        write_png(tmp_path / "Image_Patchs" / name, rng.integers(0, 255, (32, 32, 3), np.uint8))
        write_png(tmp_path / "Mask_Patchs" / name, rng.integers(0, 7, (32, 32), np.uint8))
    return dataclasses.replace(TINY, workspace=tmp_path, patients=PATTERN, split="region")


def with_table(cfg, text):
    path = cfg.workspace / "Patients.CSV"
    path.write_text(text)
    return dataclasses.replace(cfg, patients=str(path))


def test_a_table_says_what_a_pattern_says(prepared):
    more = TABLE.replace(".png", "") + "another.png,p9\np0_a.tif,p0\n"
    for text in (TABLE, more):
        found = patients_of(with_table(prepared, text), PATCHES)
        assert found == patients_of(prepared, PATCHES) == [name[:2] for name in PATCHES]
    cfg = with_table(prepared, "img_name,patient\ncase.1,x\ncase.2.PNG,y\n0001.png,z\n")
    assert patients_of(cfg, ["case.2_0.png", "case.1_0.png", "0001.png"]) == ["y", "x", "z"]


def test_under_the_official_split_a_region_is_of_its_slide(tmp_path):
    cfg = dataclasses.replace(TINY, workspace=tmp_path, split="official")
    patches = ["glas_1_0.png", "glas_1_1.png", "glas_2_0.png", "dpath_3_0.png", "own_0.png"]
    rows = "Filename,Source,Split\nglas_1.png,a,1\nglas_2.png,a,1\ndpath_3.png,a,2\nown.png,,3\n"
    (tmp_path / "info.csv").write_text(rows)
    # `a` is another slide in each of the sets
    assert patients_of(cfg, patches) == ["glas/a", "glas/a", "glas/a", "dpath/a", "own"]
    assert cfg.unit == "slide"
    (tmp_path / "info.csv").unlink()  # its lists are there, and are used
    assert patients_of(cfg, patches) == [name.rsplit("_", 1)[0] for name in patches]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TABLE.replace("p3_b.png,p3\n", ""), r"CSV does not name the image p3_b: add a row"),
        (TABLE.replace(",", "|"), r"row 2 lacks img_name or patient: give the table both columns"),
        (TABLE + "p0_b,p4\n", r"assigns p0_b to patient p0 and to p4: remove one row"),
    ],
)
def test_a_wrong_table_is_one_sentence(prepared, text, said):
    with pytest.raises(UserError, match=said) as caught:
        generate_patches(with_table(prepared, text))
    assert "\n" not in str(caught.value)
    assert not fold_path(prepared.workspace, 1).exists()


@pytest.mark.parametrize("pattern", [r"(p[0-4])?.*", r"(p\d)"])
def test_an_image_that_a_pattern_does_not_fit_is_named(prepared, pattern):
    with pytest.raises(UserError, match="does not match the whole name of image p[05]_[ac]"):
        generate_patches(dataclasses.replace(prepared, patients=pattern))


def test_a_region_split_deals_whole_patients_and_tests_each_once(prepared):
    generate_patches(prepared)
    folds = [read_fold(prepared, fold) for fold in prepared.folds]
    for train, _, test in folds:
        assert of_patients(train) | of_patients(test) == set(PATIENTS)
        assert not of_patients(train) & of_patients(test)
        assert len(of_patients(test)) == 2
    assert sorted(name for fold in folds for name in fold.test) == PATCHES
    assert check(prepared).table["fold 1"].endswith(" 0 of 6 patients on both sides")
    train, val, _ = read_fold(dataclasses.replace(prepared, select="val"), 1)  # held out
    assert len(of_patients(val)) == 1  # a sixth and more of the training side
    assert not of_patients(val) & of_patients(train)


def test_without_patients_the_lists_are_what_they_were():
    names = [f"region_{r}_{k}.png" for r in range(7) for k in range(2)]
    by_patch = dataclasses.replace(TINY, seed=3)
    by_region = dataclasses.replace(by_patch, split="region")
    listed = {f"region_{number}_{k}.png" for number in (4, 6) for k in (0, 1)}
    assert held_out(by_region, names, 79) == listed
    listed = {"2_0", "4_0", "4_1", "5_1", "6_0"}
    assert held_out(by_patch, names, 79) == {f"region_{place}.png" for place in listed}
    assert hold_out_patients(by_patch, names, 79) == {"region_0_0.png", "region_0_1.png"}


@pytest.mark.parametrize(("gone", "fold"), [("2-5", 2), ("1-5", 3)])
def test_too_few_patients_for_a_fold_are_said_before_a_list_is_written(prepared, gone, fold):
    for path in prepared.workspace.glob(f"*_Patchs/p[{gone}]*.png"):
        path.unlink()
    cfg = dataclasses.replace(prepared, folds=(fold,))
    said = f"fold {fold}: split = region leaves one side empty, .* few patients: add some, or"
    with pytest.raises(UserError, match=said):
        generate_patches(cfg)
    assert not fold_path(cfg.workspace, fold).exists()
    assert re.search(said, check(cfg).stops[0])


def test_attacks_draw_patients_too(prepared):
    generator, tally = torch.Generator().manual_seed(0), Tally(36, 3)
    logits = torch.randn(36, 3, 4, 4, generator=generator)
    truth = torch.randint(3, (36, 4, 4), generator=generator, dtype=torch.uint8)
    tally.add(slice(None), logits.softmax(1), truth)
    attacked = SimpleNamespace(names=PATCHES, tally=lambda place: tally)
    counts = _by_patient(prepared, attacked, 0)
    expected = tally.by_region([name[:2] for name in PATCHES])
    assert counts.regions == expected.regions == PATIENTS
    np.testing.assert_array_equal(counts.confusion, expected.confusion)


def test_a_change_of_patients_makes_the_lists_anew(prepared, capsys):
    cfg = with_table(prepared, TABLE)
    generate_patches(cfg)
    require(cfg, FOLD)
    capsys.readouterr()
    cfg = with_table(cfg, TABLE.replace("\n", ",x\n"))  # another column
    generate_patches(cfg)
    assert "regenerated" not in capsys.readouterr().out
    cfg = with_table(cfg, TABLE.replace("p0_a.png,p0", "p0_a.png,p1"))
    said = r"1Image_Patchs.csv is out of date .patients changed.*generate_patches.py .*--patients"
    with pytest.raises(UserError, match=said):
        require(cfg, FOLD)
    generate_patches(cfg)
    assert capsys.readouterr().out.count("Image_Patchs.csv: regenerated: patients changed") == 3
    require(cfg, FOLD)
    for other in (PATTERN, None):  # the lists would differ
        with pytest.raises(UserError, match="out of date .patients changed"):
            require(dataclasses.replace(cfg, patients=other), FOLD)


def test_networks_depend_on_patients_where_these_choose_the_epoch(prepared):
    generate_patches(prepared)
    source = prepared.workspace / "source-0.png"  # an OoD patch, of no patient
    write_png(source, np.zeros((32, 32, 3), np.uint8))
    alike = dataclasses.replace(prepared, patients=r"(.*)_[abc]")
    for select in ("last", "val"):
        one, other = (dataclasses.replace(cfg, select=select) for cfg in (prepared, alike))
        assert BASELINE.made_from(one, 1) == BASELINE.made_from(other, 1)
        by_image = dataclasses.replace(one, patients=r"(p\d_[abc])")
        differs = BASELINE.made_from(one, 1) != BASELINE.made_from(by_image, 1)
        assert differs == (select == "val")
        train, val, _ = read_fold(one, 1)
        files = [*id_files(one.workspace, train), (source, None), *id_files(one.workspace, val)]
        trained = network_made_from(one, 1, files)
        assert trained.get("patients") == BASELINE.made_from(one, 1).get("patients")


def test_the_report_speaks_of_patients(report, quick_report):
    from test import evaluate

    cfg, folder = report
    evaluate(with_table(cfg, "img_name,patient\nregion_0,x\nregion_1,x\nregion_2,y\n"))
    page, table = ((folder / name).read_text() for name in ("index.html", "table.md"))
    words = " ".join(page.split())
    assert "37 patches of 3 regions of 2 patients." in words
    assert "Patches of one patient are on both sides. This raises every score" in words
    assert "<code>split = region</code> keeps each patient on one side" in words
    assert "over 2 patients and, if several, trainings (intervals over fewer than 30" in words
    assert "over regions" not in words + table


def test_leaks_are_counted_and_mended_by_patient(prepared, monkeypatch):
    assert leakage.leaks(prepared, ["p0_a_0.png", "p1_a_0.png"], ["p0_b_0.png", "p0_a_1.png"]) == {
        "patients": 2,
        "patients on both sides": 1,
        "test patches": 2,
        "with a training neighbour": 1,
    }
    arms = {}
    monkeypatch.setattr(leakage, "prepare", generate_patches)
    monkeypatch.setattr(leakage, "run_arms", lambda cfg, given: arms.update(given) or {})
    cfg = leakage.LeakageConfig(**vars(prepared) | {"split": "patch"}, plan=True)
    leakage.leakage(cfg)
    for part in range(3):
        found = arms["patients apart"](cfg, part)
        trained = of_patients(image.name for image, _ in found.files)
        assert len(trained) == 4
        assert not trained & of_patients(found.test)


def test_the_choice_of_a_recipe_deals_patients(prepared):
    generate_patches(prepared)
    cfg = recipe.RecipeConfig(**vars(prepared))
    train = read_fold(cfg, 1).train  # of four patients
    for part in range(recipe.PARTS):
        found = recipe.within(train, {}, cfg, part)
        assert not of_patients(image.name for image, _ in found.files) & of_patients(found.test)
    cfg = dataclasses.replace(cfg, split="patch")
    with pytest.raises(UserError, match="split: patch, so that test patients would influence"):
        recipe.recipe(cfg)


def test_what_is_tested_is_summed_by_patient(prepared):
    names = PATCHES[:12]  # of two patients
    counts = score_networks(prepared, {}, names, "test").counts["all_background"]
    regions = dataclasses.replace(prepared, patients=None)
    of_regions = score_networks(regions, {}, names, "test").counts["all_background"]
    assert len(of_regions.regions) == 6
    owners = [region.split("_")[0] for region in of_regions.regions]
    columns = ("confusion", "iou_paper", "dice_paper", "patches")
    summed = RegionCounts.summed(owners, {name: getattr(of_regions, name) for name in columns})
    assert counts.regions == summed.regions == ["p0", "p1"]
    for column in columns:
        np.testing.assert_allclose(getattr(counts, column), getattr(summed, column))
