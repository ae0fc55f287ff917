"""Patches beyond max_memory: in a file that nobody sees, with nothing else changed by it."""

import dataclasses
import errno
import gc
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from config import UserError
from medood.data import memory as store
from medood.data.dataset import Patches, load_patches
from medood.data.files import in_threads
from medood.data.folds import read_fold
from medood.data.workspace import id_files, model_folder, ood_files
from medood.evaluation.figures import share_right
from medood.evaluation.testing import score_networks
from medood.runs.provenance import network_made_from
from medood.training import loop as training
from medood.training.batches import storage_device
from tests.conftest import TINY

CPU = torch.device("cpu")
NOTHING = 1e-9  # gigabytes, less than a patch


def limited(cfg, max_memory=NOTHING):
    settings = {"folds": (1,), "encoder": "tu-test_resnet"}
    return dataclasses.replace(cfg, max_memory=max_memory, **settings)


def mapped_files(folder):
    """Return the lines of this process's map of memory that lead to files in a folder."""
    gc.collect()
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if f"{folder.resolve()}/" in line]


needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")


@pytest.mark.parametrize("select", ["last", "val"])
def test_training_and_test_are_the_same_to_the_bit_from_memory_and_from_a_file(
    patched, select, capsys
):
    results = []
    for cfg in (limited(patched, 1.0), limited(patched)):
        cfg = dataclasses.replace(cfg, select=select)
        train, val, test = read_fold(cfg, 1)
        folder = model_folder(cfg, 1, ood=False)
        files = id_files(cfg, train) + ood_files(cfg, 1, train[:5])
        training.train_fold(cfg, 1, files, id_files(cfg, val), folder)
        tested = score_networks(cfg, {"baseline": folder}, test, id_files(cfg, train), "test")
        results.append(((folder / "model.safetensors").read_bytes(), tested))
        printed = capsys.readouterr().out
        assert ("lie in a file" in printed) == tested.patches.mapped == (cfg.max_memory == NOTHING)
        shutil.rmtree(folder)
    (weights, tested), (weights_of_file, tested_of_file) = results
    assert weights == weights_of_file
    assert tested.scores == tested_of_file.scores
    assert torch.equal(tested.predictions["baseline"], tested_of_file.predictions["baseline"])


def test_max_memory_is_no_reason_to_train_again(patched):
    files = id_files(patched, read_fold(patched, 1).train)
    sizes = 1.0, NOTHING
    records = [network_made_from(limited(patched, size), 1, files) for size in sizes]
    assert records[0] == records[1]


@needs_proc
def test_the_file_lies_in_the_workspace_without_a_name_and_goes_with_the_patches(patched):
    cfg = limited(patched)
    before = sorted(cfg.workspace.rglob("*"))
    patches = load_patches(cfg, id_files(cfg, read_fold(cfg, 1).train))
    first = patches.images[:1]
    assert len(mapped_files(cfg.workspace)) == 2  # images and masks
    assert sorted(cfg.workspace.rglob("*")) == before
    del patches
    assert len(mapped_files(cfg.workspace)) == 1  # a part of it is in use
    assert first.any()
    del first
    assert not mapped_files(cfg.workspace)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system reserves no space")
def test_a_disk_without_room_ends_in_a_sentence_before_anything_is_read(patched, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"takes no file of .* GB \(No space left on device\).*: "):
        load_patches(limited(patched), id_files(patched, read_fold(patched, 1).train))
    assert not list(patched.workspace.glob(".*.partial"))


def test_a_system_that_reserves_no_space_maps_all_the_same(patched, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    files = id_files(patched, read_fold(patched, 1).train)
    of_file, of_memory = load_patches(limited(patched), files), load_patches(patched, files)
    assert of_file.mapped
    assert not of_memory.mapped
    assert torch.equal(of_file.images, of_memory.images)
    assert torch.equal(of_file.masks, of_memory.masks)


def test_the_limit_is_of_all_patches_that_are_held(patched):
    files = id_files(patched, read_fold(patched, 1).train)
    gc.collect()
    one = 4 * len(files) * patched.patch_size**2
    cfg = limited(patched, (store.held_memory() + 1.5 * one) / store.GB)
    held = [load_patches(cfg, files), load_patches(cfg, files)]
    assert [patches.mapped for patches in held] == [False, True]
    del held
    gc.collect()
    assert not load_patches(cfg, files).mapped


def test_the_default_is_half_of_the_memory_that_the_machine_or_the_job_has(monkeypatch):
    assert store.memory_limit(TINY) == store._machine_memory() / 2
    assert 1e8 < store.memory_limit(TINY) < 1e14
    monkeypatch.setattr(store, "_group_limits", lambda: [10**6, 10**7])
    assert store.memory_limit(TINY) == 10**6 / 2
    monkeypatch.setattr(store, "_group_limits", list)
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert store.memory_limit(TINY) == store.ASSUMED / 2


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
    assert message == f"no training patch holds {TINY.class_names[5]}: the network will not know it"
    right = share_right(patches, {"a": predicted})["a"]
    assert torch.equal(right, (predicted == truth).float().mean((1, 2)))


def test_patches_stay_off_a_gpu_that_has_no_room_for_them(monkeypatch):
    images, masks = (
        torch.zeros(10, 4, 4, 3, dtype=torch.uint8),
        torch.zeros(10, 4, 4, dtype=torch.uint8),
    )
    patches = Patches([""] * 10, images, masks, torch.zeros(10, dtype=torch.bool))
    gpu = torch.device("cuda")
    for free, storage in ((1280, gpu), (1279, CPU)):  # the patches are 640 bytes
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10**12))
        assert storage_device(patches, gpu) == storage
    assert storage_device(dataclasses.replace(patches, mapped=True), gpu) == CPU
    assert storage_device(patches, CPU) == CPU
