"""The smallest change that turns nearly all pixels, and what is said of it."""

import sys

import pytest
import torch

from config import UserError
from medood.attacks.measuring import conditions_of
from medood.attacks.minimal import smallest_change
from robust.attacked import Attacked
from robust.by_change import change_table, changes_of
from tests.small_networks import linear


def test_the_smallest_change_of_a_linear_network():
    """Each pixel is 4/255 from its boundary but for an unsure one, which may stay."""
    model = linear([[0.0], [1.0], [-1.0]], [0.0, -0.5, -9.0])
    images = torch.full((1, 1, 4, 4), 0.5 + 4 / 255)
    target = torch.ones(1, 4, 4, dtype=torch.long)
    target[0, 0, 0] = 255
    found = smallest_change(model, images, target, steps=500)
    assert (model(found).argmax(1)[target == 1] == 0).all()
    assert 3.99 < 255 * (found - images).abs().max() < 4.1
    with pytest.raises(UserError, match="needs 3 classes, the network has 2"):
        smallest_change(linear([[0.0], [1.0]], [0.0, 0.0]), images, target)


def test_without_adv_lib_the_cure_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "adv_lib.attacks.segmentation", None)
    with pytest.raises(UserError, match="run `pip install --no-deps adv-lib`"):
        smallest_change(linear([[0.0], [1.0]], [0.0, 0.0]), torch.zeros(1, 1, 2, 2), None)


def test_a_patch_that_no_change_turns_has_none():
    confusion = torch.zeros(2, 3, 2, 2, dtype=torch.int64)
    confusion[1, :, 1] = torch.tensor([[200, 0], [198, 2], [190, 10]])
    change = torch.tensor([[0.0, 0, 0], [2 / 255, 4 / 255, 6 / 255]])
    others = [torch.zeros(2, 3)] * 6
    names = ["a.png", "b.png", "c.png"]
    attacked = Attacked(names, conditions_of([], [1.0]), change, change, confusion, *others[1:])
    changes = changes_of({1: {"baseline": attacked}})
    assert changes[1]["baseline"] == pytest.approx({"a.png": 2, "b.png": 4, "c.png": None})
    assert change_table(changes)[1] == [["baseline", "2 of 3", "3.0 [2.5, 3.5]"]]
