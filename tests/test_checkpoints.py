"""Networks on disk: tested where they have not been trained, compared, kept with what they are."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from config import UserError
from medood.data.workspace import model_folder
from medood.models.checkpoints import has_seen, with_settings_of
from test import evaluate
from tests.conftest import TINY
from train import train


@pytest.fixture
def scores_only(monkeypatch):
    """Draw no report."""
    monkeypatch.setattr("medood.evaluation.report.write_report", lambda *_: None)


@pytest.mark.parametrize("is_file", [False, True])
def test_one_checkpoint_is_tested_as_main_tests_it_on_its_own_fold_only(
    report, scores_only, tmp_path, capsys, is_file
):
    cfg, out = report
    path = model_folder(cfg, 2, ood=False)
    if is_file:  # of weights alone: it does not say what it was trained on
        torch.save(load_file(path / "model.safetensors"), tmp_path / "weights.pth")
        path, cfg = tmp_path / "weights.pth", dataclasses.replace(cfg, folds=(2,))
    evaluate(cfg, (path,))
    found = cfg.workspace / "reports/checkpoints" / path.name / "scores.json"
    alone, both = (json.loads(p.read_text()) for p in (found, out / "scores.json"))
    assert list(alone) == ["2"]  # fold 1 tests patches that this network was trained on
    scores = both["2"]["baseline"].items()  # and those that depend on the other network
    assert alone["2"][path.name] == {n: v for n, v in scores if not n.endswith("_matched")}
    assert ("has no list of its training patches" in capsys.readouterr().out) == is_file


def test_two_checkpoints_of_a_fold_are_compared_as_main_compares_them(report, quick_report):
    cfg, out = report
    cfg = dataclasses.replace(cfg, folds=(2,))
    evaluate(cfg)
    expected = json.loads((out / "differences.json").read_text())
    folders = model_folder(cfg, 2, ood=False), model_folder(cfg, 2, ood=True)
    evaluate(cfg, folders)
    compared = cfg.workspace / "reports/checkpoints" / f"{folders[0].name}_vs_{folders[1].name}"
    assert json.loads((compared / "differences.json").read_text()) == expected
    assert (compared / "index.html").exists()


def test_checkpoints_that_cannot_be_tested_together_are_said(ran):
    one, two = (model_folder(ran, fold, ood=False) for fold in (1, 2))
    for given, message in (
        ((one, two), "every fold tests patches that"),
        ((one, two, one), "3 checkpoints: give one, or two"),
        ((one, one.parent / ".." / "models" / one.name), "is named twice: give two networks"),
        ((one, one / "gone"), "gone does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(ran, given)


def test_a_network_of_other_patches_has_seen_every_patch_of_its_regions(ran, scores_only):
    folder = model_folder(ran, 2, ood=False)
    run = (folder / "run.json").read_text().replace('"patch_size": 32', '"patch_size": 64')
    (folder / "run.json").write_text(run)
    assert not has_seen(folder, ["region_9_0.png"], 32)
    assert has_seen(folder, ["region_0_99.png"], 32)  # no such patch, but of a region it has seen
    with pytest.raises(UserError, match="every fold tests patches that"):
        evaluate(ran, (folder,))


def test_two_networks_from_elsewhere_are_one_training_each_on_every_fold_and_stay_as_they_were(
    ran, quick_report, tmp_path
):
    folders = tmp_path / "elsewhere", tmp_path / "ood"  # the name of a network of a fold
    for folder, ood in zip(folders, (False, True), strict=True):
        shutil.copytree(model_folder(ran, 1, ood), folder)
        (folder / "trained_on.txt").write_text("another_region_0.png\n")
    rows = (folder / "log.csv").read_text().splitlines()  # trained in another way
    log = [f"{rows[0]},val_miou", *(f"{row},0.5" for row in rows[1:])]
    (folder / "log.csv").write_text("\n".join(log))
    before = [path.read_bytes() for folder in folders for path in sorted(folder.iterdir())]
    evaluate(ran, folders)
    after = [path.read_bytes() for folder in folders for path in sorted(folder.iterdir())]
    assert after == before
    out = ran.workspace / "reports/checkpoints/elsewhere_vs_ood"
    assert list(json.loads((out / "scores.json").read_text())) == ["1", "2"]
    page = (out / "index.html").read_text()
    assert "One training of each" in page
    assert "more optimiser steps than elsewhere" in page


def test_a_corrected_scale_or_colour_reaches_a_network_that_is_kept(ran, capsys):
    recoloured = (("neutrophil", "#000000"), *ran.classes[1:])
    train(dataclasses.replace(ran, mpp=0.25, classes=recoloured))
    assert "kept" in capsys.readouterr().out
    known = with_settings_of(ran, model_folder(ran, 1, ood=False))
    assert (known.mpp, known.classes) == (0.25, recoloured)
    assert "`#000000`" in (model_folder(ran, 1, ood=False) / "README.md").read_text()


@pytest.mark.parametrize("content", ["null", '{"classes": 3}', '{"mpp": "x"}'])
def test_a_broken_run_json_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(f'{{"settings": {content}}}')
    with pytest.raises(UserError, match=r"run\.json.* (remove it|copy it)"):
        with_settings_of(TINY, tmp_path)


def test_a_network_for_other_classes_is_refused(ran):
    folder = model_folder(ran, 2, ood=False)
    renamed = (("cell", "#000000"), *ran.classes[1:])
    for classes in (renamed, ran.classes[:2]):
        with pytest.raises(UserError, match="set classes to the|Semantic_Labels is out of date"):
            evaluate(dataclasses.replace(ran, classes=classes), (folder,))
