"""A generator that makes images healthy: its losses by hand, its training, seeds and resume."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from config import UserError
from medood.data.files import read_json
from medood.models.network import build_model
from medood.training.loop import fit
from tests.conftest import TINY, as_settings_of
from weak import train_transfer as step
from weak.generate_images import generate_images
from weak.generator import Healed, Sees, heal, least_squares, load_generator, total_variation
from weak.image_labels import with_lesion
from weak.products import domains, generator_folder
from weak.sample import draw_lesion, draw_sample
from weak.settings import TransferConfig
from weak.train_classifier import train_classifiers
from weak.train_transfer import PACE, WEIGHT, Images, Trainer, nearest

CPU = torch.device("cpu")
FEW = {"iterations": 6, "batch_size": 2, "folds": (79,), "image_size": 32, "classifier_epochs": 1}
OF_LESION = {"method": "transfer", "lesion": "striped", "classes": (("striped", "#ff0000"),)}
CFG = as_settings_of(TransferConfig, TINY, **FEW, **OF_LESION)


def drawn(held, count):
    """Images with a lesion or without, at places from 0 to 1."""
    rngs = [np.random.default_rng([len(held), number]) for number in range(count)]
    pixels = np.stack([draw_lesion(rng, held, 32)[0] for rng in rngs])
    return Images(torch.from_numpy(pixels), torch.linspace(0, 1, count))


IMAGES = drawn((1,), 5), drawn((), 4)


def classifiers():
    torch.manual_seed(0)
    return Sees(CFG, [build_model(CFG)], 0)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Trainings of 6 steps, in rounds of 2."""
    monkeypatch.setattr(step, "ROUND", 2)


@pytest.fixture
def cfg(tmp_path):
    return dataclasses.replace(CFG, workspace=tmp_path)


def trained(cfg, folder=None):
    """A generator and its judge after a training, and its log."""
    trainer = Trainer(cfg, 79, *IMAGES, classifiers(), CPU)
    fit(trainer, folder, {})
    return trainer.model.state_dict(), trainer.log


def same(ours, theirs):
    return all(torch.equal(values, theirs[name]) for name, values in ours.items())


def test_the_bytes_of_an_image_come_back_where_nothing_changes():
    images = torch.arange(768).to(torch.uint8).view(1, 16, 16, 3)
    healed = heal(lambda images: Healed(images, torch.zeros(1, 1, 16, 16)), images, CPU)
    assert torch.equal(healed.image, images)
    assert healed.mask.shape == (1, 16, 16)


class Bright(nn.Module):
    """A linear classifier: the class's log-odds are the red channel of the given image."""

    def forward(self, images):
        return torch.cat([torch.zeros_like(images[:, :1]), images[:, :1]], 1)


def test_a_classifier_sees_the_brightest_pixels_of_an_image():
    pixels = torch.zeros(3, 3, 32, 32)
    pixels[0, :, 4:9, 4:8] = pixels[1, :, 4:9, 4:8] = 255  # two with a lesion
    seen = Sees(CFG, [Bright()], 0)(pixels / 127.5 - 1)
    assert (seen > 0).tolist() == [True, True, False]


def test_a_flip_and_the_losses_by_hand():
    before, after = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    assert step.flipped(before, after) == 0.5
    assert step.flipped(torch.zeros(3, dtype=torch.bool), after) == 0
    assert [least_squares(torch.tensor([[0.5, 1.0]]), real).item() for real in (1, 0)] == [
        1 / 8,
        5 / 8,
    ]
    assert total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]])).item() == 1 + 2


def test_the_nearest_of_others_is_taken_and_the_first_where_no_place_is_known():
    others = torch.tensor([[7, 8], [7, 8]])
    of_others = torch.tensor([[0.9, 0.2], [torch.nan, torch.nan]])
    assert nearest(torch.tensor([0.1, 0.1]), of_others, others).tolist() == [8, 7]
    assert nearest(torch.tensor([torch.nan, 0.5]), of_others, others).tolist() == [7, 7]


def test_an_interrupted_training_goes_on_and_ends_with_the_same_bytes(
    cfg, tmp_path, monkeypatch, capsys
):
    whole, log = trained(cfg)
    assert [row["step"] for row in log] == [2, 4, 6]
    assert all(row[name] >= 0 for row in log for name in (*WEIGHT, "judge"))
    take, calls = Trainer.step, []

    def stop(self, *batch):
        calls.append(1)
        if len(calls) == 6:  # in the last round
            raise KeyboardInterrupt
        return take(self, *batch)

    monkeypatch.setattr(Trainer, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(cfg, tmp_path / "cut")
    assert same(trained(cfg, tmp_path / "cut")[0], whole)
    assert not same(trained(dataclasses.replace(cfg, seed=1))[0], whole)
    assert "it continues after epoch 2" in capsys.readouterr().out
    assert len(calls) == 6 + 2 + 6


def test_the_generator_learns_in_its_own_steps_alone(cfg):
    trainer = Trainer(cfg, 79, *IMAGES, classifiers(), CPU)
    batches = list(trainer.begin_epoch(0))
    assert [generates for *_, generates in batches] == [True, False]
    assert PACE == 2

    def weights(name):
        return torch.cat([w.detach().flatten().clone() for w in trainer.model[name].parameters()])

    for *batch, generates in batches:
        before = weights("generator"), weights("judge")
        losses = trainer.step(*batch, generates)
        assert torch.equal(weights("generator"), before[0]) != generates
        assert not torch.equal(weights("judge"), before[1])
        assert (losses["flip"] > 0) == generates
    assert all(weight.grad is None for weight in trainer.sees.parameters())  # it is frozen


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
    """Settings of images with two classes, prepared, and their classifier."""
    named = draw_sample(cfg.workspace, "transfer")
    csv = named["image_labels"].with_name("two.csv")
    csv.write_text(LABELS)
    cfg = dataclasses.replace(cfg, images=named["images"], image_labels=csv, iterations=2)
    generate_images(cfg)
    train_classifiers(cfg)
    return with_lesion(cfg)


def test_only_training_images_teach_and_those_without_any_class_are_the_healthy_ones(labelled):
    diseased, healthy = domains(labelled, 79)
    assert [path.stem for path in diseased] == ["sample_00", "sample_02"]
    assert [path.stem for path in healthy] == ["sample_01"]
    for lesion in (None, "spots"):
        with pytest.raises(UserError, match="has the classes striped, other: name one"):
            with_lesion(dataclasses.replace(labelled, lesion=lesion))
    text = labelled.image_labels.read_text()
    labelled.image_labels.write_text(text.replace("sample_01,a,0,0", "sample_01,a,0,1"))
    train_classifiers(labelled)
    with pytest.raises(UserError, match="fold 79 has no training image without any class"):
        step.train_generators(labelled)


def test_a_training_that_does_not_flip_the_classifier_says_what_to_do(
    labelled, monkeypatch, capsys
):
    monkeypatch.setattr(step, "flipped", lambda *_: 0.1)
    step.train_generators(labelled)
    assert "flips on 10 % of what it sees: raise iterations (now 2)" in capsys.readouterr().out
    folder = generator_folder(labelled, 79)
    assert read_json(folder / step.FLIPPED) == {"flipped": [0.1]}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert not load_generator(labelled, folder, CPU).training
