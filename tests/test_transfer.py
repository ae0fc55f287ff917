"""transfer/ from image labels to masks, a student and scores, with a generator that knows hues.

The lesions are the tinted ellipses of the sample of weak/: the generator that stands in here finds
them by their hue, so that every step after it can be checked to the pixel.
"""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch

from config import UserError
from medood.commands import command
from medood.data.images import read_image, read_mask
from tests.conftest import TINY, as_settings_of, in_a_copy
from tests.leaks import files_by_masks
from weak import sample
from weak import transfer as training
from weak.main import MainConfig as WeakMainConfig
from weak.main import main as weak_main
from weak.refine import refine, student_folder
from weak.trainings import trainings_of, with_trainings
from weak.transfer_evaluate import ROWS, TRAINED, evaluate, incomparable, of_training
from weak.transfer_main import MainConfig, main, steps
from weak.transfer_masks import HEAT, MASK, generate_masks, otsu, read_levels
from weak.transfer_products import domains, healthy_folder, held_out, masks_folder, with_lesion
from weak.transfer_report import median_training
from weak.transfer_settings import TransferConfig


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

    def train(cfg, fold, diseased, healthy, folder, device):
        assert len(diseased)
        assert len(healthy)
        folder.mkdir(parents=True)
        (folder / "generator.safetensors").write_bytes(bytes([4 * (fold - 79)]))

    def load(cfg, folder, device):
        return (folder / "generator.safetensors").read_bytes()[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_transfer", train)
        patch.setattr(training, "load_generator", load)
        patch.setattr(training, "transfer", knowing_hues)
        yield


def small(workspace, images=18, kind=MainConfig, **own):
    """Settings for the first images of the sample, in a workspace of their own."""
    drawn = sample.draw_sample(workspace)
    lines = drawn["image_labels"].read_text().splitlines()
    drawn["image_labels"].write_text("\n".join(lines[: images + 1]) + "\n")
    given = {"workspace": workspace, "patch_size": 64, "epochs": 1, "folds": (79,), **drawn}
    given |= {"encoder": "tu-resnet10t"}
    return as_settings_of(kind, TINY, **given | own)


def small_transfer(workspace, images=18):
    return small(workspace, images, lesion="tinted", trainings=3)


@pytest.fixture(scope="module")
def made(made_once, stand_in):
    """A workspace after a whole run, in which weak/ had been run on the same images."""
    own = {"classifier_epochs": 2, "classifier_lr": 3e-3, "classifiers": 1, "stages": 3}
    own |= {"scales": (1.0,), "irnet_epochs": 1, "masks": None}

    def make(folder):
        weak_main(small(folder / "run", kind=WeakMainConfig, **own))
        cfg = small_transfer(folder / "run")
        main(cfg)
        return cfg

    return made_once("transfer", make)


@pytest.fixture
def cfg(made, tmp_path):
    return in_a_copy(made, tmp_path / "run")


# ---------------------------------------------------------------- masks


def test_a_mask_is_what_had_to_change_and_a_healthy_image_lacks_it(made):
    cfg = with_lesion(made)
    diseased, healthy = domains(cfg, 79)
    for path in diseased + held_out(cfg, 79):
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
    assert read_levels(cfg, 79, diseased, MASK).dtype == np.uint8
    heat = read_levels(cfg, 79, diseased, HEAT)
    assert heat.shape == (len(diseased), 64, 64)
    assert heat.max() == 1
    assert (healthy_folder(cfg, 79) / "sheet" / "healthy.png").exists()


def test_one_threshold_leaves_an_image_without_anything_empty():
    """Two images: one with a lesion of level 200, one of noise up to 20; and one all alike."""
    levels = np.zeros((2, 8, 8), np.uint8)
    levels[0, 2:5, 2:5] = 200
    levels[1] = np.arange(64).reshape(8, 8) % 20
    threshold = otsu(levels)
    assert 19 <= threshold < 200
    assert (levels > threshold).sum((1, 2)).tolist() == [9, 0]
    assert (levels[1] > otsu(levels[1])).any()  # what a threshold for each image would do
    constant = np.full((2, 8, 8), 128, np.uint8)
    assert not (constant > otsu(constant)).any()  # a mask of .5 everywhere finds nothing


def test_a_mask_that_contradicts_its_label_is_unsure(tmp_path, stand_in, monkeypatch, capsys):
    def blind_to_one(generator, images, device):
        healthy, mask, heat = knowing_hues(generator, images, device)
        mask[0] = 0.02  # the first training image with the lesion
        return healthy, mask, heat

    monkeypatch.setattr(training, "transfer", blind_to_one)
    cfg = with_lesion(small_transfer(tmp_path, 18))
    steps(cfg)
    diseased, _ = domains(cfg, 79)
    assert (read_mask(masks_folder(cfg, 79) / diseased[0].name, 2) == 255).all()
    assert f"nothing found in 1 of {len(diseased)} training images" in capsys.readouterr().out


def test_images_of_another_class_take_no_part(made):
    cfg = with_lesion(made)
    names = {path.name for side in domains(cfg, 79) for path in side}
    names |= {path.name for path in held_out(cfg, 79)}
    only_striped = {f"sample_{n:02}.png" for n in range(18) if sample.HELD[n % 9] == (1,)}
    assert only_striped
    assert not names & only_striped
    assert len(names) + len(only_striped) == 18


# ---------------------------------------------------------------- scores


def test_the_scores_have_every_row_and_the_report_lies_beside_them(made):
    out = made.workspace / "reports" / "transfer"
    (of_fold,) = json.loads((out / "scores.json").read_text()).values()
    assert list(of_fold) == list(ROWS)
    assert of_fold["all_background"]["miou"] == 0
    assert of_fold["transfer"]["miou"] > 0.8
    assert of_fold["supervised"]["miou"] is not None
    page = (out / "index.html").read_text()
    for row in ROWS.values():
        assert row in page
    assert "drawn by a program" in page  # the sample never passes for data
    assert "refined less transfer" in (out / "table.md").read_text()


def test_folds_that_differ_by_three_are_trainings_on_the_same_images(made):
    cfg = with_lesion(made)
    assert trainings_of(cfg, 79) == [79, 82, 85]
    assert with_trainings(dataclasses.replace(cfg, folds=(79, 80))).folds == (
        *(79, 82, 85),
        *(80, 83, 86),
    )
    for training_number in (82, 85):
        assert domains(cfg, training_number) == domains(cfg, 79)
        assert held_out(cfg, training_number) == held_out(cfg, 79)
        assert student_folder(cfg, training_number).is_dir()


def test_the_tables_show_the_median_training(made):
    """The three miss 0, 12 and 24 rows of 64."""
    out = made.workspace / "reports" / "transfer"
    shown = json.loads((out / "scores.json").read_text())["79"]
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
    path = made.workspace / "reports" / "transfer" / "trainings.json"
    area = json.loads(path.read_text())["79"]["area_on_healthy"]
    assert area["all_background"] == area["transfer 0"] == 0
    assert area["threshold"] > 0


def test_without_weak_its_rows_are_left_out(cfg, capsys):
    shutil.rmtree(cfg.workspace / "weak" / "maps")
    evaluate(cfg)
    assert "cam and irnet are left out" in capsys.readouterr().out
    path = cfg.workspace / "reports" / "transfer" / "scores.json"
    (of_fold,) = json.loads(path.read_text()).values()
    assert list(of_fold) == [row for row in ROWS if row not in ("cam", "irnet")]


def test_masks_of_weak_from_other_labels_are_not_compared(cfg, capsys):
    text = cfg.image_labels.read_text()
    diseased, _ = domains(with_lesion(cfg), 79)
    line = next(line for line in text.splitlines() if line.startswith(diseased[0].name))
    name, patient, striped, tinted = line.split(",")
    changed = ",".join([name, patient, str(1 - int(striped)), tinted])
    cfg.image_labels.write_text(text.replace(line, changed))
    main(cfg)
    assert "cam and irnet are left out" in capsys.readouterr().out


def edit_record(folder, **made_from):
    path = folder / "made_from.json"
    record = json.loads(path.read_text())
    settings = made_from.pop("settings", {})
    record["made_from"] |= made_from
    record["made_from"]["settings"] |= settings
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"encoder_weights": "imagenet"}, "encoder_weights was imagenet, is none"),
        ({"seed": 3}, "seed was 3, is 0"),
        ({"classifier_epochs": 9, "batch_size": 2}, ""),  # what weak/ takes alone, or needs
    ],
)
def test_masks_of_weak_from_other_settings_of_both_are_not_compared(cfg, settings, why):
    edit_record(cfg.workspace / "weak" / "classifier" / "79_tu-resnet10t", settings=settings)
    assert incomparable(with_lesion(cfg)).endswith(why)
    assert bool(incomparable(with_lesion(cfg))) == bool(why)


def test_masks_of_weak_are_compared_if_all_folds_have_them_from_the_same_settings(cfg):
    """Fold 82 trains on the images of fold 79."""
    both = dataclasses.replace(with_lesion(cfg), folds=(79, 82))
    assert "weak/ did not make" in incomparable(both)
    weak = cfg.workspace / "weak"
    for kind in ("classifier", "maps", "irnet", "Pseudo_Masks"):
        shutil.copytree(weak / kind / "79_tu-resnet10t", weak / kind / "82_tu-resnet10t")
    edit_record(weak / "classifier" / "82_tu-resnet10t", fold=82)
    assert not incomparable(both)
    edit_record(weak / "Pseudo_Masks" / "82_tu-resnet10t", settings={"unsure": 0.2})
    why = "is not like that of fold 79: unsure was 0.1, is 0.2"
    assert incomparable(both) == f"{weak / 'Pseudo_Masks' / '82_tu-resnet10t'} {why}"


def test_a_student_of_other_settings_is_not_tested(cfg, stand_in):
    longer = dataclasses.replace(cfg, epochs=2, loss="dice_ce")
    with pytest.raises(UserError, match="79_unet_tu-resnet10t_tinted is out of date") as caught:
        evaluate(longer)
    said = str(caught.value)
    assert "epochs was 1, is 2, loss was dice, is dice_ce" in said
    (printed,) = re.findall("`(.*)`", said)
    assert printed == command(with_lesion(longer), "weak/refine.py", TransferConfig)
    assert "--epochs 2" in printed
    assert "--trainings" not in printed


# ---------------------------------------------------------------- the steps


def test_no_mask_is_looked_at_before_the_test(tmp_path, stand_in):
    first, *others = files_by_masks(small_transfer(tmp_path, 18), steps, "weak", "transfer")
    assert len(first) > 50  # images, healthy ones, masks
    assert others == [first, first]


def test_what_is_made_already_is_kept(cfg, stand_in, capsys):
    before = {path: path.stat().st_mtime_ns for path in cfg.workspace.rglob("*.safetensors")}
    capsys.readouterr()
    main(cfg)
    assert "made again" not in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_step_names_the_step_before_it(cfg, stand_in):
    shutil.rmtree(masks_folder(cfg, 82))
    again = r"weak/transfer_masks.py .*--folds 82 .*--lesion tinted"
    with pytest.raises(UserError, match=rf"82_tinted is missing: run `python {again}.*` first"):
        evaluate(cfg)
    with pytest.raises(UserError, match="82_tinted is missing"):
        refine(with_trainings(cfg))
    shutil.rmtree(healthy_folder(cfg, 79).parents[1] / "generator")
    with pytest.raises(UserError, match=r"run `python weak/train_transfer.py .*` first"):
        generate_masks(cfg)


def test_a_generator_that_changes_makes_all_after_it_stale(cfg, stand_in):
    weights = cfg.workspace / "transfer" / "generator" / "79_tinted" / "generator.safetensors"
    record = json.loads((weights.parent / "made_from.json").read_text())
    del record["outputs"]
    (weights.parent / "made_from.json").write_text(json.dumps(record))
    weights.write_bytes(b"\x08")
    with pytest.raises(UserError, match="healthy/79_tinted is out of date"):
        refine(cfg)
    generate_masks(cfg)
    with pytest.raises(UserError, match=r"student/79_\w+.* is out of date .*weak/refine.py"):
        evaluate(cfg)


def test_a_student_needs_masks_that_hold_the_lesion(tmp_path, stand_in, monkeypatch):
    def blind(generator, images, device):
        return images, torch.full(images.shape[:3], 0.5), torch.zeros(images.shape[:3])

    monkeypatch.setattr(training, "transfer", blind)
    cfg = small_transfer(tmp_path, 18)
    steps(cfg)
    with pytest.raises(UserError, match="holds tinted: train the generator for more iterations"):
        refine(cfg)


def test_a_training_that_lost_its_mask_counts_as_finding_none(
    tmp_path, stand_in, monkeypatch, capsys
):
    def blind_at_last(generator, images, device):
        if generator < 24:  # rows that the third training would miss
            return knowing_hues(generator, images, device)
        return images, torch.full(images.shape[:3], 0.5), torch.zeros(images.shape[:3])

    monkeypatch.setattr(training, "transfer", blind_at_last)
    cfg = small_transfer(tmp_path, 18)
    main(cfg)
    assert "fold 85: no mask holds tinted, so there is no student" in capsys.readouterr().out
    assert not student_folder(with_lesion(cfg), 85).exists()
    path = tmp_path / "reports" / "transfer" / "trainings.json"
    scores = json.loads(path.read_text())["79"]["scores"]
    assert [scores[of_training(row, 2)]["miou"] for row in TRAINED] == [0, 0]
    assert scores[of_training("transfer", 1)]["miou"] > 0.5


def test_the_same_seed_gives_the_same_student(cfg, stand_in):
    weights = student_folder(with_lesion(cfg), 79) / "model.safetensors"
    before = weights.read_bytes()
    shutil.rmtree(weights.parent)
    refine(cfg)
    assert weights.read_bytes() == before


def test_without_masks_it_stops_before_the_test(cfg, stand_in, capsys):
    without = dataclasses.replace(cfg, masks=None)
    main(without)
    assert "nothing to test on" in capsys.readouterr().out
    with pytest.raises(UserError, match="masks = None"):
        evaluate(without)


def test_masks_that_are_not_there_are_missed_before_any_work(cfg):
    shutil.rmtree(cfg.workspace / "transfer")
    with pytest.raises(UserError, match="masks = .*nowhere: name the folder, or the CSV"):
        main(dataclasses.replace(cfg, masks=cfg.workspace / "nowhere"))
    assert not (cfg.workspace / "transfer").exists()
