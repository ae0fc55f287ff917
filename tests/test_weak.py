"""weak/ from image labels to masks and scores, on a small drawn set."""

import dataclasses
import json
import shlex
import shutil

import numpy as np
import pytest
import torch

from config import UserError
from medood.data.files import read_table, write_json
from medood.data.images import read_mask
from medood.data.records import RECORD, hashes
from medood.runs.command_line import parse
from tests.conftest import as_settings_of, in_a_copy, printed_in
from tests.leaks import files_by_masks
from tests.small_weak import PLAIN_ROWS, scores_in, small, stopped_after
from weak import train_irnet
from weak.evaluate_masks import evaluate_masks, require_all
from weak.generate_images import generate_images
from weak.generate_maps import generate_maps, read_maps
from weak.generate_masks import generate_masks
from weak.image_labels import with_classes
from weak.main import MainConfig, main, steps
from weak.products import (
    CLASSIFIER,
    classifier_folder,
    fold_labels,
    image_paths,
    maps_folder,
    masks_folder,
)
from weak.scoring import ROWS
from weak.settings import MasksConfig
from weak.train_classifier import ClassifierTraining, train_classifiers
from weak.train_irnet import train_irnets
from weak.train_segmentation import made_from_of, mine, train_segmentation, weak_network

TRANSFER = ("transfer", "transfer_segmentation")
POOLED = ("tissue", "brightest", "maps", "unet")  # rows only with method = unet
MAPS = [row for row in PLAIN_ROWS if row not in TRANSFER + POOLED]  # of a run without a generator
pytestmark = pytest.mark.usefixtures("quick_report")


@pytest.fixture
def cfg(weak_run, tmp_path):
    return in_a_copy(weak_run, tmp_path / "run")


def test_the_scores_have_every_row_and_the_report_lies_beside_them(weak_run):
    of_fold = scores_in(weak_run)
    assert list(of_fold) == MAPS
    assert of_fold["all_background"]["miou"] == 0
    assert of_fold["supervised"]["miou"] is not None
    page = (weak_run.workspace / "reports" / "weak" / "index.html").read_text()
    assert all(ROWS[row] in page for row in MAPS)
    assert "drawn by a program" in page  # the sample never passes for data


def values_in_masks(cfg):
    """The values of the training masks, each a class of its label; test images: as predicted."""
    cfg = with_classes(cfg)
    labels, train, test = fold_labels(cfg, 79)
    paths, seen = image_paths(cfg, labels), set()
    logits, held = read_maps(cfg, 79, paths, "logits")
    assert (held[test] == (logits[test] > 0)).all()
    rows = read_table(maps_folder(cfg, 79) / "held.csv")
    assert {row["img_name"] for row in rows if row["split"] == "test"} == {
        paths[index].stem for index in test
    }
    for index in train:
        values = set(np.unique(read_mask(masks_folder(cfg, 79) / paths[index].name, 3)).tolist())
        classes = {1 + c for c in np.flatnonzero(labels.labels[index])}
        assert values <= ({0, 255} | classes if classes else {0})
        seen |= values
    return seen


def test_a_mask_holds_only_classes_of_the_images_label(weak_run):
    assert values_in_masks(weak_run) == {0, 1, 2, 255}


def test_a_mask_ends_at_half_of_a_walked_maps_maximum(cfg, monkeypatch):
    """On a ramp from 0 to 1: a training image is unsure around the half, a test image is not."""
    ramp = torch.linspace(0, 1, 8)
    monkeypatch.setattr("weak.generate_masks.walked_maps", lambda _, maps, __: ramp.expand_as(maps))
    shutil.rmtree(cfg.workspace / "weak" / "Pseudo_Masks")
    generate_masks(cfg)
    value = ((np.arange(32) + 0.5) / 4 - 0.5).clip(0, 7) / 7  # by column of the image
    labelled = with_classes(cfg)
    labels, train, test = fold_labels(labelled, 79)
    paths = image_paths(labelled, labels)
    _, held = read_maps(labelled, 79, paths, "logits")
    for index in [*train, *test]:
        mask = read_mask(masks_folder(cfg, 79) / paths[index].name, 3)
        if held[index].any():
            foreground, unsure = np.isin(mask, (1, 2)), mask == 255
            border = 0.6 if index in train else 0.5
            assert (foreground == (value > border)).all()
            assert (unsure == ((value > 0.4) & (value <= 0.6) & (index in train))).all()


@pytest.mark.parametrize("method", ["contrast", "unet"])
def test_no_mask_is_looked_at_before_the_test(tmp_path, method):
    cfg = dataclasses.replace(small(tmp_path, 12, method=method), outline=True)
    first, second = files_by_masks(cfg, steps, "weak")
    assert len(first) > 40  # images, maps, masks
    assert first == second


def test_a_run_with_unet_has_its_own_products_next_to_those_of_other_maps(cfg, capsys):
    learning = {"classifiers": 1, "classifier_epochs": 24, "classifier_lr": 1e-2}
    cfg = dataclasses.replace(cfg, method="unet", size=0.6, **learning)
    before = {path: path.stat().st_mtime_ns for path in cfg.workspace.glob("weak/*/79_tu*/*")}
    main(cfg)
    others = ("cam", "grad_cam_pp", "contrast", "irnet", *TRANSFER)
    assert list(scores_in(cfg)) == [row for row in PLAIN_ROWS if row not in others]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    page = (cfg.workspace / "reports" / "weak" / "index.html").read_text()
    assert ROWS["brightest"] in page
    assert classifier_folder(cfg, 79).name == "79_pooled_unet_tu-test_resnet"
    assert not list(cfg.workspace.glob("weak/*/*_unfinished"))
    assert weak_network(cfg, 79).name == "79_unet_tu-test_resnet_weak_pooled"
    assert {0, 255} < values_in_masks(cfg)
    capsys.readouterr()
    steps(dataclasses.replace(cfg, unsure=0.3))
    said = capsys.readouterr().out
    assert said.count("regenerated") == 1  # nothing before it
    assert "Masks/79_pooled_unet_tu-test_resnet: regenerated: unsure was 0.1, is 0.3" in said
    with pytest.raises(UserError, match=r"is out of date \(size was 0.6, is 0.5\)"):
        evaluate_masks(dataclasses.replace(cfg, size=0.5))
    with pytest.raises(UserError, match=r"uses no IRNet: run weak/generate_masks.py"):
        train_irnets(cfg)


@pytest.mark.parametrize("method", ["contrast", "unet"])
def test_an_interrupted_training_of_classifiers_ends_with_the_same_files(cfg, method, capsys):
    few = {"classifiers": 1, "classifier_epochs": 2, "contrast_epochs": 2}
    cfg = dataclasses.replace(cfg, method=method, **few)
    train_classifiers(cfg)
    folder = classifier_folder(cfg, 79)
    whole = hashes(folder)
    shutil.rmtree(folder)
    with stopped_after(ClassifierTraining, 1), pytest.raises(KeyboardInterrupt):
        train_classifiers(cfg)
    assert not folder.exists()
    capsys.readouterr()
    train_classifiers(cfg)
    assert "continues after epoch 1" in capsys.readouterr().out
    assert hashes(folder) == whole


@pytest.mark.parametrize(("negatives", "shuffled"), [(False, True), (True, False)])
def test_a_network_that_is_missing_is_named_with_the_command(cfg, negatives, shuffled):
    cfg = dataclasses.replace(with_classes(cfg), shuffled=shuffled)
    network = weak_network(cfg, 79, negatives)
    shutil.rmtree(network)
    again = f".*--epochs 1 .*{'--shuffled ' * shuffled}"
    with pytest.raises(UserError, match=rf"{network} is missing: run `python weak/train_.*{again}"):
        require_all(cfg)


@pytest.mark.parametrize(
    ("change", "network", "why"),
    [
        ({"pnr_opt": 0.3}, "weak", "pnr_opt was 0.65, is 0.3"),
        ({"pct_grid": (0.0, 1.0)}, "weak", "pct_grid changed"),
        ({"mirrors": True}, "weak", "mirrors changed"),
        ({"loss": "dice_ce"}, "weak_positives", "loss was dice, is dice_ce"),
    ],
)
def test_a_network_by_other_settings_is_not_tested(weak_run, change, network, why):
    """Those of the search choose the negatives of the second network."""
    with pytest.raises(UserError) as caught:
        evaluate_masks(dataclasses.replace(weak_run, **change))
    assert f"/79_unet_tu-test_resnet_{network} is out of date ({why})" in str(caught.value)


def test_negatives_that_another_network_chose_are_not_tested(cfg):
    """The first network is trained again, with the same settings, and comes out differently."""
    weights = weak_network(cfg, 79, negatives=False) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    run = json.loads((weights.parent / "run.json").read_text())
    write_json(weights.parent / "run.json", run | {"outputs": hashes(weights.parent)})
    with pytest.raises(UserError, match=r"t_weak is out of date \(first network changed\)"):
        evaluate_masks(cfg)
    train_segmentation(cfg)
    run = json.loads((weak_network(cfg, 79) / "run.json").read_text())
    assert run["made_from"] == made_from_of(with_classes(cfg), 79)
    require_all(with_classes(cfg))


def test_a_control_of_other_settings_leaves_the_table_until_it_is_trained_again(cfg, capsys):
    out = cfg.workspace / "reports" / "weak"
    (out / "80_tested.png").touch()  # of a fold that is not tested any more
    longer = dataclasses.replace(cfg, epochs=2)
    train_segmentation(longer)
    capsys.readouterr()
    evaluate_masks(longer)
    said = capsys.readouterr().out
    assert "the row of shuffled labels: skipped (" in said
    assert "weak_positives_shuffled is out of date (epochs was 1, is 2)" in said
    assert list(scores_in(cfg)) == [row for row in MAPS if row != "shuffled_labels"]
    assert {path.name for path in out.glob("*.png")} == {"79_pseudo_masks.png", "79_tested.png"}
    (line,) = (line for line in said.splitlines() if ": skipped (" in line)
    _, _, *arguments = shlex.split(printed_in(line))
    train_segmentation(parse(MasksConfig(), arguments))
    require_all(dataclasses.replace(with_classes(longer), shuffled=True))


def test_a_control_that_learned_nothing_finds_nothing(cfg, monkeypatch):
    """Also where an old network of it is still there: in one fold, or in all of them."""
    monkeypatch.setattr("weak.evaluate_masks.has_masks", lambda cfg, fold: not cfg.shuffled)
    evaluate_masks(cfg)
    found = scores_in(cfg)
    assert found["shuffled_labels"] == found["all_background"]


def test_a_label_that_changes_makes_the_classifier_stale(cfg):
    labels, train, test = fold_labels(cfg, 79)
    text = cfg.image_labels.read_text()

    def flip(index):
        start = f"{labels.names[index]},{labels.patients[index]},"
        (row,) = (line for line in text.splitlines() if line.startswith(start))
        changed = start + row.removeprefix(start).translate(str.maketrans("01", "10"))
        cfg.image_labels.write_text(text.replace(row, changed))

    flip(test[0])  # of an image that only tests: its label is not looked at
    generate_maps(cfg)
    flip(train[0])
    with pytest.raises(UserError, match=r"is out of date \(image labels changed\)"):
        generate_maps(cfg)


def test_the_control_learns_from_labels_dealt_at_random(weak_run):
    control = dataclasses.replace(weak_run, shuffled=True)
    own, train, _ = fold_labels(weak_run, 79)
    dealt, _, _ = fold_labels(control, 79)
    assert (own.labels != dealt.labels).any()
    assert sorted(map(tuple, own.labels[train])) == sorted(map(tuple, dealt.labels[train]))


def test_the_control_goes_on_where_nothing_was_learned(cfg, monkeypatch):
    monkeypatch.setattr(train_irnet, "confident_labels", lambda _, maps, *__: maps[:, 0].byte() * 0)
    shutil.rmtree(cfg.workspace / "weak" / "irnet")
    with pytest.raises(UserError, match="no pixel sure to be a class"):
        train_irnets(cfg)
    train_irnets(dataclasses.replace(cfg, shuffled=True))


def test_without_masks_it_stops_before_the_test(cfg, capsys):
    control = dataclasses.replace(cfg, shuffled=True)
    shutil.rmtree(weak_network(control, 79))
    main(dataclasses.replace(cfg, masks=None))
    assert "predict.py can use the networks" in capsys.readouterr().out
    assert not weak_network(control, 79).exists()
    for own, problem in (({"masks": None}, "masks = None"), ({"shuffled": True}, "shuffled = T")):
        with pytest.raises(UserError, match=problem):
            evaluate_masks(dataclasses.replace(cfg, **own))


@pytest.mark.parametrize(("method", "once"), [("cam", "output_stride"), ("unet", "pooling")])
def test_records_keep_what_was_a_setting_once_so_that_old_products_are_current(
    weak_run, method, once
):
    settings = CLASSIFIER.made_from(dataclasses.replace(weak_run, method=method), 79)["settings"]
    assert settings[once] == {"output_stride": 8, "pooling": "top"}[once]


def test_patches_cut_with_pixel_masks_are_refused(patched):
    cfg = as_settings_of(MainConfig, patched, images=patched.workspace / "OoD_Patchs")
    with pytest.raises(UserError, match="were cut with pixel masks"):
        generate_images(cfg)


def test_without_images_that_hold_no_class_there_is_nothing_to_contrast_with(cfg, capsys):
    cfg = dataclasses.replace(cfg, masks=None, classifier_epochs=1)
    rows = cfg.image_labels.read_text().splitlines()
    cfg.image_labels.write_text("\n".join(row for row in rows if not row.endswith(",0,0")) + "\n")
    shutil.rmtree(cfg.workspace / "weak")
    generate_images(cfg)
    with pytest.raises(UserError, match="fold 79 has a class, .*: set method to cam"):
        train_classifiers(cfg)
    cfg = dataclasses.replace(cfg, method="cam")
    train_classifiers(cfg)
    assert mine(cfg, 79, weak_network(cfg, 79), positives=[], negatives=[]) == []
    assert "there is no negative to mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damaged", "again", "step"),
    [
        ("classifier/79_tu-test_resnet/plain_1.safetensors", "maps", generate_maps),
        ("maps/79_tu-test_resnet/*.npz", "irnet", train_irnets),
    ],
)
def test_a_damaged_file_is_named_with_the_cure(cfg, damaged, again, step):
    for path in (cfg.workspace / "weak").glob(damaged):
        path.write_bytes(path.read_bytes()[:100])
    shutil.rmtree(cfg.workspace / "weak" / again)
    folder = path.parent
    with pytest.raises(UserError, match=f"{folder} was changed, or damaged, since it was gen"):
        step(cfg)
    (folder / RECORD).unlink()  # the user's own now
    with pytest.raises(UserError, match=r" cannot be read \(.*\): remove .* regenerated"):
        step(cfg)


def test_masks_that_are_not_there_are_missed_before_any_work(cfg):
    shutil.rmtree(cfg.workspace / "weak")
    with pytest.raises(UserError, match="masks = .*nowhere: name the folder of true"):
        main(dataclasses.replace(cfg, masks=cfg.workspace / "nowhere"))
    assert not (cfg.workspace / "weak").exists()
