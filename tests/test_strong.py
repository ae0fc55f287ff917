"""The settings of a strong baseline: each does what its formula says, and nothing at rest."""

import dataclasses

import pytest
import torch

from medood.data.dataset import Patches
from medood.models.inference import Predictor
from medood.models.network import build_model
from medood.runs.products import BASELINE
from medood.training import augmentation, batches
from medood.training.augmentation import augment, draw_augmentation, parameters_of, stains_of
from tests.conftest import TINY
from tests.small_networks import seeded


def some_images(count):
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=seeded())


HEMATOXYLIN, EOSIN = augmentation.STAINS[:2]


@pytest.mark.parametrize(
    ("density", "change", "expected"),
    [
        # of a pixel with one unit of hematoxylin, half as much again: its density grows by half
        (HEMATOXYLIN, [0.5, 0, 0, 0, 0, 0], 1.5 * HEMATOXYLIN),
        # 0.1 units of eosin on white, whose density is 0
        (0 * EOSIN, [0, 0, 0, 0, 0.1, 0], 0.1 * EOSIN),
    ],
)
def test_more_of_a_stain_by_hand(density, change, expected):
    images = (256 * 10**-density - 1).round().to(torch.uint8).expand(1, 4, 4, 3)
    still = parameters_of(torch.zeros(1, augmentation.RANDOM))
    both = torch.cat([still, stains_of(torch.tensor([change]))], 1)
    found, _ = augment(images, torch.zeros(1, 4, 4, dtype=torch.uint8), both)
    atol = 1.5 if density.any() else 0.01  # the stained pixel was rounded
    torch.testing.assert_close(found[0, :, 2, 2], 256 * 10**-expected - 1, atol=atol, rtol=0)


def test_stains_leave_all_else_as_it_was_drawn():
    plain, stained = draw_augmentation(5, 7), draw_augmentation(5, 7, stain=0.05)
    torch.testing.assert_close(stained[:, : augmentation.PARAMETERS], plain, atol=0, rtol=0)
    assert stained.shape == (5, augmentation.PARAMETERS + 12)
    images, masks = some_images(5), torch.zeros(5, 32, 32, dtype=torch.uint8)
    none = torch.cat([plain, stains_of(torch.zeros(5, 6))], 1)
    ours, theirs = augment(images, masks, plain)[0], augment(images, masks, none)[0]
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)
    assert (augment(images, masks, stained)[0] - ours).abs().mean() > 1


def test_a_rare_class_is_drawn_as_often_as_its_absence_and_ood_patches_as_the_mean():
    """Of four ID patches one holds class 2: it weighs 4, the others 4 / 3 each, 2 on average."""
    masks = torch.zeros(5, 4, 4, dtype=torch.uint8)
    masks[:4, 0], masks[0, 1] = 1, 2
    names = [f"region_{i}_0.png" for i in range(5)]
    patches = Patches(names, torch.zeros(5, 4, 4, 3), masks, torch.arange(5) == 4)
    found = batches.rarity(patches, 4)  # class 1 is in all, class 3 in none
    assert (found / found.sum()).tolist() == pytest.approx([0.4, 2 / 15, 2 / 15, 2 / 15, 0.2])


def test_an_epoch_of_rare_sampling_has_as_many_patches_and_more_of_the_rare():
    likely = torch.tensor([1.0] * 99 + [99.0])
    found = torch.cat(batches.batches(TINY, 1, 0, 100, likely))
    assert len(found) == 100
    assert 35 < (found == 99).sum() < 65


def test_a_mirrored_prediction_turns_with_the_image_and_is_the_mean_by_hand():
    torch.manual_seed(0)
    model, images = build_model(TINY).eval(), some_images(2)
    plain = Predictor(TINY, model)
    ours = Predictor(dataclasses.replace(TINY, mirrors=True), model)
    seen = []
    for turns in range(4):
        turned = images.rot90(turns, (1, 2))
        seen.append(plain(turned).rot90(-turns, (2, 3)))
        seen.append(plain(turned.flip(2)).flip(3).rot90(-turns, (2, 3)))
    torch.testing.assert_close(ours(images), torch.stack(seen).mean(0), atol=2e-5, rtol=0)
    turned = ours(images.rot90(1, (1, 2)).flip(1))
    torch.testing.assert_close(turned, ours(images).rot90(1, (2, 3)).flip(2), atol=2e-5, rtol=0)
    assert (plain(images) - ours(images)).abs().max() > 1e-4


def test_a_network_of_before_these_settings_is_still_up_to_date(patched):
    record = BASELINE.made_from(patched, 1)["settings"]
    assert not record.keys() & {"stain", "sampling"}
    for name, value in {"sampling": "rare", "stain": 0.1}.items():
        changed = dataclasses.replace(patched, **{name: value})
        assert BASELINE.made_from(changed, 1)["settings"] == record | {name: value}
