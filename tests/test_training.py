"""Training: one loop, exact after a kill, equal for equal settings, opened by smp anywhere."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from config import UserError
from estimate_pct import estimate_pct
from main import look
from medood.data.files import csv_text, digest, read_table, write_json
from medood.data.folds import read_fold
from medood.data.images import write_png
from medood.data.ood_set import ESTIMATE, columns, read_estimate
from medood.data.workspace import fold_path, id_files, model_folder, pct_path, ranking_path
from medood.models.checkpoints import load_model
from medood.runs import products
from medood.training import batches
from medood.training import segmentation as training
from medood.training.state import TrainingState
from rank_prune_ood import rank_prune_ood
from tests.conftest import TINY
from train import train
from train_ood import train_ood


def weights(cfg, fold=1, ood=False):
    # their hash: if megabytes differ, pytest would look for minutes where
    return digest((model_folder(cfg, fold, ood) / "model.safetensors").read_bytes())


def test_equal_runs_give_equal_bytes_whatever_other_folds_are_trained(patched, trained):
    # the list is the user's: no seed's
    fold_path(patched.workspace, 1).with_suffix(".json").unlink()
    train(dataclasses.replace(patched, folds=(2, 1)))
    assert weights(patched) == weights(trained)
    train(dataclasses.replace(patched, folds=(1,), seed=1))
    assert weights(patched) != weights(trained)


def test_a_resume_of_other_settings_is_not_continued(one_fold, trained, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        spoil(patch, 5, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(dataclasses.replace(one_fold, lr=2e-3))
    train(one_fold)
    assert "not continued" in capsys.readouterr().out
    assert weights(one_fold) == weights(trained)


def test_smp_opens_what_train_saved(trained):
    import segmentation_models_pytorch as smp

    folder = model_folder(trained, 1, ood=False)
    theirs = smp.from_pretrained(folder).eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(x), load_model(folder, trained)(x), rtol=0, atol=0)
        assert theirs(x).shape == (1, 7, 32, 32)
    run = json.loads((folder / "run.json").read_text())
    assert run["settings"]["encoder"] == "tu-test_resnet"
    assert (run["fold"], run["ood_patches"]) == (1, 0)
    assert run["id_patches"] == len(read_fold(trained, 1).train)
    assert run["versions"]["torch"] == torch.__version__.split("+")[0]
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert len(set(modes.values())) == 1, modes  # whoever can read the rest can read the weights


def test_the_last_10_of_36_epochs_run_at_a_tenth_of_the_rate():
    for epochs, fast in ((36, 26), (18, 13)):
        cfg = dataclasses.replace(TINY, epochs=epochs, lr=1e-4)
        rates = [training.learning_rate(cfg, epoch) for epoch in range(epochs)]
        assert rates == [1e-4] * fast + [1e-5] * (epochs - fast)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 20])
def test_an_epoch_sees_every_patch_once_except_a_lone_last_one(count):
    found = batches.batches(TINY, fold=1, epoch=0, count=count)
    seen = torch.cat(found).tolist()
    assert len(seen) == len(set(seen)) == (8 if count == 9 else count)
    assert all(len(part) > 1 for part in found) or count == 1


def test_id_and_ood_patches_are_shuffled_together_in_each_epoch_anew():
    found, other = (batches.batches(TINY, fold=1, epoch=epoch, count=400) for epoch in (0, 1))
    mixed = [part.min() < 200 <= part.max() for part in found]  # the last 200 are OoD
    assert sum(mixed) > 40  # of 50
    assert not torch.equal(torch.cat(found), torch.cat(other))


def test_med_ood_trains_on_the_hardest_share(one_fold, monkeypatch):
    names = read_fold(one_fold, 1).train
    rows = [[i, name, 0.5, 1, 1, 0, 0, 0, 0, 0, int(i <= 6)] for i, name in enumerate(names, 1)]
    ranking_path(one_fold, 1).parent.mkdir()
    ranking_path(one_fold, 1).write_text(csv_text(columns(one_fold), rows))
    made_from = {"made_from": products.ESTIMATE.made_from(one_fold, 1)}
    estimate = dict.fromkeys(ESTIMATE, 0) | {"ood_patches": 4}
    write_json(pct_path(one_fold, 1), estimate | made_from)
    trained = []
    monkeypatch.setattr(training, "train_fold", lambda cfg, fold, files, *_: trained.extend(files))
    train_ood(one_fold)
    assert [image.name for image, mask in trained if mask is None] == names[:4]
    assert [image.name for image, mask in trained if mask is not None] == names
    for wrong in (4.5, float("nan"), None):
        write_json(pct_path(one_fold, 1), estimate | {"ood_patches": wrong})
        assert read_estimate(one_fold, 1) == {}


@pytest.fixture
def with_val(patched):
    """Settings that hold a region out of the training side; three epochs, so that one is best."""
    return dataclasses.replace(patched, folds=(1,), select="val", epochs=3)


def stop_in_epoch(patch, epoch, scores):
    """Let validation return `scores`, one per epoch, and stop in an epoch (counted from 1)."""
    seen = []

    def validate(cfg, model, val):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        if len(seen) == epoch:
            raise KeyboardInterrupt
        return scores[len(seen) - 1]

    patch.setattr(training, "validate", validate)
    return seen


def test_the_weights_of_the_best_epoch_are_kept_also_by_a_training_that_was_stopped(
    with_val, monkeypatch
):
    with monkeypatch.context() as patch:
        seen = stop_in_epoch(patch, 3, [0.1, 0.3])
        with pytest.raises(KeyboardInterrupt):
            train(with_val)
    stop_in_epoch(monkeypatch, None, [0.3])
    train(with_val)
    folder, head = model_folder(with_val, 1, ood=False), "segmentation_head.0.weight"
    kept = load_model(folder, with_val).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in seen[1].items())  # first of equals
    assert not torch.equal(kept[head], seen[2][head])
    assert json.loads((folder / "run.json").read_text())["epoch"] == 2
    assert [row["val_miou"] for row in read_table(folder / "log.csv")] == ["0.1", "0.3", "0.3"]


def test_validation_does_not_change_the_training(with_val):
    cfg, folder = dataclasses.replace(with_val, epochs=1), with_val.workspace / "alone"
    train(cfg)
    losses = [row["loss"] for row in read_table(model_folder(cfg, 1, ood=False) / "log.csv")]
    files = id_files(cfg.workspace, read_fold(cfg, 1).train)
    training.train_fold(dataclasses.replace(cfg, select="last"), 1, files, [], folder)
    assert [row["loss"] for row in read_table(folder / "log.csv")] == losses


OPENED = []
sys.addaudithook(
    lambda event, args: (
        OPENED.append(Path(str(args[0]))) if event == "open" and "Patchs" in str(args[0]) else None
    )
)


def test_training_never_opens_a_test_patch(patched, quick_report, monkeypatch):
    for step in ("train", "rank_prune_ood", "estimate_pct", "train_ood"):  # looks for changed files
        monkeypatch.setattr(f"{step}.require", lambda *_, **__: None)
    cfg = dataclasses.replace(patched, select="val", folds=(1,), lr=3e-3, epochs=1)
    fold = read_fold(cfg, 1)
    for folder in ("Image_Patchs", "Mask_Patchs", "OoD_Patchs"):
        for name in fold.test:  # whoever opens one past the spy stops with an error
            (cfg.workspace / folder / name).write_bytes(b"not an image")
    OPENED.clear()
    for step in (train, rank_prune_ood, estimate_pct, train_ood):
        step(cfg)
    opened = {path.name for path in OPENED if path.suffix == ".png"}
    assert opened >= {*fold.train, *fold.val}  # the spy works
    assert opened.isdisjoint(fold.test)
    candidates = {row["img_name"] for row in read_table(ranking_path(cfg, 1))}
    assert candidates == set(fold.train)  # nor does it mine what chooses the epoch
    assert read_estimate(cfg, 1)["id_patches"] == len(fold.train)


def test_validation_patches_without_a_nucleus_are_refused(with_val):
    for name in read_fold(with_val, 1).val:
        write_png(with_val.workspace / "Mask_Patchs" / name, np.zeros((32, 32), np.uint8))
    with pytest.raises(UserError, match="no nucleus in the .* held out of the training side"):
        train(with_val)


def spoil(monkeypatch, step, change):
    """Let the loss of a step, counted from 1 over the whole training, be changed."""
    real, taken = training.segmentation_loss, []

    def loss(logits, *others):
        taken.append(1)
        value = real(logits, *others)
        return change(value, logits) if len(taken) == step else value

    monkeypatch.setattr(training, "segmentation_loss", loss)


def test_a_gradient_that_is_not_finite_is_named_with_its_step_and_patches(one_fold, monkeypatch):
    # its loss is finite, and the next one's would not be
    spoil(monkeypatch, 2, lambda loss, logits: loss + (logits.sum() * 0).sqrt())
    names = read_fold(one_fold, 1).train
    second = batches.batches(one_fold, 1, 0, len(names))[1]
    listed = ", ".join(names[index] for index in second.tolist())
    match = f"epoch 1, step 2: the gradient is .* on the patches {listed}: lower lr"
    with pytest.raises(UserError, match=match):
        train(one_fold)


def test_the_epochs_before_a_loss_that_is_not_finite_are_kept(one_fold, trained, monkeypatch):
    steps = len(read_fold(one_fold, 1).train) // one_fold.batch_size
    folder = model_folder(one_fold, 1, ood=False)
    with monkeypatch.context() as patch:
        spoil(patch, steps + 1, lambda loss, _: loss * float("nan"))
        with pytest.raises(UserError, match="epoch 2, step 1: the loss is nan on the patches"):
            train(one_fold)
    kept = torch.load(folder / "resume.pt", weights_only=True)
    assert [row["epoch"] for row in kept["log"]] == [1]
    assert all(value.isfinite().all() for value in kept["model"].values())
    assert not (folder / "run.json").exists()
    train(one_fold)  # it was a fault of the machine: it goes on, with the weights of an undisturbed
    assert weights(one_fold) == weights(trained)
    assert not (folder / "resume.pt").exists()
    assert [row["epoch"] for row in read_table(folder / "log.csv")] == ["1", "2"]


@pytest.mark.parametrize("act", [train, look])
def test_a_device_without_memory_is_said_with_the_batch_size_to_try(one_fold, monkeypatch, act):
    full = mock.Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory."))
    monkeypatch.setattr(training.Trainer, "step", full)
    training.step_seconds.cache_clear()
    with pytest.raises(UserError, match="memory for batches of 8 .* set batch_size to 4$"):
        act(one_fold)


def test_a_baseline_that_makes_no_mistake_ends_in_the_baseline_again(
    one_trained, quick_report, monkeypatch, capsys
):
    def all_background(cfg, model, files, *_):
        return np.tile(np.eye(7, dtype=np.int64)[0] * 32 * 32, (len(files), 1))

    monkeypatch.setitem(rank_prune_ood.__globals__, "count_seen", all_background)
    rank_prune_ood(one_trained)
    estimate_pct(one_trained)
    train_ood(one_trained)
    output = capsys.readouterr().out
    assert "the baseline predicts nuclei in 0 of" in output
    assert "no OoD patch is added (the baseline predicts nuclei in none" in output
    assert weights(one_trained, ood=True) == weights(one_trained)


@pytest.mark.parametrize("lost", ["model", "log", "best"])
def test_a_resume_file_whose_content_is_damaged_is_refused(tmp_path, lost):
    path, model = tmp_path / "resume.pt", torch.nn.Linear(2, 2)
    net = SimpleNamespace(parts={"model": model}, log=[], model=model)
    TrainingState(net, path, {}).add({"epoch": 1})
    saved = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in saved.items() if name != lost}, path)
    with pytest.raises(UserError, match="resume.pt is damaged .KeyError.: remove it"):
        TrainingState(net, path, {})
