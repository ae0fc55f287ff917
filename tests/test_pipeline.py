"""All steps in a row, as a user runs them: from raw data, from prepared patches, and twice."""

import dataclasses
import itertools
import json
import re
import shutil

import numpy as np
import pytest

from config import UserError
from estimate_pct import estimate_pct
from generate_patches import generate_patches
from main import main
from medood import sample
from medood.check import check
from medood.data.files import digest, read_table
from medood.data.folds import read_fold
from medood.data.images import write_png
from medood.data.ood_set import read_estimate, read_hard_oods
from medood.data.records import RECORD
from medood.data.workspace import fold_path, model_folder, ranking_path
from rank_prune_ood import rank_prune_ood
from test import evaluate
from tests.conftest import TINY, write_region
from train import train
from train_ood import train_ood

OWN = ["ap", "auroc", "miou", "dsc", "miou_paper", "dsc_paper"]
OWN += ["fg_to_bg", "bg_to_fg", "fg_to_fg"]
NAMES = [*OWN, "bg_to_fg_matched", "fg_to_bg_matched"]


def test_main_goes_from_raw_data_to_scores_of_both_and_again_keeps_everything(report, capsys):
    cfg, out = report
    scores = json.loads((out / "scores.json").read_text())
    assert list(scores) == ["1", "2"]
    for fold in scores.values():
        assert set(fold) == {"baseline", "ood", "all_background"}
        for network in fold.values():
            assert set(network) >= {*NAMES, "iou", "dice", "confusion"}
            assert len(network["iou"]) == len(network["dice"]) == 7
        # every network is judged on the same pixels
        assert len({np.sum(network["confusion"]) for network in fold.values()}) == 1
    gains = json.loads((out / "differences.json").read_text())
    for name in NAMES:
        expected = np.mean([fold["ood"][name] - fold["baseline"][name] for fold in scores.values()])
        assert gains[name]["mean"] == pytest.approx(expected)
        assert gains[name]["low"] <= gains[name]["mean"] <= gains[name]["high"]
    table = (out / "table.md").read_text()
    assert all(f"`{name}`" in table for name in NAMES)
    assert all(word in table for word in ("all background", "Med-OoD", "pnr", "pct", "IoU plasma"))
    assert (out / "examples.png").read_bytes().startswith(b"\x89PNG")

    files = [path for path in cfg.workspace.rglob("*") if path.is_file()]
    before = {path: digest(path.read_bytes()) for path in files}
    capsys.readouterr()
    main(cfg)
    assert "epoch" not in capsys.readouterr().out  # nothing is trained again
    files = [path for path in cfg.workspace.rglob("*") if path.is_file()]
    assert {path: digest(path.read_bytes()) for path in files} == before


def test_files_of_the_ood_set_fit_together(ran):
    for fold in ran.folds:
        rows = read_table(ranking_path(ran, fold))
        train_names = read_fold(ran, fold).train
        assert sorted(row["img_name"] for row in rows) == sorted(train_names)
        estimate, kept = read_estimate(ran, fold), read_hard_oods(ran, fold)
        assert estimate["available"] == len(kept) > 0
        run = json.loads((model_folder(ran, fold, ood=True) / "run.json").read_text())
        assert run["ood_patches"] == estimate["ood_patches"] == round(estimate["pct"] * len(kept))
        assert run["id_patches"] == len(train_names)
        assert set(run["scores"]) >= set(NAMES)


def test_a_ranking_or_estimate_of_an_older_baseline_is_not_used(ran):
    ran = dataclasses.replace(ran, epochs=1, folds=(1,))
    train(ran)
    with pytest.raises(UserError, match=r"run `python rank_prune_ood.py .*--folds 1 .*` first"):
        train_ood(ran)
    rank_prune_ood(ran)
    with pytest.raises(UserError, match=r"run `python estimate_pct.py .*--folds 1 .*` first"):
        train_ood(ran)


def test_the_baseline_can_be_tested_before_med_ood_is_trained(report, quick_report):
    cfg, out = report
    for fold in cfg.folds:
        shutil.rmtree(model_folder(cfg, fold, ood=True))
    (cfg.workspace / sample.SAMPLE_MARK).touch()
    assert (out / "differences.svg").exists()
    assert "drawn by a program" not in (out / "index.html").read_text()
    evaluate(cfg)
    assert not (out / "differences.svg").exists()  # of two networks
    assert "drawn by a program" in (out / "index.html").read_text()
    scores = json.loads((out / "scores.json").read_text())
    assert set(scores["1"]) == {"baseline", "all_background"}


def test_the_sample_is_drawn_once_and_a_kill_leaves_none_unmarked(tmp_path, capsys, monkeypatch):
    cfg = dataclasses.replace(TINY, workspace=tmp_path)
    monkeypatch.setattr(sample, "REGIONS", 2)
    with monkeypatch.context() as patch:
        patch.setattr(sample, "write_png", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sample.draw_sample(cfg)
    assert "not Lizard" in (tmp_path / "SAMPLE.txt").read_text()
    assert list(tmp_path.rglob("*.png")) == []
    sample.draw_sample(cfg)
    assert "2 regions drawn" in capsys.readouterr().out
    sample.draw_sample(cfg)
    assert "kept, drawn before" in capsys.readouterr().out


def test_no_data_is_said_with_what_belongs_where_and_no_sample_is_drawn(run_script, tmp_path):
    done = run_script("main.py", "--workspace", tmp_path / "nothing")
    assert done.returncode == 1
    for word in ("Lizard_Images1", "Lizard_Labels/Labels", "Image_Patchs", "main.py --sample"):
        assert word in done.stderr
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("generate_semantic_labels.py", "no .mat file in"),
        ("generate_patches.py", "no data in"),
        ("generate_unfiltered_oods.py", "run `python generate_patches.py --workspace {}` first"),
        ("train.py", "run `python generate_patches.py --workspace {} --patch_size 64` first"),
        ("rank_prune_ood.py", "run `python generate_patches.py --workspace {} --folds 79` first"),
        ("estimate_pct.py", "run `python generate_patches.py --workspace {}` first"),
        ("train_ood.py", "run `python generate_patches.py --workspace {}` first"),
        ("test.py", "run `python generate_patches.py --workspace {}` first"),
    ],
)
def test_a_step_without_its_input_names_the_command_that_makes_it(
    run_script, tmp_path, script, said
):
    nothing = tmp_path / "nothing"
    options = re.findall(r"(--(?:folds|patch_size)) (\d+)", said)
    done = run_script(script, "--workspace", nothing, *itertools.chain(*options))
    assert done.returncode == 1
    assert said.format(nothing) in done.stderr  # with the options that the user gave
    assert ("run" in said) == ("is empty, or its name is misspelled" in done.stderr)
    assert done.stderr.count("\n") == 1  # one sentence
    assert not (tmp_path / "nothing").exists()


def test_skipped_files_are_left_out_to_the_end_and_the_report_says_which(tiny, quick_report):
    (tiny.workspace / "Labels" / "region_1.mat").write_bytes(b"not a label")
    write_region(tiny.workspace, "region_3", 64, 96, seed=3)
    image = tiny.workspace / "Lizard_Images" / "region_3.png"
    image.write_bytes(image.read_bytes()[:-20])
    cfg = dataclasses.replace(tiny, folds=(1,), epochs=1)
    with pytest.raises(UserError, match=r"(?s)region_1\.mat.*region_3\.png"):
        main(cfg)
    assert not (cfg.workspace / "models").exists()
    main(dataclasses.replace(cfg, skip_bad_files=True))
    fold = read_fold(cfg, 1)
    assert {name[:8] for name in fold.train + fold.test} == {"region_0", "region_2"}
    report = (cfg.workspace / "reports/unet_tu-test_resnet/index.html").read_text()
    assert "region_1.mat is not a readable .mat file" in report
    assert "region_3.png is not a complete image file" in report


def test_prepared_patches_are_enough_and_bad_ones_are_named(one_fold):
    cfg = one_fold
    for folder in ("Lizard_Images", "Labels", "Semantic_Labels"):
        shutil.rmtree(cfg.workspace / folder)
    for folder in ("Image_Patchs", "Mask_Patchs"):
        (cfg.workspace / folder / RECORD).unlink()
    fold_path(cfg.workspace, 1).with_suffix(".json").unlink()
    lists = fold_path(cfg.workspace, 1).read_bytes()
    generate_patches(cfg)
    assert fold_path(cfg.workspace, 1).read_bytes() == lists
    bad = read_fold(cfg, 1).train[:2] + read_fold(cfg, 1).test[:2]
    (cfg.workspace / "Image_Patchs" / bad[0]).write_bytes(b"")
    write_png(cfg.workspace / "Mask_Patchs" / bad[1], np.full((32, 32), 9, np.uint8))
    write_png(cfg.workspace / "Mask_Patchs" / bad[2], np.zeros((31, 32), np.uint8))
    (cfg.workspace / "Mask_Patchs" / bad[3]).unlink()
    with pytest.raises(UserError, match="4 files cannot be used: correct them, or rem") as caught:
        generate_patches(cfg)
    assert [str(caught.value)] == check(cfg).stops
    said_of = zip(bad, ("not a compl", "not a class", "32 x 31 pix", "missing"), strict=True)
    assert all(f"{name} is {said}" in str(caught.value) for name, said in said_of)


def test_a_wrong_encoder_stops_main_before_anything_is_made(tiny):
    with pytest.raises(UserError, match="vgg11_bn"):
        main(dataclasses.replace(tiny, encoder="vgg11bn"))
    assert not (tiny.workspace / "Semantic_Labels").exists()


def test_a_step_out_of_order_names_the_one_before(one_fold):
    before = {rank_prune_ood: "train", estimate_pct: "rank_prune_ood", evaluate: "train"}
    for step, missing in (before | {train_ood: "rank_prune_ood"}).items():
        with pytest.raises(UserError, match=f"run `python {missing}.py .*--folds 1 .*` first"):
            step(one_fold)
