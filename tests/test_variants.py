"""The variants of the OoD idea: equal steps, terms by hand, patches that are what they say."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from config import UserError
from medood.data.images import UNSURE, read_image, read_mask, write_png
from medood.evaluation.statistics import Difference
from medood.training.augmentation import draw_augmentation
from medood.training.losses import segmentation_loss
from studies import common, report, variants
from studies.controls import EQUAL
from tests.conftest import TINY

CPU = torch.device("cpu")
SMALL = dataclasses.replace(TINY, encoder="tu-test_resnet", ood_weight=0.0, epochs=3)


@pytest.fixture
def plan(patched):
    """Settings of a plan, in which every candidate counts as hard: no network is needed."""
    settings = {**vars(patched), "encoder": "tu-test_resnet", "folds": (1,), "plan": True}
    return variants.VariantsConfig(**settings)


@pytest.mark.parametrize("arm", variants.ARMS)
def test_every_variant_takes_the_steps_of_med_ood_on_its_training_side(plan, arm):
    med_ood, found = common.med_ood(plan, 1), variants.ARMS[arm](plan, 1)
    plain = common.baseline(plan, 1)
    assert found.test == med_ood.test
    if arm != EQUAL:
        assert (len(found.files), found.steps) == (len(med_ood.files), med_ood.steps)
        assert found.files[: len(plain.files)] == plain.files
    assert {image.name for image, _ in found.files}.isdisjoint(found.test)


# ---------------------------------------------------------------- trainers


def logits_of(*patches):
    """Logits (N, 2, 1, 1) of patches of one pixel."""
    return torch.tensor(patches).view(len(patches), 2, 1, 1)


def test_the_uniform_term_by_hand():
    """Of one OoD pixel of probabilities .8 and .2: half of -(log .8 + log .2) / 2."""
    logits = logits_of([0.8, 0.2], [0.5, 0.5]).log()
    found = variants.uniform(logits, torch.tensor([True, False]))
    assert found.item() == pytest.approx(-0.5 * (np.log(0.8) + np.log(0.2)) / 2, rel=1e-5)


def test_the_energy_term_by_hand():
    """Energies of -3 (ID) and -7 (OoD): .1 * ((-3 + 23)^2 + (-5 + 7)^2) = 40.4."""
    half = np.log(0.5)
    logits = logits_of([3 + half, 3 + half], [7 + half, 7 + half])
    found = variants.energy(logits, torch.tensor([False, True]))
    assert found.item() == pytest.approx(40.4, rel=1e-4)


def test_a_batch_without_ood_patches_has_no_term():
    logits = logits_of([0.0, 1.0])
    assert variants.uniform(logits, torch.tensor([False])) == 0


def batch():
    generator = torch.Generator().manual_seed(0)
    shape = 8, SMALL.patch_size, SMALL.patch_size
    images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)
    masks = torch.randint(0, 7, shape, dtype=torch.uint8, generator=generator)
    masks[4:] = 0
    weight = torch.tensor([1.0] * 4 + [0.0] * 4)
    return images, masks, weight, draw_augmentation(8, 0)


@pytest.mark.parametrize(
    ("kind", "counting"),
    [(variants.FirstThird, [1, 0, 0]), (variants.LastThird, [0, 0, 1])],
)
def test_ood_patches_count_in_their_third_of_the_epochs_alone(kind, counting):
    trainer = kind(SMALL, CPU)
    logits, target = torch.randn(2, 7, 4, 4), torch.randint(0, 7, (2, 4, 4))
    weight = torch.tensor([1.0, 0.0])
    for counts in counting:
        trainer.begin_epoch(1e-3)
        found = trainer.cost(logits, target, weight)
        expected = segmentation_loss(logits, target, torch.tensor([1.0, counts]), SMALL.loss)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", [variants.Uniform, variants.Energy])
def test_an_exposure_trains_a_step(kind):
    trainer = kind(SMALL, CPU)
    trainer.begin_epoch(1e-3)
    loss, norm = trainer.step(*batch())
    assert loss.isfinite()
    assert norm > 0


# ---------------------------------------------------------------- patches


def test_holes_are_unsure_and_tissue_is_background(patched, monkeypatch):
    cfg = variants.VariantsConfig(**{**vars(patched), "folds": (1,)})
    plain = common.baseline(cfg, 1)
    cut = common.candidates(cfg, 1)[:3]
    monkeypatch.setattr(variants, "extra", lambda cfg, fold: cut)
    monkeypatch.setattr(
        variants, "adding", lambda cfg, fold, files: dataclasses.replace(plain, files=files)
    )
    found = variants.holes_unsure(cfg, 1).files
    assert [image for image, _ in found] == [image for image, _ in cut]
    for image, mask in found:
        truth = read_mask(cfg.workspace / "Mask_Patchs" / image.name, 7)
        np.testing.assert_array_equal(read_mask(mask, 7), np.where(truth > 0, UNSURE, 0))


def test_a_recomposed_patch_has_the_nuclei_of_one_and_the_colours_of_the_other():
    """By hand: backgrounds of 96 and 104, and of 46 and 54, in turns: 200 becomes 150."""
    stripes = np.where(np.arange(20) % 2, 104, 96).astype(np.uint8)
    image = np.broadcast_to(stripes[:, None], (20, 20, 3)).copy()
    other, mask = image - 50, np.zeros((20, 20), np.uint8)
    image[5:16, 4:16], mask[5:16, 4:16] = 200, 2
    found = variants.recompose(image, mask, other, other, np.zeros_like(mask))
    assert (found[10, 10] == 150).all()
    np.testing.assert_array_equal(found[18:], other[18:])
    assert 54 < found[10, 4, 0] < 150  # the border, inside


def test_recomposed_masks_are_those_of_the_nuclei(patched):
    cfg = variants.VariantsConfig(**{**vars(patched), "folds": (1,), "plan": False})
    plain = common.baseline(cfg, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            variants, "adding", lambda cfg, fold, files: dataclasses.replace(plain, files=files)
        )
        found = variants.recomposed(cfg, 1).files
        changed = cfg.workspace / "Mask_Patchs" / found[0][0].name
        write_png(changed, np.full_like(read_mask(changed, 7), 5))
        again = variants.recomposed(cfg, 1).files
    assert len(found) == len(plain.files)
    assert again == found
    for image, mask in found[:6]:
        truth = read_mask(cfg.workspace / "Mask_Patchs" / image.name, 7)
        np.testing.assert_array_equal(read_mask(mask, 7), truth)
        assert read_image(image).shape == truth.shape + (3,)


def test_unsure_ground_stays_unsure_beside_the_nuclei(patched):
    folder = patched.workspace / "Mask_Patchs"
    cfg = variants.VariantsConfig(**{**vars(patched), "folds": (1,)})
    for path in folder.glob("*.png"):  # the left column of every patch
        mask = read_mask(path, 7)
        mask[:, 0] = UNSURE
        write_png(path, mask)
    plain = common.baseline(cfg, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            variants, "adding", lambda cfg, fold, files: dataclasses.replace(plain, files=files)
        )
        found = variants.recomposed(cfg, 1).files
    assert all((read_mask(mask, 7)[:, 0] == UNSURE).all() for _, mask in found)


# ---------------------------------------------------------------- the study


def test_arms_go_on_as_the_rule_says(patched, monkeypatch):
    """One helps, one is undecided after both folds, and one does harm on the first."""
    cfg = variants.VariantsConfig(
        **{**vars(patched), "encoder": "tu-test_resnet", "epochs": 1, "folds": (1, 2)},
        arms=("Med-OoD", "lambda 0.1", "lambda 0.5"),
        seeds=2,
    )
    found = {
        EQUAL: Difference(0.0, 0.0, 0.0),
        "Med-OoD": Difference(-0.01, -0.02, 0.01),
        "lambda 0.1": Difference(0.01, -0.01, 0.02),
        "lambda 0.5": Difference(0.02, 0.01, 0.03),
    }
    real = report.compare
    monkeypatch.setattr(
        report,
        "compare",
        lambda results, arm, against: real(results, arm, against) | {variants.CONTRAST: found[arm]},
    )
    variants.variants(cfg)
    out = cfg.workspace / "reports" / "studies" / f"variants_{cfg.model_name}"
    trained: dict[str, set] = {}
    for row in json.loads(out.with_suffix(".json").read_text())["rows"]:
        trained.setdefault(row["arm"], set()).add((row["fold"], row["seed"]))
    both = {(1, 0), (2, 0)}
    every = both | {(1, 1), (2, 1)}
    assert trained == {EQUAL: every, "Med-OoD": every, "lambda 0.1": both, "lambda 0.5": {(1, 0)}}
    assert "bg_to_fg_matched" in out.with_suffix(".md").read_text()


def test_an_arm_of_no_such_name_is_refused(patched):
    cfg = variants.VariantsConfig(**{**vars(patched), "arms": ("medood",)})
    with pytest.raises(UserError, match="arms: 'medood' is none of baseline, equal steps, Med-OoD"):
        variants.variants(cfg)
