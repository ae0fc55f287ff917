"""Leakage: patches of one region on both sides of a list are counted, and what they gain."""

import dataclasses
import shutil

import pytest

from config import UserError
from generate_patches import generate_patches
from medood.data.patients import region_of
from studies import common, leakage
from tests.conftest import TINY, write_region
from tests.test_studies import NETWORK, SETTINGS, settings, written


def test_leaks_by_hand():
    train = ["a_0.png", "a_01.png", "a_4.png", "b_1_0.png"]
    test = ["a_2.png", "a_3.png", "a_9.png", "c_0.png"]
    assert leakage.leaks(TINY, train, test) == {
        "regions": 3,
        "regions on both sides": 1,
        "test patches": 4,
        "with a training neighbour": 2,  # a_2 beside a_01, a_3 beside a_4
    }
    for name in ("0001.png", "a_b.png"):
        with pytest.raises(UserError, match="not named <region>_<number>"):
            leakage.leaks(TINY, ["a_0.png"], [name])


def test_no_region_of_a_test_patch_trains_once_regions_are_apart(tmp_path, monkeypatch):
    for seed in range(4):
        write_region(tmp_path, f"region_{seed}", 96, 96, seed)
    trained = []
    real = common.train_fold

    def spy(cfg, fold, files, *rest):
        trained.append({region_of(image.name) for image, _ in files})
        real(cfg, fold, files, *rest)

    monkeypatch.setattr(common, "train_fold", spy)
    leakage.leakage(settings(leakage.LeakageConfig, tmp_path, seeds=1))
    content = written(tmp_path, "leakage")
    assert {row["arm"] for row in content["rows"]} == {"lists as they are", "regions apart"}
    tables = (tmp_path / f"reports/studies/leakage_{NETWORK}.md").read_text()
    assert "regions on both sides" in tables
    (gains,) = content["differences"].values()  # of all parts as one test, on the same patches
    assert gains["miou"]["mean"] is not None
    # of four regions, two parts hold one and one holds two: that many are kept from training
    assert sorted(len(regions) for regions in trained[-3:]) == [2, 3, 3]


def test_leakage_judges_lists_from_elsewhere(patched, tmp_path, capsys):
    generate_patches(dataclasses.replace(patched, split="region"))
    folder = shutil.copytree(patched.workspace / "k_folds", tmp_path / "lists")
    changed = {"workspace": patched.workspace, "k_folds": folder, "plan": True}
    leakage.leakage(leakage.LeakageConfig(**(SETTINGS | changed)))
    said = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in said.splitlines() if line.startswith("|    1 |")]
    assert [int(cell) for cell in rows[0]][:3] == [1, 3, 0]  # list, regions, on both sides
    with pytest.raises(UserError, match="no <fold>Image_Patchs.csv in"):
        leakage.leakage(leakage.LeakageConfig(**(SETTINGS | changed | {"k_folds": tmp_path})))
