"""Patches are held in memory, and what goes over them takes a few at a time."""

import numpy as np
import pytest
import torch

from config import UserError
from medood.data import dataset
from medood.data.dataset import Patches, load_patches
from medood.data.files import in_threads
from medood.data.folds import read_fold
from medood.data.workspace import id_files
from medood.evaluation.figures import share_right
from medood.training import segmentation as training
from tests.conftest import TINY


def test_patches_that_do_not_fit_into_memory_are_refused_before_they_are_read(patched, monkeypatch):
    files = id_files(patched.workspace, read_fold(patched, 1).train)
    sizes = patched.patch_size, len(patched.class_names)
    size = 4 * len(files) * patched.patch_size**2
    monkeypatch.setattr(dataset, "available_memory", lambda: size)
    assert len(load_patches(files, *sizes)) == len(files)
    monkeypatch.setattr(dataset, "available_memory", lambda: size - 1)
    monkeypatch.setattr(dataset, "read_image", lambda _: 1 / 0)
    with pytest.raises(UserError, match=rf"{len(files)} patches take .* GB of memory, .*: close"):
        load_patches(files, *sizes)


def test_threads_give_every_result_in_order_and_raise_what_is_raised():
    count = 3001
    assert in_threads(lambda item: item + 1, range(count)) == list(range(1, count + 1))
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda item: 1 // item, [1, 0])


def test_patches_are_processed_a_few_at_a_time_with_the_same_results():
    rng = np.random.default_rng(0)
    truth, predicted = (torch.from_numpy(rng.integers(0, 7, (150, 8, 8), np.uint8)) for _ in "ab")
    truth[truth == 3] = 0
    truth[149, 0, 0] = 3  # in the last chunk
    truth[truth == 5] = 0
    names, images = [f"{k}.png" for k in range(150)], torch.zeros(150, 8, 8, 3, dtype=torch.uint8)
    patches = Patches(names, images, truth, torch.zeros(150, dtype=torch.bool))
    message = training.without_classes(TINY, patches)
    assert message.startswith(f"no training patch contains {TINY.class_names[5]}: the network")
    right = share_right(patches, predicted)
    assert torch.equal(right, (predicted == truth).float().mean((1, 2)))
