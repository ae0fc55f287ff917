"""The training of a generator: seeded, resumable, and better than it began."""

import dataclasses

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu

from config import UserError
from medood.data.files import read_table
from tests.conftest import TINY, as_settings_of
from weak import transfer as training
from weak.generate_images import generate_images
from weak.generator import Generator
from weak.image_labels import read_image_labels, with_lesion
from weak.products import domains, generator_folder, seeded
from weak.sample import draw_lesion, draw_sample
from weak.settings import TransferConfig
from weak.train_transfer import train_generators
from weak.transfer import WEIGHTS, Trainer, load_generator, train_transfer, transfer

CPU = torch.device("cpu")
SEPARATED = training.SEPARATED


def drawn(kind, count, side):
    """Images with a lesion or without, uint8 (count, side, side, 3), and the true masks."""
    held = (1,) if kind == "lesion" else ()
    rngs = [np.random.default_rng([len(kind), number]) for number in range(count)]
    images, masks = zip(*(draw_lesion(rng, held, side) for rng in rngs), strict=True)
    return torch.from_numpy(np.stack(images)), np.stack(masks) == 1


IMAGES = drawn("lesion", 5, 32)[0], drawn("none", 4, 32)[0]


CFG = as_settings_of(
    TransferConfig,
    TINY,
    **{"channels": 2, "iterations": 4, "batch_size": 2, "folds": (79,), "image_size": 32},
)


@pytest.fixture(autouse=True, scope="module")
def short():
    """Trainings of 2 + 4 steps, in rounds of 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "ROUND", 2)
        patch.setattr(training, "SEPARATED", float("inf"))
        yield patch


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "draw_rows", lambda *_: None)  # takes longer than the training
    return dataclasses.replace(CFG, workspace=tmp_path)


def trained(cfg, folder, fold=79):
    """The bytes of a generator after a training."""
    train_transfer(cfg, fold, *IMAGES, folder, {})
    return (folder / WEIGHTS).read_bytes()


@pytest.fixture(scope="module")
def whole(short, tmp_path_factory):
    """The folder of a training, and what its generator that heals had learned in the end."""
    states, end = [], Trainer.end_epoch

    def note(trainer, losses):
        found = trainer.model["heal"].state_dict()
        states.append({name: values.clone() for name, values in found.items()})
        return end(trainer, losses)

    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "DRAWN", 2)
        patch.setattr(Trainer, "end_epoch", note)
        trained(dataclasses.replace(CFG, workspace=folder), folder)
    return folder, states[-1]


# ---------------------------------------------------------------- the training


@pytest.mark.parametrize("other", [{"seed": 1}, {"training": 1}])
def test_another_seed_or_training_gives_another_generator(cfg, tmp_path, whole, other):
    own = seeded(dataclasses.replace(cfg, **other))
    assert trained(own, tmp_path / "other") != (whole[0] / WEIGHTS).read_bytes()


def test_an_interrupted_training_goes_on_and_ends_with_the_same_bytes(
    cfg, tmp_path, whole, monkeypatch, capsys
):
    step, calls = Trainer.step, []

    def stop(self, *images):
        calls.append(1)
        if len(calls) == 6:  # in the last round
            raise KeyboardInterrupt
        return step(self, *images)

    monkeypatch.setattr(Trainer, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(cfg, tmp_path / "cut")
    assert not (tmp_path / "cut" / WEIGHTS).exists()
    assert trained(cfg, tmp_path / "cut") == (whole[0] / WEIGHTS).read_bytes()
    assert "it continues after epoch 2" in capsys.readouterr().out
    assert len(calls) == 6 + 2
    log = (tmp_path / "cut" / "log.csv").read_bytes()
    assert log == (whole[0] / "log.csv").read_bytes()


def test_the_log_has_a_row_of_every_round_and_some_have_a_picture(whole):
    rows = read_table(whole[0] / "log.csv")
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert rows[0]["adversarial"] == ""  # the discriminators are alone
    assert float(rows[0]["judges"]) > 0
    assert all(float(rows[2][name]) > 0 for name in training.LOSSES)
    pictures = sorted(path.name for path in (whole[0] / "pictures").iterdir())
    assert pictures == ["000004.png", "000006.png"]  # every second round, and the last
    assert not (whole[0] / "resume.pt").exists()


def test_a_few_steps_bring_the_losses_down(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "ROUND", 10)
    cfg = dataclasses.replace(cfg, channels=4, iterations=20, transfer_lr=4e-3)
    trained(cfg, tmp_path / "out")
    rows = read_table(tmp_path / "out" / "log.csv")
    first, last = rows[1], rows[-1]  # of the generators
    assert float(last["judges"]) < float(rows[0]["judges"])
    for name in ("reconstruction", "identity", "attention"):
        assert float(last[name]) < float(first[name]), name


@pytest.mark.slow
@pytest.mark.long
def test_the_mask_comes_to_be_the_lesion(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "ROUND", 100)
    monkeypatch.setattr(training, "SEPARATED", SEPARATED)
    cfg = dataclasses.replace(cfg, channels=16, iterations=200, batch_size=4)
    train_transfer(cfg, 79, drawn("lesion", 60, 48)[0], drawn("none", 60, 48)[0], tmp_path, {})
    generator = load_generator(cfg, tmp_path, CPU)
    images, lesions = (part[60:] for part in drawn("lesion", 80, 48))
    masks = transfer(generator, images, CPU)[1].numpy()
    found = np.stack([mask > threshold_otsu(mask) for mask in masks])
    dice = 2 * (found & lesions).sum((1, 2)) / (found.sum((1, 2)) + lesions.sum((1, 2)))
    assert np.median(dice) > 0.65
    of_healthy = transfer(generator, drawn("none", 80, 48)[0][60:], CPU)[1]
    assert of_healthy.mean() < 0.05


def test_discriminators_learn_alone_until_they_tell_the_domains_apart(cfg, monkeypatch):
    monkeypatch.setattr(training, "SEPARATED", SEPARATED)
    monkeypatch.setattr(training, "AREA_RISE", 4)
    cfg = dataclasses.replace(cfg, iterations=5)
    alone = {"adversarial": None}
    log = [{"step": 2, "judges": 3.9, **alone}]
    assert training.next_round(cfg, []) == training.next_round(cfg, log) == [0, 0]
    log.append({"step": 4, "judges": 2.4, **alone})
    for step, areas in ((6, [0.25, 0.5]), (8, [0.75, 1]), (9, [1])):
        assert training.next_round(cfg, log) == areas
        log.append({"step": step, "judges": 3.0, "adversarial": 2.0})
    assert training.next_round(cfg, log) == []


def test_discriminators_that_never_tell_them_apart_do_not_learn_alone_for_ever(cfg, monkeypatch):
    monkeypatch.setattr(training, "SEPARATED", SEPARATED)
    log = [{"step": 2 * n, "judges": 4.0, "adversarial": None} for n in range(1, 21)]
    assert training.next_round(cfg, log[:19]) == [0, 0]
    assert min(training.next_round(cfg, log)) > 0


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("diseased", "healthy", "message"),
    [
        (IMAGES[0][:0], IMAGES[1], "no training image with the lesion"),
        (IMAGES[0], IMAGES[1][:0], "no training image without any class"),
    ],
)
def test_images_that_nothing_can_be_learned_from_are_refused(
    cfg, tmp_path, diseased, healthy, message
):
    with pytest.raises(UserError, match=message):
        train_transfer(cfg, 79, diseased, healthy, tmp_path / "out", {})


# ---------------------------------------------------------------- a trained generator


def test_a_mask_of_0_gives_every_value_of_a_byte_back():
    torch.manual_seed(0)
    generator = Generator(2).eval()
    torch.nn.init.zeros_(generator.mask.weight)
    torch.nn.init.constant_(generator.mask.bias, -200.0)
    images = torch.arange(768).to(torch.uint8).view(1, 16, 16, 3)
    healthy, mask, heat = transfer(generator, images, CPU)
    assert torch.equal(healthy, images)
    assert mask.shape == heat.shape == (1, 16, 16)
    assert mask.max() == 0


def test_what_is_loaded_is_the_generator_that_heals_after_the_last_step(whole):
    loaded = load_generator(CFG, whole[0], CPU)
    assert not loaded.training
    assert all(torch.equal(values, whole[1][k]) for k, values in loaded.state_dict().items())
    healthy, mask, heat = transfer(loaded, IMAGES[0], CPU)
    assert healthy.dtype == torch.uint8
    assert healthy.shape == IMAGES[0].shape
    assert 0 < mask.min() <= mask.max() < 1
    assert 0 <= heat.min() <= heat.max() <= 1


# ---------------------------------------------------------------- the step


LABELS = """img_name,patient,striped,other,split
sample_00,a,1,0,train
sample_01,a,0,0,train
sample_02,b,1,1,train
sample_03,b,0,1,train
sample_04,c,1,0,test
sample_05,c,0,0,test
"""


@pytest.fixture
def labelled(cfg):
    """Settings of images with two classes, prepared."""
    named = draw_sample(cfg.workspace, "transfer")
    csv = named["image_labels"].with_name("two.csv")
    csv.write_text(LABELS)
    cfg = dataclasses.replace(cfg, images=named["images"], image_labels=csv, lesion="striped")
    generate_images(cfg)
    return with_lesion(cfg)


def test_only_training_images_teach_and_those_without_any_class_are_the_healthy_ones(labelled):
    diseased, healthy = domains(labelled, 79)
    assert [path.stem for path in diseased] == ["sample_00", "sample_02"]
    assert [path.stem for path in healthy] == ["sample_01"]


def test_the_lesion_is_the_only_class_or_has_to_be_named(labelled):
    both = read_image_labels(labelled.image_labels).classes
    assert both == ("striped", "other")
    for lesion in (None, "spots"):
        with pytest.raises(UserError, match="has the classes striped, other: name one"):
            with_lesion(dataclasses.replace(labelled, lesion=lesion))
    labelled.image_labels.write_text("img_name,striped\nsample_00,1\nsample_01,0\n")
    assert with_lesion(dataclasses.replace(labelled, lesion=None)).lesion == "striped"


def test_a_generator_is_kept_until_what_it_is_made_from_changes(labelled, capsys):
    cfg = dataclasses.replace(labelled, iterations=1)
    train_generators(cfg)
    folder = generator_folder(cfg, 79)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["79_transfer_striped"]
    assert {"log.csv", WEIGHTS} <= {path.name for path in folder.iterdir()}
    capsys.readouterr()
    train_generators(cfg)
    assert "kept, made from the same" in capsys.readouterr().out
    train_generators(dataclasses.replace(cfg, cycle_weight=1.0))
    assert "cycle_weight was 2.0, is 1.0" in capsys.readouterr().out


def test_the_step_keeps_what_an_interrupted_training_did(labelled, monkeypatch, capsys):
    step, calls = Trainer.step, []

    def stop(self, *images):
        calls.append(1)
        if len(calls) == 3:  # the first round is whole
            raise KeyboardInterrupt
        return step(self, *images)

    monkeypatch.setattr(Trainer, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        train_generators(labelled)
    folder = generator_folder(labelled, 79)
    assert not folder.exists()
    train_generators(labelled)
    assert "it continues after epoch 1" in capsys.readouterr().out
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
