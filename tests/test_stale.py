"""Stale, foreign and damaged things in a workspace: seen by every step behind them, and said."""

import dataclasses
import shutil

import numpy as np
import pytest

from config import UserError
from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels
from generate_unfiltered_oods import generate_unfiltered_oods
from medood.check import check
from medood.data.files import csv_text, write_text
from medood.data.images import read_image, write_png
from medood.data.ood_set import columns, read_hard_oods
from medood.data.records import RECORD
from medood.data.workspace import model_folder, ranking_path
from medood.runs.products import FOLD, OOD_PATCHES, PATCH_MASKS, PATCHES
from medood.runs.provenance import require, survey
from tests.test_check import name_all
from train import train
from train_ood import train_ood


def test_a_changed_source_is_seen_by_the_steps_behind_it_and_the_reason_is_said(patched, capsys):
    cfg = dataclasses.replace(patched, folds=(1,), epochs=1)
    train(cfg)
    image = cfg.workspace / "Lizard_Images" / "region_0.png"
    write_png(image, read_image(image)[:, ::-1])
    with pytest.raises(UserError, match="Image_Patchs is out of date .its inputs changed"):
        train(cfg)
    generate_patches(cfg)
    assert "Image_Patchs: regenerated: its inputs changed" in capsys.readouterr().out
    train(cfg)
    assert "1_unet_tu-test_resnet: regenerated: its inputs changed" in capsys.readouterr().out
    label = cfg.workspace / "Labels" / "region_0.mat"
    name_all(label, 2)
    with pytest.raises(UserError, match="Semantic_Labels is out of date"):
        generate_patches(cfg)
    generate_semantic_labels(cfg)
    assert "Semantic_Labels: regenerated: its inputs changed" in capsys.readouterr().out


def test_what_other_settings_made_is_not_trained_on(report):
    for change, said in (
        ({"patch_size": 64}, r"Image_Patchs is out of date .patch_size was 32, is 64.*patches.py"),
        ({"split": "region"}, "Image_Patchs.csv is out of date .split was patch, is region.*es.py"),
        ({"seed": 4}, "1Image_Patchs.csv is out of date .seed was 0, is 4.*generate_patches.py"),
        ({"ood_fill": "mean"}, "OoD_Patchs is out of date .ood_fill was zero, is mean.*oods.py"),
        ({"pnr_opt": 0.8}, "pnr_opt was 0.65, is 0.8.*estimate_pct.py .*--folds 1"),
        ({"epochs": 3}, "is out of date .epochs was 2, is 3.*train.py"),
    ):
        with pytest.raises(UserError, match=said):
            train_ood(dataclasses.replace(report[0], **change))


def test_patches_whose_sources_are_gone_are_used_as_they_are(patched, capsys):
    for folder in ("Lizard_Images", "Labels"):
        shutil.rmtree(patched.workspace / folder)
        generate_patches(patched)
        generate_unfiltered_oods(patched)
        assert "regenerated" not in capsys.readouterr().out
        require(patched, PATCHES, PATCH_MASKS, FOLD, OOD_PATCHES)
        assert {said for _, said in survey(patched).values()} == {"kept"}


def test_an_image_without_a_label_is_seen_when_it_comes_and_forgotten_when_it_goes(one_fold):
    cfg = one_fold
    lone = cfg.workspace / "Lizard_Images" / "lone.png"
    write_png(lone, np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(UserError, match="Image_Patchs is out of date .left out"):
        require(cfg, PATCHES)
    with pytest.raises(UserError, match="lone.png has no label of the same name"):
        generate_patches(cfg)
    generate_patches(dataclasses.replace(cfg, skip_bad_files=True))
    lone.unlink()
    generate_patches(cfg)
    require(cfg, PATCHES)


def test_own_networks_are_not_overwritten_and_own_ood_patches_that_lack_some_found(one_trained):
    folder = model_folder(one_trained, 1, ood=False)
    (folder / "run.json").unlink()
    with pytest.raises(UserError, match="is user-supplied: remove it to have it trained"):
        train(one_trained)
    assert (folder / "model.safetensors").exists()
    folder = one_trained.workspace / "OoD_Patchs"
    (folder / RECORD).unlink()
    (folder / "region_0_3.png").unlink()
    with pytest.raises(UserError, match=r"lacks 1 patches, such as region_0_3.png"):
        generate_unfiltered_oods(one_trained)


def test_a_table_that_is_gone_does_not_undo_its_lists(tiny):
    rows = "".join(f"region_{n},drawn,{n + 1}\n" for n in range(3))
    (tiny.workspace / "info.csv").write_text("FileName,Source,Split\n" + rows)
    cfg = dataclasses.replace(tiny, split="official")
    generate_semantic_labels(cfg)
    generate_patches(cfg)
    (tiny.workspace / "info.csv").unlink()
    require(cfg, PATCHES, PATCH_MASKS, FOLD)
    generate_patches(cfg)
    assert check(cfg).stops == []


def test_names_in_tables_do_not_reach_outside_the_workspace(one_fold):
    path = ranking_path(one_fold, 1)
    write_png(one_fold.workspace.parent / "secret.png", np.zeros((32, 32, 3), np.uint8))
    rows = [[1, "../../secret.png", 0.5, 1, *[1, 0, 0, 0, 0, 0], 1]]
    write_text(path, csv_text(columns(one_fold), rows))
    with pytest.raises(UserError, match=r"ranks ../../secret.png, which is not an OoD patch"):
        read_hard_oods(one_fold, 1)
    path.write_text("a,b\n")
    with pytest.raises(UserError, match="lacks columns of rank"):
        read_hard_oods(one_fold, 1)
