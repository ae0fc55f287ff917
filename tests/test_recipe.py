"""The study of a strong baseline: its trial losses by hand, and no test patch in the choice."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from config import UserError
from medood.data.folds import read_fold
from medood.data.labels import UNSURE
from medood.data.patients import region_of
from medood.training.step import Trainer
from studies import common, recipe
from studies.common import Recipe
from tests.conftest import TINY, write_region

CPU = torch.device("cpu")


@pytest.fixture
def four_pixels():
    """Logits (1, 3, 1, 4) and truth: background, class 1, class 1, unsure; all are told alike."""
    probability = torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1).expand(1, 3, 1, 4)
    return probability.log(), torch.tensor([[[0, 1, 1, UNSURE]]])


def test_the_dice_of_classes_by_hand(four_pixels):
    """Over three sure pixels, sums of .5, .3 and .2 each: 2 * .5 / 2.5, 2 * .6 / 2.9, about 0."""
    dice, true = recipe.dice_of_classes(*four_pixels)
    assert dice.tolist() == pytest.approx([1 / 2.5, 1.2 / 2.9, 0], abs=1e-4)
    assert true.tolist() == [1, 2, 0]


def test_the_entropy_leaves_unsure_pixels_out_and_weighs_the_others(four_pixels):
    logits, target = four_pixels
    plain = -(np.log(0.5) + 2 * np.log(0.3)) / 3
    assert recipe.entropy(logits, target).item() == pytest.approx(plain, rel=1e-5)
    weight = torch.tensor([[[5.0, 1.0, 1.0, 9.0]]])
    weighted = -(5 * np.log(0.5) + 2 * np.log(0.3)) / 7
    assert recipe.entropy(logits, target, weight).item() == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "dice"),
    [(recipe.ForegroundDice, (1.2 / 2.9) / 2), (recipe.PresentDice, (1 / 2.5 + 1.2 / 2.9) / 2)],
)
def test_the_trial_losses_by_hand(four_pixels, kind, dice):
    entropy = -(np.log(0.5) + 2 * np.log(0.3)) / 3
    found = kind.cost(None, *four_pixels, torch.ones(1)).item()
    assert found == pytest.approx(1 - dice + entropy, abs=1e-4)


def test_only_background_between_near_nuclei_is_a_gap():
    target = torch.zeros(1, 15, 32, dtype=torch.int64)
    target[0, 4:11, 4:8] = 1
    target[0, 4:11, 10:14] = 2  # two pixels beside it
    target[0, 4:11, 24:28] = 1  # ten pixels away
    target[0, 5, 8] = UNSURE
    found = recipe.gaps(target)[0]
    expected = torch.zeros(15, 32)
    expected[4:11, 8:10] = 1
    expected[5, 8] = 0
    torch.testing.assert_close(found, expected)


def test_each_trial_has_networks_of_its_own():
    kinds = [change.get("kind", Trainer) for change in recipe.CHANGES.values()]
    records = {str(kind.made_from(TINY)) for kind in kinds}
    assert len(records) == len(set(kinds)) == 4


def test_the_choice_never_sees_a_patch_that_the_fold_tests(patched):
    train, _, test = read_fold(dataclasses.replace(patched, split="region"), 1)
    regions = [f"{region_of(name)}_{i}_0.png" for i, name in enumerate(train)]  # each a region
    cfg = common.StudyConfig(**{**vars(patched)})
    tested = []
    for part in range(recipe.PARTS):
        found = recipe.within(regions, {}, cfg, part)
        trained = {image.name for image, _ in found.files}
        assert trained.isdisjoint(found.test)
        assert trained | set(found.test) == set(regions)
        tested += found.test
    assert sorted(tested) == sorted(regions)
    assert set(tested).isdisjoint(test)


def test_a_change_is_settings_a_trainer_or_more_epochs():
    plain = Recipe(TINY, [], [], [])
    longer = recipe.changed(plain, recipe.CHANGES["twice as long"])
    assert longer.cfg == dataclasses.replace(TINY, loss="dice_ce", epochs=2 * TINY.epochs)
    trial = recipe.changed(plain, recipe.CHANGES["gaps"])
    assert (trial.kind, trial.cfg.loss) == (recipe.Gaps, "dice_ce")
    assert recipe.changed(plain, recipe.CHANGES["dice"]).cfg == TINY


def test_settings_that_the_study_sets_itself_are_refused(tiny):
    cfg = recipe.RecipeConfig(**{**vars(tiny), "loss": "dice_ce"})
    with pytest.raises(UserError, match="the study sets the loss itself"):
        recipe.recipe(cfg)


def test_a_fold_with_too_few_regions_is_refused(tiny):
    cfg = recipe.RecipeConfig(**{**vars(tiny), "split": "region", "folds": (1,)})
    with pytest.raises(UserError, match="fold 1: fewer than 3 regions train"):
        recipe.recipe(cfg)


def test_the_study_runs_to_its_tables_and_figure(tmp_path, capsys):
    for seed in range(6):
        write_region(tmp_path, f"region_{seed}", 64, 64, seed)
    cfg = recipe.RecipeConfig(
        **{**vars(TINY), "workspace": tmp_path, "encoder": "tu-test_resnet", "split": "region"},
        arms=("mirrors", "gaps", "together"),
        parts=1,
    )
    cfg = dataclasses.replace(cfg, epochs=1, folds=(1,))
    recipe.recipe(cfg)
    out = tmp_path / "reports" / "studies" / f"recipe_{cfg.model_name}"
    content = json.loads(out.with_suffix(".json").read_text())
    rows = content["rows"]
    assert [row["arm"] for row in rows[:4]] == ["dice_ce", "mirrors", "gaps", "together"]
    assert [row["arm"] for row in rows[4:]] == ["dice, test", "dice_ce, test", "together, test"]
    assert rows[0]["network"] == rows[1]["network"] != rows[2]["network"]  # mirrors only test
    assert set(content["differences"]) >= {"gaps - dice_ce", "together - dice, test"}
    assert "Test regions" in out.with_suffix(".md").read_text()
    assert out.with_suffix(".png").exists()
