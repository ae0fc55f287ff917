"""ROG on volumes: read, planned for, trained on clean and free, attacked, and what is written."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from config import UserError
from medood.runs.provenance import SETTINGS, settings_of
from medood.training.state import TrainingState as State
from robust import main as volumes_main
from robust import settings, volume_sample
from robust.lattice import Lattice
from robust.test_volumes import evaluate, score_table
from robust.train_volumes import train_volumes
from robust.volume_oods import remove_foreground
from robust.volume_scores import Outcome, summarise, volume_scores
from robust.volume_training import Loader, Sample, Trainer, learning_rate
from robust.volumes import (
    Case,
    Plan,
    Segmenter,
    Volume,
    build_network,
    make_plan,
    plan_strides,
    read_task,
    read_volume,
    resample,
    split_cases,
)

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
PLAN = Plan((1.0, 1.0, 1.0), (24, 24, 24), ((1, 1, 1),) * 2 + ((2, 2, 2),), [[0.1, 0.9, 0.5, 0.2]])


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """Settings for a task of six small synthetic volumes, of which a fold tests two."""
    monkeypatch.setattr(volume_sample, "CASES", 6)
    return settings.TrainVolumesConfig(
        workspace=tmp_path,
        data=volume_sample.draw_sample(tmp_path),
        folds=(79,),
        epochs=1,
        precision="float32",
        device="cpu",
    )


def training_volumes(cfg):
    task = read_task(cfg.data)
    cases, _ = split_cases(task.cases, 79, 0)
    return task, [read_volume(task, case) for case in cases]


def volume_of(label, image=None, spacing=(1.0, 1.0, 1.0)):
    label = torch.as_tensor(label, dtype=torch.uint8)
    image = torch.rand(1, *label.shape) if image is None else image
    return Volume("a", image, label, spacing)


# ---------------------------------------------------------------- network and plan


def test_the_lattice_has_the_parameters_of_rogs_for_one_modality_and_three_classes():
    network = Lattice(1, 3, ((2, 2, 1), (2, 2, 1), (2, 2, 2)))
    assert sum(weight.numel() for weight in network.parameters()) == 2_596_347
    assert network(torch.rand(1, 1, 33, 34, 9)).shape == (
        1,
        3,
        33,
        34,
        9,
    )  # no multiple of a stride


def test_patch_and_strides_follow_from_the_median_size_and_the_smallest_structure():
    labels = [np.zeros((35, 50, side), np.uint8) for side in (30, 36, 100)]
    for label in labels:
        label[:10, :10, :10] = 1
        label[20:, 20:, 20:22] = 2
    plan = make_plan([volume_of(label) for label in labels], 3)
    assert plan.patch == (32, 48, 32)  # at most the medians 35, 50 and 36
    assert plan.strides == ((2, 2, 2), (1, 1, 1), (2, 2, 2))  # 900 voxels: four halvings
    assert plan_strides((128, 128, 24), 5) == ((2, 2, 1), (2, 2, 1), (2, 2, 2))  # 24 = 3 * 2^3


def test_normalisation_lies_in_the_model(cfg):
    seen = []

    class Spy(nn.Module):
        def forward(self, images):
            seen.append(images)
            return images.repeat(1, 3, 1, 1, 1)

    segmenter = Segmenter(cfg, Spy(), PLAN, CPU)
    image = torch.full((1, 1, 24, 24, 24), 0.7)
    image[..., 0], image[..., 1] = 0.0, 1.0  # outside of the percentiles 0.1 and 0.9
    logits = segmenter(image)
    torch.testing.assert_close(logits[0, 0, 3, 3, :3], torch.tensor([-2.0, 2.0, 1.0]))
    assert len(seen) == 1


@pytest.mark.parametrize("size", [(20, 30, 27), (24, 24, 24), (50, 24, 20)])
def test_volumes_of_any_size_get_logits_of_their_size_through_which_gradients_flow(cfg, size):
    segmenter = Segmenter(cfg, nn.Conv3d(1, 3, 3, padding=1), PLAN, CPU)
    image = torch.rand(1, 1, *size).mul(0.5).add(0.2).requires_grad_()
    logits = segmenter(image)
    assert logits.shape == (1, 3, *size)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), image)
    assert gradient.abs().amin() > 0


def test_the_parts_of_a_large_volume_agree_with_the_whole_of_it(cfg):
    segmenter = Segmenter(cfg, nn.Conv3d(1, 3, 1), PLAN, CPU)
    image = torch.rand(1, 1, 50, 24, 20)
    with torch.no_grad():
        expected = segmenter.network((image.clamp(0.1, 0.9) - 0.5) / 0.2)
        torch.testing.assert_close(segmenter(image), expected)


# ---------------------------------------------------------------- data


def test_folds_divide_the_cases_and_every_case_is_tested_once():
    cases = [Case(f"case_{n}", Path(), Path()) for n in range(20)]
    tested = []
    for fold in (79, 158, 237):
        train, test = split_cases(cases, fold, seed=0)
        assert not set(train) & set(test)
        assert set(train) | set(test) == set(cases)
        tested += test
    assert sorted(tested) == sorted(cases)


def test_a_volume_is_scaled_to_its_own_range_and_float_labels_are_fine(cfg):
    task = read_task(cfg.data)
    case = task.cases[0]
    stored = nibabel.load(case.image).get_fdata()
    label = nibabel.load(case.label)
    as_float = nibabel.Nifti1Image(label.get_fdata().astype(np.float32), label.affine)
    nibabel.save(as_float, case.label)
    volume = read_volume(task, case)
    scaled = (stored - stored.min()) / (stored.max() - stored.min())
    np.testing.assert_allclose(volume.image[0], scaled, atol=1e-6)
    np.testing.assert_array_equal(volume.label, label.get_fdata())


def test_resampling_brings_every_volume_to_one_spacing():
    volume = volume_of(np.repeat(np.eye(6, dtype=np.uint8)[..., None], 4, 2), spacing=(1, 1, 4.0))
    finer = resample(volume, (1.0, 1.0, 2.0))
    assert finer.image.shape == (1, 6, 6, 8)
    # slices 4 mm apart are taken as they are, so that nothing between them is made up
    torch.testing.assert_close(finer.image[..., ::2], volume.image, atol=1e-5, rtol=0)
    torch.testing.assert_close(finer.image[..., 1::2], volume.image, atol=1e-5, rtol=0)
    assert (finer.label == volume.label.repeat_interleave(2, 2)).all()


def rewrite(path, change):
    image = nibabel.load(path)
    values, affine = change(image.get_fdata(), image.affine)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def at_corner(value):
    def change(values, affine):
        values[0, 0, 0] = value
        return values, affine

    return change


IMAGE, LABEL = "imagesTr/sample_01.nii.gz", "labelsTr/sample_01.nii.gz"
BAD = {
    "no description": (lambda data: (data / "dataset.json").unlink(), "dataset.json is missing"),
    "broken description": (
        lambda data: (data / "dataset.json").write_text("{"),
        "is no description of an MSD task",
    ),
    "no labels named": (
        lambda data: (data / "dataset.json").write_text('{"training": []}'),
        "is no description of an MSD task .KeyError: 'labels'",
    ),
    "no volume": (
        lambda data: [path.unlink() for path in (data / "imagesTr").iterdir()],
        "imagesTr holds no labelled volume",
    ),
    "no label": (lambda data: (data / LABEL).unlink(), "sample_01.nii.gz has no label of its name"),
    "no image": (lambda data: (data / IMAGE).unlink(), "sample_01.nii.gz has no image of its name"),
    "other shape": (
        lambda data: rewrite(data / LABEL, lambda v, a: (v[1:], a)),
        "but its image has",
    ),
    "other place": (
        lambda data: rewrite(data / LABEL, lambda v, a: (v, a @ np.diag([1, 1, 2, 1]))),
        "its affine is not that of its image",
    ),
    "four axes": (
        lambda data: rewrite(data / IMAGE, lambda v, a: (np.stack([v, v], -1), a)),
        "expected 3 axes",
    ),
    "unknown label": (lambda data: rewrite(data / LABEL, at_corner(7)), "value 7, expected whole"),
    "half a label": (lambda data: rewrite(data / LABEL, at_corner(0.5)), "value 0.5, expected"),
    "not a number": (lambda data: rewrite(data / IMAGE, at_corner(np.nan)), "are not finite"),
    "cut off": (
        lambda data: (data / IMAGE).write_bytes((data / IMAGE).read_bytes()[:5000]),
        "sample_01.nii.gz cannot be read",
    ),
    "text": (lambda data: (data / IMAGE).write_text("no image"), "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_sentence_and_nothing_is_written(name, cfg):
    damage, sentence = BAD[name]
    damage(cfg.data)
    with pytest.raises(UserError, match=sentence) as found:
        train_volumes(cfg)
    assert "\n" not in str(found.value)
    assert not cfg.home.exists()


@pytest.mark.parametrize("eps", [-1.0, 256.0])
def test_eps_beyond_the_range_is_refused(eps):
    with pytest.raises(UserError, match=r"^eps = "):
        settings.VolumeConfig(eps=eps)


# ---------------------------------------------------------------- training


def trainer_of(cfg, epochs=1):
    """A trainer and its noise after some epochs, and the largest noise that it ever had."""
    task, volumes = training_volumes(cfg)
    torch.manual_seed(0)
    segmenter = Segmenter(cfg, build_network("unet", 1, 3, PLAN), PLAN, CPU)
    trainer = Trainer(cfg, segmenter, 1)
    loader = Loader(cfg, 79, [Sample(volume) for volume in volumes], PLAN.patch, CPU)
    largest = 0.0
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            trainer.step(*batch)
            largest = max(largest, trainer.noise.noise.abs().max().item())
    return trainer, largest


def test_free_training_moves_its_noise_to_the_ends_of_eps_and_never_beyond(cfg):
    """The published code steps by eps // 2, which is 0: its noise never moves."""
    trainer, largest = trainer_of(replace(cfg, free=True, eps=8.0))
    assert 0.9 * 8 / 255 < largest <= np.float32(8 / 255)
    assert (trainer.noise.noise.abs() > 0.9 * 8 / 255).float().mean() > 0.3
    _, largest = trainer_of(cfg)
    assert largest == 0


def test_free_training_replays_each_batch_with_the_noise_of_the_last_replay(cfg, monkeypatch):
    seen = []
    forward = Segmenter.forward
    monkeypatch.setattr(
        Segmenter, "forward", lambda self, images: seen.append(images) or forward(self, images)
    )
    trainer_of(replace(cfg, free=True, batch_size=4))
    assert len(seen) == 5  # one batch
    assert all(not torch.equal(seen[0], images) for images in seen[1:])
    assert all((images - seen[0]).abs().max() <= 1.0001 * 8 / 255 for images in seen)
    assert all(images.min() >= 0 and images.max() <= 1 for images in seen)


@pytest.mark.parametrize("free", [False, True])
def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(
    free, cfg, monkeypatch
):
    cfg = replace(cfg, epochs=10 if free else 2)
    if free:
        train_volumes(replace(cfg, epochs=1))
        cfg = replace(cfg, free=True)
    folder = cfg.home / "models" / f"79_{cfg.model_name}"
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


def test_a_network_is_kept_until_what_decides_it_changes(cfg, capsys):
    train_volumes(cfg)
    train_volumes(cfg)
    assert "kept, made from the same inputs and settings" in capsys.readouterr().out
    train_volumes(replace(cfg, lr=1e-4))
    assert "made again: lr was 0.002, is 0.0001" in capsys.readouterr().out


def test_half_of_the_patches_are_centred_on_foreground(cfg):
    label = np.zeros((60, 60, 60), np.uint8)
    label[28:32, 28:32, 28:32] = 1
    loader = Loader(replace(cfg, batch_size=1), 79, [Sample(volume_of(label))], (24, 24, 24), CPU)
    centred = 0
    for epoch in range(60):
        loader.set_epoch(epoch)
        ((_, target, _),) = loader
        centred += bool(target[0, 9:15, 9:15, 9:15].any())
    assert 20 <= centred <= 42  # of 60; a random centre hits the cube almost never


def test_a_patch_without_augmentation_is_cut_from_its_volume(cfg):
    label = np.arange(27**3).reshape(27, 27, 27) % 3
    loader = Loader(cfg, 79, [Sample(volume_of(label))], (24, 24, 24), CPU)
    loader.random = torch.ones_like(loader.random)  # no turn, scale, mirror or colour
    loader.random[:, 1:4] = 0  # centre as far down as the patch allows
    ((images, target, weight),) = loader
    torch.testing.assert_close(images[0], loader.images[0][:, :24, :24, :24], atol=1e-5, rtol=0)
    assert (target[0] == loader.labels[0][:24, :24, :24]).all()
    assert weight.tolist() == [1.0]


def test_the_learning_rate_rises_for_a_tenth_of_the_steps_and_falls_to_zero(cfg):
    shares = [learning_rate(cfg, share / 100) / cfg.lr for share in range(101)]
    assert np.argmax(shares) == 10
    assert shares[10] == 1.0
    assert shares[0] < 0.02
    assert abs(shares[55] - 0.5) < 1e-6
    assert abs(shares[100]) < 1e-9


# ---------------------------------------------------------------- OoD volumes


def test_the_foreground_is_cut_out_and_filled(cfg):
    label = np.zeros((2, 2, 2), np.uint8)
    label[0, 0, 0] = 1
    image = torch.arange(8.0).view(1, 2, 2, 2) / 8
    volume = volume_of(label, image + 0.1)
    assert remove_foreground(volume, "zero").image[0, 0, 0, 0] == 0
    mean = (sum(range(1, 8)) / 8 + 0.7) / 7
    assert abs(remove_foreground(volume, "mean").image[0, 0, 0, 0] - mean) < 1e-6
    assert torch.equal(remove_foreground(volume, "zero").image[0, 1], volume.image[0, 1])


def test_an_ood_volume_is_trained_on_as_background_with_its_weight(cfg):
    volume = volume_of(np.ones((24, 24, 24), np.uint8))
    samples = [Sample(volume), Sample(volume, is_ood=True)]
    loader = Loader(replace(cfg, ood_weight=0.25), 79, samples, (24, 24, 24), CPU)
    ((_, target, weight),) = loader
    ood = loader.batches[0].tolist().index(1)
    assert target[ood].max() == 0
    assert target[1 - ood].max() == 1
    assert weight[ood] == 0.25


# ---------------------------------------------------------------- scores


def test_hd95_is_in_mm_and_the_diagonal_where_a_class_is_missed():
    truth, predicted = torch.zeros(2, 3, 4, 12, dtype=torch.uint8)
    truth[1, 1, 1] = predicted[1, 1, 4] = 1
    truth[0, 0, 0] = 2
    scores = volume_scores(predicted, truth, 4, (1.0, 1.0, 2.0))
    assert scores["hd95"][0] == pytest.approx(6.0)  # 3 voxels of 2 mm
    assert scores["hd95"][1] == pytest.approx((3**2 + 4**2 + 24**2) ** 0.5)
    assert scores["dice"] == [0, 0, None]  # class 3 does not occur: it has no score
    assert scores["hd95"][2] is None


def test_dice_recall_and_precision_by_hand():
    truth, predicted = torch.zeros(2, 1, 1, 8, dtype=torch.uint8)
    truth[..., :4], predicted[..., 2:5] = 1, 1  # 2 of 4 found, 1 beside
    scores = volume_scores(predicted, truth, 2, (1.0, 1.0, 1.0))
    assert scores["recall"] == [0.5]
    assert scores["precision"] == pytest.approx([2 / 3])
    assert scores["dice"] == pytest.approx([4 / 7])


def test_a_class_that_is_absent_and_not_called_counts_in_neither_criterion_nor_report():
    truth = torch.zeros(1, 1, 4, dtype=torch.uint8)
    truth[..., 0] = 1
    volume = volume_of(truth)
    outcome = Outcome(volume.image, truth.long(), 0.0)
    found = summarise([outcome], [volume], 3, threshold=0.99)
    assert found["mean_dice"] == 1
    assert found["fooled"] == 0
    assert found["dice"] == [1, None]


def test_the_table_has_a_row_for_each_attack():
    row = {"dice": [0.9, None], "hd95": [1.0, None], "fooled": 0.25, "volumes": 4}
    scores = {"79": {"unet": {"0": {"clean": row}, "8": {"clean": row, "noise": row}}}}
    lines = score_table(scores, ("background", "a", "b")).splitlines()
    assert len(lines) == 5
    assert "clean, those attacked" in lines[3]
    assert "90.0" in lines[4]
    assert "25.0" in lines[4]


# ---------------------------------------------------------------- scripts


def test_predictions_lie_where_their_volumes_lie(cfg):
    """With another spacing in one of them, so that one is resampled there and back."""
    affine = np.array([[0, -1, 0, 5], [0.8, 0, 0, -7], [0, 0, 1, 3], [0, 0, 0, 1.0]])
    _, test = split_cases(read_task(cfg.data).cases, 79, 0)
    for path in test[0][1:]:
        rewrite(path, lambda values, _: (values.astype(np.float32), affine))
    train_volumes(cfg)
    evaluate(small_test_of(cfg))
    for case in test:
        image = nibabel.load(case.image)
        called = nibabel.load(cfg.home / "reports" / "79_unet" / f"{case.name}.nii.gz")
        assert called.shape == image.shape
        np.testing.assert_allclose(called.affine, image.affine)
        assert set(np.unique(called.get_fdata())) <= {0, 1, 2}


def small_test_of(cfg, **changes):
    small = {"attacked": 1, "steps": 1, "queries": 2}
    known = {name: getattr(cfg, name) for name in ("workspace", "data", "folds", "precision")}
    return settings.TestVolumesConfig(**known, **small | changes)


def test_a_network_that_was_trained_on_the_test_volumes_is_refused(cfg):
    train_volumes(cfg)
    with pytest.raises(UserError, match="was trained on volumes that fold 79 tests"):
        evaluate(small_test_of(cfg, seed=1))


def test_without_a_network_there_is_nothing_to_test(cfg):
    in_training = cfg.home / "models" / "79_unet" / "resume.pt"
    in_training.parent.mkdir(parents=True)
    in_training.touch()
    with pytest.raises(
        UserError, match=r"no network in .*: run `python robust/train_volumes.py --d"
    ):
        evaluate(small_test_of(cfg))
    with pytest.raises(UserError, match="train it first, without --free and --ood"):
        train_volumes(replace(cfg, ood=True))


def test_the_sample_runs_from_drawing_to_the_table_and_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(volume_sample, "CASES", 6)
    small = ["--epochs", "2", "--attacked", "1", "--steps", "1", "--queries", "2"]
    arguments = ["robust/main.py", "--sample", "--workspace", str(tmp_path), *small]
    monkeypatch.setattr(sys, "argv", arguments)
    main, run = volumes_main, volumes_main.run
    for _ in range(2):
        run(main.start, main.defaults(), main.home, main.parts)
    said = capsys.readouterr().out
    assert said.count("kept") == 7  # the sample, three networks and their scores
    home = tmp_path / "Task00_SAMPLE"
    scores = json.loads((home / "reports" / "scores.json").read_text())
    assert list(scores["79"]) == ["unet", "unet_ood", "unet_free"]
    for network, of_network in scores["79"].items():
        assert list(of_network) == ["0", "8"]
        assert of_network["0"]["clean"]["volumes"] == 2
        under = of_network["8"]
        assert under["worst_case"]["mean_dice"] <= min(row["mean_dice"] for row in under.values())
        assert all(row["largest_change"] <= 8 / 255 for row in under.values())
        assert (home / "reports" / f"79_{network}.png").stat().st_size > 10000
    run_of_ood = json.loads((home / "models" / "79_unet_ood" / "run.json").read_text())
    assert run_of_ood["ood_patches"] > 0
    assert "| " in (home / "reports" / "table.md").read_text()


@pytest.mark.parametrize("script", ["train_volumes.py", "test_volumes.py", "main.py"])
def test_help_names_the_settings_that_the_script_uses_and_imports_no_torch(script):
    program = (
        f"import runpy, sys; sys.argv = ['robust/{script}', '--help']\n"
        f"try: runpy.run_path('robust/{script}', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    named = set(re.findall(r"--(?!no_)(\w+)", done.stdout))
    assert named & SETTINGS == settings_of(f"robust/{script}")
    own = {"data", "eps"} | {
        "train_volumes.py": {"network", "replays", "free", "ood"},
        "test_volumes.py": {"attacked", "attacks", "steps", "queries"},
        "main.py": {"network", "replays", "attacked", "attacks", "steps", "queries", "sample"},
    }[script]
    assert named - SETTINGS - {"help"} == own


def test_a_mistake_ends_in_one_sentence_and_exit_code_1(cfg):
    (cfg.data / IMAGE).unlink()
    arguments = ["--data", str(cfg.data), "--workspace", str(cfg.workspace)]
    command = [sys.executable, "robust/train_volumes.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*sample_01.nii.gz has no image of its name: .*\n", done.stderr)
    assert not cfg.home.exists()
