"""--method unet: pooling and losses by hand, its training, brightness, masks and floors."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from medood.training.loop import fit
from tests.small_weak import of_two_classes, painted
from weak import pooled as module
from weak.arrays import save_weights
from weak.classifier import EMPTY, image_scores, load_classifiers
from weak.floors import brightness, otsu_masks
from weak.maps import cut_at_half, unsure_without_class
from weak.pooled import appearance, maps_by, pooled, pooled_loss, probability, size_loss
from weak.train_classifier import ClassifierTraining

CPU = torch.device("cpu")


@pytest.fixture
def cfg(tmp_path):
    return of_two_classes(tmp_path, classifier_epochs=2, classifier_lr=3e-3, size=0.14)


def test_the_logit_of_few_pixels_is_the_highest_of_them():
    maps = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]], requires_grad=True)
    said = pooled(maps)
    said.sum().backward()
    assert said.tolist() == [[3]]  # 2 % of four pixels is one
    assert maps.grad.flatten().tolist() == [0, 0, 0, 1]
    assert pooled(torch.arange(100.0).view(1, 1, 10, 10)).item() == 98.5  # of 100, two


def test_the_size_loss_by_hand():
    """A mean of a half, taught a quarter, is ln 2; the least is the entropy of the quarter."""
    assert size_loss(torch.zeros(1, 1, 2, 2), 0.25).item() == pytest.approx(math.log(2))
    right = torch.full((1, 1, 2, 2), math.log(1 / 3), requires_grad=True)
    loss = size_loss(right, 0.25)
    loss.sum().backward()
    assert loss.item() == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert right.grad.abs().max() < 1e-6


def test_the_pooled_loss_by_hand():
    """Maps of 0: an image with the class costs two coins, one without it its pixels too."""
    coin = math.log(2)
    found = pooled_loss(torch.zeros(2, 1, 2, 2), torch.tensor([[1.0], [0.0]]), size=0.5).item()
    assert found == pytest.approx((2 * coin + (1 + EMPTY) * coin) / 2)


def trained(cfg, images, labels):
    training = ClassifierTraining(cfg, 1, "pooled", 0, images, labels, CPU)
    fit(training)
    return training.model.eval()


def test_it_learns_which_and_where_and_the_same_seed_gives_the_same_bytes(cfg, tmp_path):
    images, labels = painted(24)
    cfg = dataclasses.replace(cfg, classifier_epochs=6, classifier_lr=1e-2)
    network = trained(cfg, images, labels)
    maps, logits = module.seen_by(cfg, [network], images, CPU)
    assert image_scores(logits.numpy(), labels.numpy() > 0)["auc"] == [1, 1]
    red, blue = maps[labels[:, 0] > 0, 0], maps[labels[:, 1] > 0, 1]
    assert red[:, 4:12, 4:12].mean() > red[:, 18:, 18:].mean() + 1
    assert blue[:, 18:26, 18:26].mean() > blue[:, :12, :12].mean() + 1
    path, found = tmp_path / "1.safetensors", []
    for seed in (1, 0, 0):
        short = dataclasses.replace(cfg, classifier_epochs=1, classifiers=1, seed=seed)
        save_weights(trained(short, images, labels), path)
        found.append(path.read_bytes())
    assert found[0] != found[1] == found[2]
    (loaded,) = load_classifiers(short, tmp_path, "pooled", CPU)
    assert not loaded.training


def test_maps_are_log_odds_and_the_mean_over_mirror_images(cfg):
    class Channels(torch.nn.Module):
        def forward(self, images):
            ramp = torch.arange(images.shape[3]).float().expand(len(images), 1, 32, -1)
            return torch.cat([torch.full_like(ramp, 2.0), ramp, -ramp], 1)

    images = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    said = maps_by(Channels(), images.permute(0, 3, 1, 2).float())
    assert said[0, 0, 0].tolist() == [x - 2 for x in range(32)]
    maps, logits = module.seen_by(cfg, [Channels()], images, CPU)
    assert (maps[0, 0] == 15.5 - 2).all()
    assert logits[0, 0] == np.sort(np.tile(np.arange(32), 32))[-20:].mean() - 2


def test_brightness_that_maps_agree_on_is_added_to_them(monkeypatch):
    monkeypatch.setattr(module, "BLUR", 0.0)
    monkeypatch.setattr(module, "gaussian_filter1d", lambda counts, _: counts)
    images = torch.zeros(2, 2, 2, 3, dtype=torch.uint8)
    images[:, 0] = 255
    maps = torch.full((2, 1, 2, 2), -40.0)
    maps[0, 0, 0] = 40.0  # the bright row of the first image, which alone holds the class
    held = torch.tensor([[True], [False]])
    ratio = appearance(maps, images, held)
    assert ratio.shape == (1, module.LEVELS)
    total = 6 + module.LEVELS  # two pixels of three colours on either side, and one of each level
    bright = math.log((7 / total) / (1 / total))
    assert ratio[0, -1].item() == pytest.approx(bright)
    assert ratio[0, 0].item() == pytest.approx(-bright)
    added = module.with_appearance(torch.zeros(2, 1, 2, 2), images, ratio)
    assert added[1, 0].flatten().tolist() == pytest.approx([bright, bright, -bright, -bright])


def test_a_mask_ends_at_a_half_and_a_training_image_is_unsure_around_it():
    odds = torch.tensor([0.3, 0.45, 0.55, 0.7]).logit().view(1, 1, 2, 2)
    held = torch.tensor([[True]])

    def cut(odds, held, training=()):
        return cut_at_half(map(probability, odds), held, training, 0.1)

    found = cut(odds, held, {0})
    assert found.flatten().tolist() == [0, 255, 255, 1]
    assert cut(odds, held).flatten().tolist() == [0, 0, 1, 1]
    assert not cut(odds, ~held, {0}).any()
    # of an image that holds the class, a mask without it says nothing of what is no class
    nothing = cut(odds - 9, held, {0})
    assert unsure_without_class(nothing, held).flatten().tolist() == [255] * 4
    assert unsure_without_class(found, held).tolist() == found.tolist()
    two = torch.cat([odds, odds.flip(3)], 1)
    assert cut(two, torch.tensor([[True, True]])).flatten().tolist() == [0, 0, 2, 1]
    certain = torch.tensor([20.0, 30.0]).view(1, 2, 1, 1)  # in float32 both would be 1
    assert cut(certain, torch.tensor([[True, True]])).item() == 2


def test_otsu_inside_the_tissue_finds_what_is_brighter_than_tissue():
    image = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    image[:, 2:7] = 100
    image[:, 3, 3] = 200
    masks = otsu_masks(image, torch.tensor([2]), inside=True)
    assert masks.nonzero().tolist() == [[0, 3, 3]]
    assert masks.max() == 2
    assert not otsu_masks(image, torch.tensor([0]), inside=True).any()


def test_brightness_is_that_around_a_pixel():
    image = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    image[0, 32, 32] = 255
    found = brightness(image)[0]
    assert found.argmax() == 32 * 64 + 32
    assert 0 < found[32, 33] < found[32, 32] < 255
