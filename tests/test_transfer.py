"""weak/ by transfer, from image labels to masks, a network and scores: a rule stands in for it.

The lesions are the tinted ellipses of the sample: the generator that stands in here finds them by
their hue, so that every step after it can be checked to the pixel.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from config import UserError
from medood.data.images import read_image, read_mask
from tests.conftest import in_a_copy, moved, printed_in
from tests.leaks import files_by_masks
from tests.small_weak import POOLED, few_pictures, small
from weak import transfer as training
from weak.evaluate_masks import by_maps, by_trainings, evaluate_masks, is_shown
from weak.generate_masks import generate_masks
from weak.healthy import HEAT, MASK, read_levels
from weak.image_labels import with_lesion
from weak.main import main, steps
from weak.products import (
    domains,
    generator_folder,
    healthy_folder,
    masks_folder,
    paths_to_test,
)
from weak.report import median_training
from weak.scoring import ROWS, TRAINED, of_training
from weak.train_segmentation import train_segmentation, weak_network


def hue(images):
    """How far red, green and blue of a pixel lie apart."""
    return (images.amax(-1).int() - images.amin(-1).int()).float()


def knowing_hues(generator, images, device):
    """Take the hue out of images: what `transfer` does, by a rule; a little worse per training."""
    mask = (hue(images) > 30).float() * 0.9 + 0.02
    mask[:, : int(generator)] = 0.02  # a training that misses the upper rows
    grey = images.float().mean(-1, keepdim=True).expand(-1, -1, -1, 3)
    healthy = torch.where(mask[..., None] > 0.5, grey, images.float()).round().byte()
    return healthy, mask, mask / mask.amax((1, 2), keepdim=True)


@pytest.fixture(scope="module")
def stand_in():
    """Let a rule stand in for the generator. Its weights are how many rows a training misses."""

    def train(cfg, fold, diseased, healthy, folder, made_from):
        assert len(diseased)
        assert len(healthy)
        folder.mkdir(parents=True)
        (folder / "generator.safetensors").write_bytes(bytes([6 * cfg.seed]))

    def load(cfg, folder, device):
        return (folder / "generator.safetensors").read_bytes()[0]

    with few_pictures(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_transfer", train)
        patch.setattr(training, "load_generator", load)
        patch.setattr(training, "transfer", knowing_hues)
        yield


def small_transfer(workspace, images=18):
    return small(workspace, images, method="transfer", lesion="tinted", trainings=3)


@pytest.fixture(scope="module")
def made(made_once, stand_in, weak_run):
    """A workspace after a whole run by transfer, in which one by maps had come before."""

    cfg = dataclasses.replace(weak_run, method="transfer", lesion="tinted", trainings=3)
    folder = made_once("transfer", lambda folder: main(in_a_copy(cfg, folder / "run")))
    return moved(cfg, folder / "run")


@pytest.fixture
def cfg(made, tmp_path):
    return in_a_copy(made, tmp_path / "run")


# ---------------------------------------------------------------- masks


def test_a_mask_is_what_had_to_change_and_a_healthy_image_lacks_it(made):
    cfg = with_lesion(made)
    diseased, healthy = domains(cfg, 79)
    for path in diseased + paths_to_test(cfg, 79):
        image = torch.from_numpy(read_image(path))
        mask = read_mask(masks_folder(cfg, 79) / path.name, 2)
        assert (mask == (hue(image) > 30).numpy()).all()
        after = read_image(healthy_folder(cfg, 79) / path.name)
        assert (after[mask == 0] == image.numpy()[mask == 0]).all()
        assert not np.ptp(after[mask == 1], axis=-1).any()
    for path in healthy:
        assert not read_mask(masks_folder(cfg, 79) / path.name, 2).any()


def test_the_pictures_and_arrays_lie_beside_the_healthy_images(made):
    cfg = with_lesion(made)
    diseased, _ = domains(cfg, 79)
    assert read_levels(cfg, 79, diseased, MASK).dtype == torch.uint8
    heat = read_levels(cfg, 79, diseased, HEAT)
    assert heat.shape == (len(diseased), 32, 32)
    assert heat.max() == 1
    assert (healthy_folder(cfg, 79) / "sheet" / "healthy.png").exists()


def test_a_mask_that_contradicts_its_label_is_unsure(tmp_path, stand_in, monkeypatch, capsys):
    def blind_to_one(generator, images, device):
        healthy, mask, heat = knowing_hues(generator, images, device)
        mask[0] = torch.arange(32) / 1000  # the first training image with the lesion
        return healthy, mask, heat

    monkeypatch.setattr(training, "transfer", blind_to_one)
    cfg = with_lesion(small_transfer(tmp_path, 18))
    steps(cfg)
    diseased, _ = domains(cfg, 79)
    assert (read_mask(masks_folder(cfg, 79) / diseased[0].name, 2) == 255).all()
    assert f"nothing found in 1 of {len(diseased)} training images" in capsys.readouterr().out


# ---------------------------------------------------------------- scores


def report_of(cfg):
    return cfg.workspace / "reports" / "weak" / "tinted"


def scores_in(cfg):
    """The scores of every row of the one fold."""
    (of_fold,) = json.loads((report_of(cfg) / "scores.json").read_text()).values()
    return of_fold


def test_methods_of_one_workspace_stand_side_by_side(made):
    of_fold = scores_in(made)
    shown = [row for row in ROWS if row not in POOLED]
    assert list(of_fold) == shown
    assert of_fold["all_background"]["miou"] == 0
    assert of_fold["transfer"]["miou"] > 0.8
    assert len(of_fold["irnet"]["iou"]) == 2  # of the lesion alone
    page = (report_of(made) / "index.html").read_text()
    for row in (ROWS[row] for row in shown):
        assert row in page
    assert "refined less transfer" in (report_of(made) / "table.md").read_text()
    of_all = json.loads((report_of(made).parent / "scores.json").read_text())["79"]
    assert len(of_all["irnet"]["iou"]) == 3  # what the run by maps found before


def test_trainings_share_their_images_and_nothing_else(made):
    cfg = with_lesion(made)
    every = by_trainings(cfg)
    for kind in (generator_folder, healthy_folder, masks_folder, weak_network):
        folders = {kind(training, 79) for training in every}
        assert len(folders) == 3
        assert all(folder.is_dir() for folder in folders)
    assert all(domains(training, 79) == domains(cfg, 79) for training in every)


def test_the_tables_show_the_median_training(made):
    """The three miss 0, 6 and 12 rows of 32."""
    out, shown = report_of(made), scores_in(made)
    every = json.loads((out / "trainings.json").read_text())["79"]["scores"]
    by_training = [every[of_training("transfer", n)]["miou"] for n in range(3)]
    assert by_training[0] > by_training[1] > by_training[2]
    for row in TRAINED:
        assert shown[row] == every[of_training(row, 1)]
    assert "| 2 (shown) |" in (out / "table.md").read_text()


@pytest.mark.parametrize(
    ("found", "median"), [([0.3], 0), ([0.1, 0.9, 0.5], 2), ([0.9, 0.1], 1), ([None, 0.2, 0.4], 1)]
)
def test_the_median_of_an_even_number_is_the_worse_of_the_middle_two(found, median):
    scores = {79: {of_training("transfer", n): {"miou": value} for n, value in enumerate(found)}}
    assert median_training(scores, len(found)) == median


def test_the_area_on_healthy_images_is_told(made):
    path = report_of(made) / "trainings.json"
    area = json.loads(path.read_text())["79"]["area_on_healthy"]
    assert area["all_background"] == area["transfer 0"] == 0
    assert area["refined 0"] > 0


@pytest.mark.parametrize("change", ["settings", "labels"])
def test_maps_that_are_not_current_are_not_shown(cfg, change, capsys):
    if change == "settings":
        cfg = dataclasses.replace(cfg, unsure=0.3)
    else:  # of an image that trains the classifier alone
        text = cfg.image_labels.read_text()
        diseased, _ = domains(with_lesion(cfg), 79)
        line = next(line for line in text.splitlines() if line.startswith(diseased[0].name))
        name, patient, striped, tinted = line.split(",")
        changed = ",".join([name, patient, str(1 - int(striped)), tinted])
        cfg.image_labels.write_text(text.replace(line, changed))
    assert not is_shown("the rows of maps", [by_maps(with_lesion(cfg))])
    assert "the rows of maps: skipped (" in capsys.readouterr().out


def test_maps_that_are_missing_are_no_rows(cfg, capsys):
    shutil.rmtree(cfg.workspace / "weak" / "maps")
    evaluate_masks(cfg)
    assert "the rows of maps: skipped (" in capsys.readouterr().out
    own = ("all_background", "threshold", *TRAINED, "supervised")
    assert list(scores_in(cfg)) == list(own)


def test_trainings_without_masks_are_not_shown_beside_maps(cfg, capsys):
    trainings = by_trainings(with_lesion(cfg))
    shutil.rmtree(masks_folder(trainings[1], 79))
    assert is_shown("the rows", trainings[:1])
    assert not is_shown("the rows", trainings)
    assert "the rows: skipped (" in capsys.readouterr().out


def test_a_network_of_other_settings_is_not_tested(cfg):
    longer = dataclasses.replace(cfg, epochs=2, loss="dice_ce")
    with pytest.raises(UserError, match="weak_transfer_tinted is out of date") as caught:
        evaluate_masks(longer)
    assert "epochs was 1, is 2, loss was dice, is dice_ce" in str(caught.value)
    printed = printed_in(str(caught.value))
    assert printed.startswith("python weak/train_segmentation.py ")
    assert "--method transfer" in printed
    assert "--epochs 2" in printed
    assert "--trainings" not in printed


# ---------------------------------------------------------------- the steps


def test_no_mask_is_looked_at_before_the_test(tmp_path, stand_in):
    first, second = files_by_masks(small_transfer(tmp_path, 18), steps, "weak")
    assert len(first) > 50  # images, healthy ones, masks
    assert first == second


def test_what_is_made_already_is_kept(cfg, stand_in, capsys, monkeypatch):
    monkeypatch.setattr("weak.main.evaluate_masks", lambda _: None)
    before = {path: path.stat().st_mtime_ns for path in cfg.workspace.rglob("*.safetensors")}
    capsys.readouterr()
    main(cfg)
    assert "regenerated" not in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_step_names_the_step_before_it(cfg, stand_in):
    second = dataclasses.replace(with_lesion(cfg), training=1)
    shutil.rmtree(masks_folder(second, 79))
    again = r"weak/generate_masks.py .*--folds 79 .*--lesion tinted .*--training 1 .*--method trans"
    with pytest.raises(UserError, match=rf"transfer_tinted_2 is missing: run `python {again}"):
        evaluate_masks(cfg)
    shutil.rmtree(generator_folder(second, 79).parent)
    with pytest.raises(UserError, match=r"run `python weak/train_transfer.py .*` first"):
        generate_masks(cfg)


def test_a_generator_that_changes_makes_all_after_it_stale(cfg, stand_in):
    weights = generator_folder(with_lesion(cfg), 79) / "generator.safetensors"
    record = json.loads((weights.parent / "made_from.json").read_text())
    del record["outputs"]
    (weights.parent / "made_from.json").write_text(json.dumps(record))
    weights.write_bytes(b"\x08")
    with pytest.raises(UserError, match="healthy/79_transfer_tinted is out of date"):
        train_segmentation(cfg)
    generate_masks(cfg)
    with pytest.raises(UserError, match=r"weak_transfer_tinted is out of date .*segmentation.py"):
        evaluate_masks(cfg)


def test_a_training_without_any_mask_has_no_network_and_counts_as_finding_none(
    tmp_path, stand_in, monkeypatch, capsys
):
    def blind_at_last(generator, images, device):
        if generator < 6:  # rows that the second training would miss
            return knowing_hues(generator, images, device)
        return images, torch.full(images.shape[:3], 0.5), torch.zeros(images.shape[:3])

    monkeypatch.setattr(training, "transfer", blind_at_last)
    cfg = dataclasses.replace(small_transfer(tmp_path, 18), trainings=2)
    main(cfg)
    assert "contains a class, so there is no network: train" in capsys.readouterr().out
    assert not weak_network(dataclasses.replace(with_lesion(cfg), training=1), 79).exists()
    scores = json.loads((report_of(cfg) / "trainings.json").read_text())["79"]["scores"]
    assert [scores[of_training(row, 1)]["miou"] for row in TRAINED] == [0, 0]
    assert scores[of_training("transfer", 0)]["miou"] > 0.5


def test_without_masks_it_stops_before_the_test(cfg, stand_in, capsys):
    without = dataclasses.replace(cfg, masks=None)
    main(without)
    assert "no test; predict.py" in capsys.readouterr().out
    with pytest.raises(UserError, match="masks = None"):
        evaluate_masks(without)
