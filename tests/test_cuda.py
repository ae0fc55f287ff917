"""What holds on a GPU: on one where there is one, else on a stand-in that is as strict.

The stand-in (tests/standin.py) computes on the CPU, so results can be compared; it refuses what a
GPU refuses, and says what would make the host wait. It knows nothing of a GPU's rounding or speed.
"""

import contextlib
import dataclasses
import shutil

import numpy as np
import pytest
import torch

from medood.data.files import read_table
from medood.data.folds import read_fold
from medood.data.images import write_png
from medood.data.workspace import model_folder, ood_files
from medood.models.checkpoints import load_model
from medood.models.network import build_model, pick_device
from medood.training import losses, segmentation
from medood.training.batches import storage_device
from medood.training.loop import train_epoch
from medood.training.segmentation import Trainer
from predict import PredictConfig, predict_images
from rank_prune_ood import count_seen
from test import evaluate
from tests.conftest import TINY, as_settings_of
from tests.gpus import CPU, HERE, SMALL, some_patches, trained
from tests.small_weak import stopped_after
from train import train
from weak.generator import Sees, heal
from weak.settings import TransferConfig
from weak.train_transfer import Images
from weak.train_transfer import Trainer as TransferTrainer


def test_training_gives_what_it_gives_on_the_cpu(gpu):
    """The rest of a batch, of ID and OoD patches, lambda and unsure pixels included."""
    cfg = dataclasses.replace(SMALL, loss="dice_ce", ood_weight=0.5)
    (_, expected), (_, found) = (trained(cfg, of, epochs=1) for of in (CPU, gpu.device))
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-4)


def test_bfloat16_computes_near_float32_and_keeps_the_weights_in_it():
    cfg = dataclasses.replace(SMALL, precision="bfloat16", loss="dice_ce")
    trainer, found = trained(cfg, torch.device("cuda") if HERE else CPU)
    _, expected = trained(dataclasses.replace(cfg, precision="float32"), CPU)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.05)
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}


def test_float32_is_not_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    Trainer(SMALL, 1, some_patches(8), pick_device("cpu"))
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("loss", "stored"), [("dice", "there"), ("dice_ce", "on the CPU")])
def test_the_host_never_waits_in_an_epoch(gpu, loss, stored, monkeypatch):
    cfg = dataclasses.replace(SMALL, loss=loss)
    storage = gpu.device if stored == "there" else CPU
    monkeypatch.setattr("medood.training.batches.storage_device", lambda *_: storage)
    trainer = Trainer(cfg, 1, some_patches(20), gpu.device)
    train_epoch(trainer, 0)  # torch prepares some things once
    batches = iter(trainer.begin_epoch(1))
    _, second = next(batches), next(batches)  # the indices are copied at the start of an epoch
    with gpu.never_waiting():
        trainer.step(*second)
        trainer.step(*next(batches))


def test_patches_that_take_more_than_half_of_a_gpu_stay_in_memory(monkeypatch):
    patches, cuda = some_patches(20), torch.device("cuda")
    half = 2 * (patches.images.nbytes + patches.masks.nbytes)
    for free, expected in ((half, "cuda"), (half - 1, "cpu")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 8 * free))
        assert storage_device(patches, cuda).type == expected


def test_generators_learn_the_same_and_the_host_waits_for_nothing(gpu):
    cfg = as_settings_of(TransferConfig, TINY, batch_size=2)
    images = some_patches(6).images
    kinds = [Images(part, torch.zeros(3)) for part in images.split(3)]
    found = {}
    for device in (CPU, gpu.device):
        torch.manual_seed(0)
        sees = Sees(cfg, [build_model(cfg)], 0)
        trainer = TransferTrainer(cfg, 1, *kinds, sees, device)
        batch = next(trainer.begin_epoch(0))
        trainer.step(*batch)  # the first one builds the optimisers' states
        with gpu.never_waiting() if device == gpu.device else contextlib.nullcontext():
            losses = trainer.step(*batch)
        found[device.type] = {name: loss.item() for name, loss in losses.items()}
    assert found[gpu.device.type] == pytest.approx(found["cpu"], rel=1e-3)
    healed = heal(trainer.model["generator"].eval(), images, gpu.device)
    assert healed.image.device == CPU


def asking(logits, target, *rest):
    loss = losses.segmentation_loss(logits, target, *rest)
    return loss if loss.item() > 0 else -loss


def misplacing(logits, target, *rest):
    return losses.segmentation_loss(logits, target.cpu(), *rest)


@pytest.mark.parametrize(("fault", "said"), [(asking, "wait|sync"), (misplacing, "device")])
def test_a_host_that_waits_or_a_mask_on_the_cpu_would_be_found(gpu, fault, said, monkeypatch):
    monkeypatch.setattr(segmentation, "segmentation_loss", fault)
    with pytest.raises(RuntimeError, match=said):
        test_the_host_never_waits_in_an_epoch(gpu, "dice", "there", monkeypatch)


def test_every_step_runs_and_gives_what_the_cpu_gives(gpu, one_fold, quick_report, tmp_path):
    on_cpu = dataclasses.replace(one_fold, select="val", epochs=1)
    on_gpu = dataclasses.replace(on_cpu, device=str(gpu.device))
    train(on_gpu)
    folder = model_folder(on_gpu, 1, ood=False)
    evaluate(on_gpu, (folder,))
    model = load_model(folder, on_cpu)
    assert {weight.device for weight in model.parameters()} == {CPU}

    files = ood_files(on_cpu.workspace, read_fold(on_cpu, 1).train)
    seen, expected = (count_seen(cfg, model, files, "mining") for cfg in (on_gpu, on_cpu))
    assert np.abs(seen - expected).sum() <= 0.01 * expected.sum()

    write_png(tmp_path / "new.png", some_patches(1, 200).images[0].numpy())
    written = []
    for cfg, name in ((on_gpu, "gpu"), (on_cpu, "cpu")):
        out = tmp_path / name
        new = {"image": (tmp_path / "new.png",), "checkpoint": folder, "image_mpp": 0.5}
        predict_images(as_settings_of(PredictConfig, cfg, out=out, **new))
        written.append(next(out.glob("*_mask.tif")).read_bytes())
    assert len(written[0]) == len(written[1])
    if not HERE:
        assert written[0] == written[1]


def test_an_interrupted_training_goes_on_and_may_change_its_device(gpu, one_fold):
    on_gpu, logs = dataclasses.replace(one_fold, device=str(gpu.device)), []
    for first, then in ((on_gpu, one_fold), (one_fold, on_gpu)):
        with stopped_after(Trainer, 1), pytest.raises(KeyboardInterrupt):
            train(first)
        train(then)
        folder = model_folder(first, 1, ood=False)
        logs.append([float(row["loss"]) for row in read_table(folder / "log.csv")])
        shutil.rmtree(folder)
    np.testing.assert_allclose(logs[1], logs[0], rtol=1e-3)
