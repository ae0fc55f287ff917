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
from medood.data.files import write_json
from medood.data.images import read_image, read_mask
from tests.conftest import in_a_copy, moved, quick_reports
from tests.leaks import files_by_masks
from tests.small_weak import PLAIN_ROWS, scores_in, small
from weak.evaluate_masks import evaluate_masks, is_shown
from weak.generate_masks import generate_masks
from weak.generator import Healed
from weak.image_labels import with_classes, with_lesion
from weak.main import main, steps
from weak.products import domains, generator_folder, healthy_folder, masks_folder, paths_to_test
from weak.report import flipped_table
from weak.scoring import FLOORS, ROWS
from weak.settings import MasksConfig
from weak.train_segmentation import train_segmentation, training_files, weak_network
from weak.train_transfer import FLIPPED


def hue(images):
    """How far red, green and blue of a pixel lie apart."""
    return (images.amax(-1).int() - images.amin(-1).int()).float()


def knowing_hues(generator, images, device):
    """Take the hue out of images: what `heal` does, by a rule."""
    mask = (hue(images) > 30).float() * 0.9 + 0.02
    grey = images.float().mean(-1, keepdim=True).expand(-1, -1, -1, 3)
    healthy = torch.where(mask[..., None] > 0.5, grey, images.float()).round().byte()
    return Healed(healthy, mask)


@pytest.fixture(scope="module")
def stand_in():
    """Let a rule stand in for the generator, and for what its classifier says of images."""

    with quick_reports(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "weak.train_transfer.fit", lambda trainer, *_: trainer.log.append({"step": 1})
        )
        patch.setattr("weak.train_transfer.flipped", lambda *_: 1.0)
        patch.setattr("weak.generate_masks.heal", knowing_hues)
        seen = lambda cfg, fold, images: torch.ones(len(images), dtype=torch.bool)  # noqa: E731
        patch.setattr("weak.generate_masks.seen_in", seen)
        yield


@pytest.fixture(scope="module")
def made(made_once, stand_in, weak_run):
    """A workspace after a whole run by transfer, in which one by maps had come before."""

    cfg = dataclasses.replace(weak_run, method="transfer", lesion="tinted")
    folder = made_once("transfer", lambda folder: main(in_a_copy(cfg, folder / "run")))
    return moved(cfg, folder / "run")


@pytest.fixture
def cfg(made, tmp_path):
    return in_a_copy(made, tmp_path / "run")


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


def test_a_mask_that_contradicts_its_label_is_unsure_and_a_healthy_test_image_has_none(
    cfg, stand_in, monkeypatch, capsys
):
    def blind_to_one(generator, images, device):
        healed = knowing_hues(generator, images, device)
        healed.mask[0] = torch.arange(32) / 1000  # the first training image with the lesion
        return healed

    none = lambda cfg, fold, images: torch.zeros(len(images), dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr("weak.generate_masks.heal", blind_to_one)
    monkeypatch.setattr("weak.generate_masks.seen_in", none)
    for product in ("healthy", "Pseudo_Masks"):
        shutil.rmtree(cfg.workspace / "weak" / product)
    generate_masks(cfg)
    cfg = with_lesion(cfg)
    diseased, _ = domains(cfg, 79)
    assert (read_mask(masks_folder(cfg, 79) / diseased[0].name, 2) == 255).all()
    said = " ".join(capsys.readouterr().out.split())
    assert f"nothing found in 1 of {len(diseased)} training images" in said
    for path in paths_to_test(cfg, 79):
        assert not read_mask(masks_folder(cfg, 79) / path.name, 2).any()


def report_of(cfg):
    return cfg.workspace / "reports" / "weak" / "tinted"


def test_of_several_trainings_of_a_generator_the_last_is_shown(tmp_path):
    cfg = MasksConfig(workspace=tmp_path, lesion="tinted", folds=(79,))
    generator_folder(cfg, 79).mkdir(parents=True)
    write_json(generator_folder(cfg, 79) / FLIPPED, {"flipped": [0.1, 0.9]})  # earlier versions
    assert list(flipped_table(cfg)) == [["", "79"], [["flipped", "90.0"]]]


def test_methods_of_one_workspace_stand_side_by_side(made):
    of_fold = scores_in(made)
    rows = [row for row in PLAIN_ROWS if row not in ("maps", "unet")]  # contrast was run
    assert list(of_fold) == rows
    assert of_fold["all_background"]["miou"] == 0
    assert of_fold["transfer"]["miou"] > 0.8
    assert len(of_fold["irnet"]["iou"]) == 2  # of the lesion alone
    page = (report_of(made) / "index.html").read_text()
    assert all(ROWS[row] in page for row in rows)
    table = (report_of(made) / "table.md").read_text()
    assert "segmentation after transfer less grey threshold (Otsu)" in table
    assert "less brightest, and" in table  # the floor of all rows
    assert "less brightest |" not in table  # so this is said once
    assert "| flipped | 100.0 |" in table
    of_all = json.loads((report_of(made).parent / "scores.json").read_text())["79"]
    assert len(of_all["irnet"]["iou"]) == 3  # what the run by maps found before
    lesions = json.loads((report_of(made) / "lesions.json").read_text())["79"]
    assert lesions["transfer"]["shown"] > 0.8
    assert lesions["transfer"]["by_patient"] > lesions["all_background"]["by_patient"] == 0


def test_outlined_masks_are_a_row_next_to_what_they_were_before(cfg, stand_in, capsys):
    before = scores_in(cfg)["transfer"]
    cfg = dataclasses.replace(cfg, outline=True)
    generate_masks(cfg)
    train_segmentation(cfg)
    evaluate_masks(cfg)
    assert "the rows of maps: skipped (" in capsys.readouterr().out  # these are not outlined
    found = scores_in(cfg)
    assert found["transfer"] == before
    assert found["transfer_outlined"]["confusion"] != before["confusion"]
    table = (report_of(cfg) / "table.md").read_text()
    assert "transfer, outlined less transfer |" in table
    assert f"{ROWS['transfer_outlined']} less mean of the maps" not in table  # its rows are skipped
    assert f"{ROWS['transfer_outlined']} less {ROWS['tissue']}" in table


def test_maps_that_are_not_current_or_missing_are_no_rows(cfg, capsys):
    other = dataclasses.replace(cfg, method="contrast", lesion=None, classifier_epochs=1)
    assert not is_shown("the rows of maps", with_classes(other))
    assert "the rows of maps: skipped (" in capsys.readouterr().out
    shutil.rmtree(cfg.workspace / "weak" / "maps")
    evaluate_masks(cfg)
    assert "the rows of maps: skipped (" in capsys.readouterr().out
    floors = [row for row in ROWS if row in FLOORS and row != "centre_prior"]
    own = ["all_background", *floors, "transfer", "transfer_segmentation", "supervised"]
    assert list(scores_in(cfg)) == own


def test_no_mask_is_looked_at_before_the_test(tmp_path, stand_in):
    few = {"classifiers": 1, "classifier_epochs": 1, "outline": True}
    cfg = small(tmp_path, 18, method="transfer", lesion="tinted", **few)
    first, second = files_by_masks(cfg, steps, "weak")
    assert len(first) > 50  # images, healthy ones, masks
    assert first == second


def test_a_step_names_the_step_before_it(cfg, stand_in):
    of_lesion = with_lesion(cfg)
    shutil.rmtree(masks_folder(of_lesion, 79))
    again = r"weak/generate_masks.py .*--folds 79 .*--method trans.* --lesion tinted"
    with pytest.raises(UserError, match=rf"transfer_tinted is missing: run `python {again}"):
        evaluate_masks(cfg)
    shutil.rmtree(generator_folder(of_lesion, 79).parent)
    with pytest.raises(UserError, match=r"run `python weak/train_transfer.py .*` first"):
        generate_masks(cfg)


def test_a_generator_that_changes_makes_all_after_it_stale(cfg, stand_in):
    weights = generator_folder(with_lesion(cfg), 79) / "generator.safetensors"
    record = json.loads((weights.parent / "made_from.json").read_text())
    del record["outputs"]
    (weights.parent / "made_from.json").write_text(json.dumps(record))
    weights.write_bytes(b"\x08")
    with pytest.raises(UserError, match="healthy/79_transfer_tinted is out of date"):
        evaluate_masks(cfg)


def test_a_network_learns_from_masks_of_a_generator_and_from_mined_healthy_images(made):
    cfg = with_lesion(made)
    diseased, healthy = domains(cfg, 79)
    masks = masks_folder(cfg, 79)
    positives, negatives = training_files(cfg, 79)
    assert positives == [(path, masks / path.name) for path in diseased]
    assert negatives == [(path, None) for path in healthy]
    names = [weak_network(cfg, 79, negatives).name for negatives in (False, True)]
    assert names[1].endswith("_weak_transfer_tinted")
    assert names[0] == names[1] + "_positives"
    assert all((cfg.workspace / "models" / name / "run.json").exists() for name in names)
