"""The study of a strong baseline: no test patch in the choice."""

import dataclasses
import json

import pytest

from config import UserError
from studies import recipe
from studies.common import Recipe
from tests.conftest import TINY, write_region


def test_a_change_is_settings_or_more_epochs():
    plain = Recipe(TINY, [], [], [])
    longer = recipe.changed(plain, recipe.CHANGES["twice as long"])
    assert longer.cfg == dataclasses.replace(TINY, loss="dice_ce", epochs=2 * TINY.epochs)
    assert recipe.changed(plain, recipe.CHANGES["dice"]).cfg == TINY


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"loss": "dice_ce"}, "the study sets the loss itself"),
        ({"split": "region", "folds": (1,)}, "fold 1: fewer than 3 regions train"),
    ],
)
def test_what_the_study_cannot_compare_is_refused(tiny, changed, said):
    with pytest.raises(UserError, match=said):
        recipe.recipe(recipe.RecipeConfig(**vars(tiny) | changed))


def test_the_study_runs_to_its_tables_and_figure(tmp_path, quick_report):
    for seed in range(6):
        write_region(tmp_path, f"region_{seed}", 64, 64, seed)
    own = {"workspace": tmp_path, "split": "region", "epochs": 1, "folds": (1,)}
    cfg = recipe.RecipeConfig(**vars(TINY) | own, arms=("mirrors", "together"), parts=1)
    recipe.recipe(cfg)
    out = tmp_path / "reports" / "studies" / f"recipe_{cfg.model_name}"
    content = json.loads(out.with_suffix(".json").read_text())
    rows = content["rows"]
    assert [row["arm"] for row in rows[:3]] == ["dice_ce", "mirrors", "together"]
    assert [row["arm"] for row in rows[3:]] == ["dice, test", "dice_ce, test", "together, test"]
    assert rows[0]["network"] == rows[1]["network"] != rows[2]["network"]  # mirrors only test
    assert set(content["differences"]) >= {"mirrors - dice_ce", "together, test - dice, test"}
    assert "Less dice, test" in out.with_suffix(".md").read_text()
    assert out.with_suffix(".png").exists()
