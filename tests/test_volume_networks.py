"""Networks of volumes: trained clean, free and with OoD volumes, attacked, and what is written."""

import gc
import json
import weakref
from dataclasses import replace
from itertools import product

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from config import UserError
from medood.attacks.measuring import CLEAN, Trial
from medood.commands import command
from medood.runs.locks import locked
from medood.training.state import TrainingState as State
from robust import settings
from robust.corruptions import OF_VOLUMES
from robust.test_volumes import evaluate_volumes, score_table
from robust.train_volumes import train_volumes
from robust.volume_scores import count_volumes, summarise, volume_scores
from robust.volume_training import VolumeLoader, VolumeTrainer, learning_rate, remove_foreground
from robust.volumes import Segmenter, build_network, read_task, read_volume, split_cases
from tests.conftest import printed_in
from tests.small_volumes import CPU, PLAN, rewrite, training_volumes, volume_of

TRAIN_VOLUMES = "robust/train_volumes.py"


def test_two_trainings_of_a_network_do_not_run_at_once(volume_cfg, run_script):
    with locked(volume_cfg.home, ["79_unet"]):
        given = ("--workspace", volume_cfg.workspace, "--data", volume_cfg.data)
        done = run_script(TRAIN_VOLUMES, *given, "--folds", "79", "--epochs", "1")
    assert (done.returncode, "79_unet" in done.stderr) == (1, True)
    assert not (volume_cfg.home / "models").exists()


@pytest.mark.parametrize("free", [True, False])
def test_free_training_replays_each_batch_on_noise_that_climbs_to_eps(
    volume_cfg, free, monkeypatch
):
    """The published code steps by eps // 2, which is 0: its noise never moves."""
    seen, forward = [], Segmenter.forward
    monkeypatch.setattr(
        Segmenter, "forward", lambda self, images: seen.append(images) or forward(self, images)
    )
    cfg = replace(volume_cfg, free=free, batch_size=4)
    _, volumes = training_volumes(cfg)
    torch.manual_seed(0)
    segmenter = Segmenter(cfg, build_network("unet", 1, 3, PLAN), PLAN, CPU)
    trainer = VolumeTrainer(cfg, 79, volumes, segmenter)
    for batch in trainer.begin_epoch(0):
        trainer.step(*batch)
    eps, noise = 8 / 255, trainer.noise.noise.abs()
    assert len(seen) == (5 if free else 1)  # one batch
    assert 0.9 * eps * free <= noise.max() <= np.float32(eps) * free
    assert (noise > 0.9 * eps).float().mean() >= 0.3 * free
    assert all(not torch.equal(seen[0], images) for images in seen[1:])
    assert all((images - seen[0]).abs().max() <= 1.0001 * eps for images in seen)
    assert all(images.min() >= 0 and images.max() <= 1 for images in seen)


def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(
    trained_volumes, monkeypatch
):
    cfg = replace(trained_volumes, free=True, replays=2, epochs=4)
    folder = cfg.home / "models" / "79_unet_free"
    train_volumes(cfg)
    expected = load_file(folder / "model.safetensors")
    for path in folder.iterdir():
        path.unlink()

    def add_and_stop(self, row, add=State.add):
        add(self, row)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(State, "add", add_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_volumes(cfg)
    assert [path.name for path in folder.iterdir()] == ["resume.pt"]
    train_volumes(cfg)
    found = load_file(folder / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    rows = (folder / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2"]


def test_half_of_the_patches_are_centred_on_foreground(volume_cfg):
    label = np.zeros((60, 60, 60), np.uint8)
    label[28:32, 28:32, 28:32] = 1
    loader = VolumeLoader(
        replace(volume_cfg, batch_size=1), 79, [volume_of(label)], (24, 24, 24), CPU
    )
    loader.cut = loader.cut.transforms[0]
    centred = 0
    for epoch in range(60):
        loader.set_epoch(epoch)
        ((_, target, _),) = loader
        centred += bool(target[0, 9:15, 9:15, 9:15].any())
    assert 20 <= centred <= 42  # of 60; a random centre hits the cube almost never


def test_a_patch_without_changes_is_cut_from_its_volume(volume_cfg):
    places = torch.arange(27**3).view(27, 27, 27)
    volume = volume_of(places % 3, places[None] / 27**3)
    loader = VolumeLoader(volume_cfg, 79, [volume], (24, 24, 24), CPU)
    loader.cut = loader.cut.transforms[0]
    ((images, target, weight),) = loader
    first = np.unravel_index(round(images.min().item() * 27**3), (27, 27, 27))
    inside = tuple(slice(place, place + 24) for place in first)
    assert torch.equal(images[0], volume.image[:, *inside])
    assert torch.equal(target[0], volume.label[inside].long())
    assert weight.tolist() == [1.0]


def test_the_learning_rate_rises_for_a_tenth_of_the_steps_and_falls_to_zero(volume_cfg):
    shares = [learning_rate(volume_cfg, share / 100) / volume_cfg.lr for share in range(101)]
    assert np.argmax(shares) == 10
    assert shares[0] < 0.02
    assert (shares[10], shares[55], shares[100]) == pytest.approx((1, 0.5, 0), abs=1e-6)


def test_the_foreground_is_cut_out_filled_and_trained_on_as_background_with_its_weight(volume_cfg):
    label = np.zeros((24, 24, 24), np.uint8)
    label[0, 0, 0] = 1
    volume = volume_of(label)
    zero, mean = (remove_foreground(volume, fill) for fill in ("zero", "mean"))
    background = volume.image.flatten()[1:]
    assert zero.image[0, 0, 0, 0] == 0
    assert mean.image[0, 0, 0, 0].item() == pytest.approx(background.mean().item())
    assert torch.equal(zero.image.flatten()[1:], background)
    full = volume_of(np.ones((24, 24, 24), np.uint8))
    samples = [full, full._replace(is_ood=True)]
    loader = VolumeLoader(replace(volume_cfg, ood_weight=0.25), 79, samples, (24, 24, 24), CPU)
    ((_, target, weight),) = loader
    ood = loader.batches[0].tolist().index(1)
    assert target[ood].max() == 0
    assert target[1 - ood].max() == 1
    assert weight[ood] == 0.25


def test_scores_by_hand_and_hd95_in_mm_which_is_the_diagonal_where_a_class_is_missed():
    truth = torch.zeros(9, 10, 11, dtype=torch.uint8)
    truth[3, 4, 5], truth[0, 0, 0] = 1, 2
    spacing = (0.5, 1.25, 4.0)
    diagonal = (4.5**2 + 12.5**2 + 44**2) ** 0.5
    for axis in range(3):
        scores = volume_scores((truth == 1).byte().roll(2, axis), truth, 4, spacing)
        hd95 = [2 * spacing[axis], diagonal, np.nan]
        np.testing.assert_allclose(scores[1], hd95)
        np.testing.assert_array_equal(scores[0], [0, 0, np.nan])  # class 3 does not occur
    truth, predicted = torch.zeros(2, 1, 1, 8, dtype=torch.uint8)
    truth[..., :4], predicted[..., 2:5] = 1, 1  # 2 of 4 found, 1 beside
    dice, _, recall, precision = volume_scores(predicted, truth, 2, (1.0, 1.0, 1.0))[:, 0]
    assert (recall, precision, dice) == pytest.approx((0.5, 2 / 3, 4 / 7))


def test_a_class_that_is_absent_and_not_called_counts_in_neither_criterion_nor_report():
    truth = torch.zeros(1, 1, 4, dtype=torch.uint8)
    truth[..., 0] = 1
    volume = volume_of(truth)

    class Known(torch.nn.Module):
        mean, spacing = torch.zeros(1), volume.spacing

        def forward(self, _):
            return torch.nn.functional.one_hot(truth.long(), 3).movedim(-1, 0)[None].float()

    clean = Trial([CLEAN], lambda *_: iter(()))
    counts = count_volumes(Known(), [volume], clean, 3, 0, lambda *_: None)
    found = summarise(counts, 0, threshold=0.99)
    wanted = {"mean_dice": 1, "found_by_size": {"all": 1.0}, "fooled": 0, "dice": [1, None]}
    assert {name: found[name] for name in wanted} == wanted


def test_the_table_has_a_row_for_each_attack():
    row = {"dice": [0.9, None], "hd95": [1.0, None], "fooled": 0.25, "volumes": 4}
    scores = {"79": {"unet": {"0": {"clean": row}, "8": {"clean": row, "noise": row}}}}
    *_, clean, noise = score_table(scores, ("background", "a", "b")).splitlines()
    assert "clean, those attacked" in clean
    cells = ["unet", "noise", "90.0", "-", "1.0", "-", "25.0", "4"]
    assert [cell.strip() for cell in noise.strip("|").split("|")] == cells


def test_predictions_lie_where_their_volumes_lie(trained_volumes, capsys):
    """With another spacing in one of them, so that one is resampled there and back."""
    affine = np.array([[0, -1, 0, 5], [0.8, 0, 0, -7], [0, 0, 1, 3], [0, 0, 0, 1.0]])
    _, test = split_cases(read_task(trained_volumes.data).cases, 79, 0)
    for path in test[0][1:]:
        rewrite(path, lambda values, _: (values.astype(np.float32), affine))
    evaluate_volumes(small_test_of(trained_volumes, attacked=2))
    for case, kind in product(test, ("", "worst_case")):
        image = nibabel.load(case.image)
        called = nibabel.load(
            trained_volumes.home / "reports" / "79_unet" / kind / f"{case.name}.nii.gz"
        )
        assert called.shape == image.shape
        np.testing.assert_allclose(called.affine, image.affine)
        assert set(np.unique(called.get_fdata())) <= {0, 1, 2}
    assert (trained_volumes.home / "reports" / "79_unet.png").stat().st_size > 10**4
    evaluate_volumes(small_test_of(trained_volumes, attacked=2))
    assert "79_unet.json: kept, made from the same" in capsys.readouterr().out


def assert_names_the_training(caught, cfg):
    assert printed_in(str(caught.value)) == command(cfg, TRAIN_VOLUMES, type(cfg))


def small_test_of(cfg, **changes):
    small = {"attacked": 1, "steps": 1, "queries": 2, "attacks": ("noise",)} | changes
    known = {name: getattr(cfg, name) for name in ("workspace", "data", "folds", "precision")}
    return settings.TestVolumesConfig(**known, **small)


def test_volumes_are_in_memory_one_at_a_time_and_corrupted_beside_the_attacks(
    trained_volumes, monkeypatch, capsys
):
    alive, most, read = weakref.WeakSet(), [], read_volume

    class Watched(torch.Tensor):
        pass

    def watched(task, case):
        gc.collect()
        volume = read(task, case)
        held = volume.image.as_subclass(Watched)
        alive.add(held)
        most.append(len(alive))
        return volume._replace(image=held)

    monkeypatch.setattr("robust.volume_scores.read_volume", watched)
    both = replace(trained_volumes, folds=(80, 79))  # 80 has no network
    evaluate_volumes(small_test_of(both, corruptions=True, attacked=3))
    assert len(most) >= 6  # all of them, and those that are attacked and corrupted
    assert max(most) <= 2  # the one before may be there until the next is read
    found = json.loads((trained_volumes.home / "reports" / "corruptions.json").read_text())
    assert list(found["79"]["unet"]) == ["clean", *OF_VOLUMES]
    assert list(found["79"]["unet"]["bias"]) == list("12345")
    assert "mCE" in capsys.readouterr().out


def test_a_network_that_was_trained_on_the_test_volumes_is_refused(trained_volumes):
    for name in ("run.json", "made_from.json"):  # as of a user-supplied one
        (trained_volumes.home / "models" / "79_unet" / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="was trained on volumes that fold 79 tests"):
        evaluate_volumes(small_test_of(trained_volumes, seed=1))


def test_a_network_is_kept_until_its_settings_change_and_one_from_it_is_not_tested_then(
    trained_volumes, capsys
):
    """The clean network is trained again, and the free one is still of the old one."""
    free = replace(trained_volumes, free=True, replays=1, eps=4.0)
    train_volumes(free)
    train_volumes(trained_volumes)
    assert "79_unet: kept, made from the same inputs and settings" in capsys.readouterr().out
    train_volumes(replace(trained_volumes, lr=1e-3))
    assert "79_unet: regenerated: lr was 0.002, is 0.001" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"79_unet_free is out of date \(clean changed\)") as caught:
        evaluate_volumes(small_test_of(trained_volumes))
    assert_names_the_training(caught, replace(free, device="auto"))


def test_a_network_of_other_volumes_is_neither_tested_nor_trained_on(trained_volumes):
    train, _ = split_cases(read_task(trained_volumes.data).cases, 79, 0)
    rewrite(train[0].label, lambda values, affine: (values * 0, affine))
    with pytest.raises(UserError, match=r"79_unet is out of date \(its inputs changed\)"):
        evaluate_volumes(small_test_of(trained_volumes))
    with pytest.raises(UserError, match=r"79_unet is out of date \(its .*, seed was 0, is 1\)"):
        train_volumes(replace(trained_volumes, free=True, seed=1))


def test_a_table_mixes_no_settings_of_its_folds(trained_volumes):
    train_volumes(replace(trained_volumes, folds=(80,), epochs=2))
    with pytest.raises(UserError, match=r"80_unet is out of date \(epochs was 2, is 1\)") as caught:
        evaluate_volumes(small_test_of(replace(trained_volumes, folds=(79, 80))))
    assert_names_the_training(caught, replace(trained_volumes, folds=(80,), device="auto"))


def test_without_a_network_there_is_nothing_to_test(volume_cfg):
    in_training = volume_cfg.home / "models" / "79_unet" / "resume.pt"
    in_training.parent.mkdir(parents=True)
    in_training.touch()
    with pytest.raises(UserError, match="no network in .*: run `.*` first") as caught:
        evaluate_volumes(small_test_of(volume_cfg))
    assert_names_the_training(caught, replace(volume_cfg, epochs=30, device="auto"))
    with pytest.raises(UserError, match="79_unet is missing: run `(.*)` first") as caught:
        train_volumes(replace(volume_cfg, ood=True, epochs=7))
    assert_names_the_training(caught, replace(volume_cfg, epochs=7))
