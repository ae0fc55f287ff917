"""The learned fill: real windows in, nuclei out, and no generator sees what its fold tests."""

import dataclasses
import shutil

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torch import nn

from config import UserError
from estimate_pct import estimate_pct
from generate_patches import generate_patches
from generate_unfiltered_oods import generate_unfiltered_oods
from medood.data.dataset import Patches, load_patches
from medood.data.folds import read_fold
from medood.data.images import read_image, read_mask, write_png
from medood.data.records import RECORD, record_of
from medood.data.workspace import fill_generator_folder, id_files, ood_folder
from medood.runs.commands import command
from medood.training import loop
from rank_prune_ood import rank_prune_ood
from studies import common, controls
from tests.conftest import TINY, as_settings_of
from train import train
from train_ood import train_ood
from transfer import fill, train_fill, training
from transfer.networks import Generator, Transferred

CPU = torch.device("cpu")
P = 96  # pixels of a drawn patch
WEIGHTS, LEARNED = "generator.safetensors", "learned_from.npz"


def draw_patch(rng):
    """A cloudy patch with a dark round nucleus, uint8 (P, P, 3), and its mask."""
    image = 180 + 40 * gaussian_filter(rng.standard_normal((P, P, 3)), (3, 3, 0))
    mask = np.zeros((P, P), np.uint8)
    x, y = rng.integers(12, P - 12, 2).tolist()
    cv2.circle(mask, (x, y), 10, 2, -1)
    image[mask > 0] -= 90
    return image.clip(0, 255).astype(np.uint8), mask


def pretend(cfg, fold, diseased, healthy, folder, device):
    """Stand in for train_transfer: note what a generator would learn from, and write one."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / LEARNED, diseased=diseased.numpy(), healthy=healthy.numpy())
    torch.manual_seed(fold)
    save_file(Generator(cfg.channels).state_dict(), folder / WEIGHTS)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(training, "train_transfer", pretend)


def draw_patches(workspace):
    """Write 36 drawn patches of 6 regions and their fold lists; return settings that fit."""
    rng = np.random.default_rng(0)
    for folder in ("Image_Patchs", "Mask_Patchs"):
        (workspace / folder).mkdir(parents=True)
    for number in range(36):
        for folder, pixels in zip(("Image_Patchs", "Mask_Patchs"), draw_patch(rng), strict=True):
            write_png(workspace / folder / f"r{number % 6}_{number // 6}.png", pixels)
    changed = {"workspace": workspace, "patch_size": P, "split": "region", "folds": (1, 2)}
    plain = dataclasses.replace(TINY, **changed, encoder="tu-test_resnet", epochs=1)
    generate_patches(plain)
    return plain


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Settings of a workspace with drawn patches, and of the smallest generator."""
    plain = draw_patches(tmp_path_factory.mktemp("drawn") / "run")
    return as_settings_of(train_fill.FillConfig, plain, channels=1, iterations=1)


@pytest.fixture
def cfg(drawn, tmp_path):
    """Settings of a copy of it, for one fold."""
    shutil.copytree(drawn.workspace, tmp_path / "run")
    return dataclasses.replace(drawn, workspace=tmp_path / "run", folds=(1,))


@pytest.fixture(scope="module")
def filled_once(drawn, tmp_path_factory):
    workspace = tmp_path_factory.mktemp("filled") / "run"
    shutil.copytree(drawn.workspace, workspace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_transfer", pretend)
        train_fill.train_fill(dataclasses.replace(drawn, workspace=workspace))
    return workspace


@pytest.fixture
def filled(drawn, filled_once, tmp_path):
    """The trunk's settings of a workspace of which two folds have their fill."""
    shutil.copytree(filled_once, tmp_path / "filled")
    return trunk(dataclasses.replace(drawn, workspace=tmp_path / "filled"))


def trunk(cfg):
    """Return the same settings as those of a step of the trunk, with this fill."""
    plain = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(TINY)}
    return dataclasses.replace(TINY, **plain | {"ood_fill": "transfer"})


def learned_from(cfg, fold):
    """Return the windows with nuclei, and those without, that a generator would have seen."""
    with np.load(fill_generator_folder(cfg, fold) / LEARNED) as found:
        return found["diseased"], found["healthy"]


def as_patches(images, masks):
    images, masks = (torch.as_tensor(np.stack(part)) for part in (images, masks))
    names = [f"a_{number}.png" for number in range(len(images))]
    return Patches(names, images, masks, torch.zeros(len(images), dtype=torch.bool))


# ---------------------------------------------------------------- windows


def test_a_window_without_a_nucleus_touches_no_nucleus_and_no_margin_of_one():
    mask = np.zeros((P, P), np.uint8)
    mask[30, 30] = 1  # with its margin 28..32: it reaches into the windows from 32 on
    image = np.full((P, P, 3), 200, np.uint8)
    patches = as_patches([image], [mask])
    holes = fill.holes_of(patches.masks)
    assert holes.sum() == 5 * 5
    _, free = fill.find_windows(patches, holes, 0)
    starts = range(0, 65, 16)
    expected = {(0, y, x) for y in starts for x in starts if not (y <= 32 and x <= 32)}
    assert set(map(tuple, free.tolist())) == expected


def test_unsure_pixels_are_no_tissue_and_no_nuclei():
    mask = np.full((P, P), 255, np.uint8)
    patches = as_patches([np.full((P, P, 3), 200, np.uint8)], [mask])
    nuclei, free = fill.find_windows(patches, fill.holes_of(patches.masks), 0)
    assert len(nuclei) == len(free) == 0


def test_no_window_reaches_into_the_black_around_a_region():
    image = np.full((P, P, 3), 200, np.uint8)
    image[:5] = image[:, -1:] = 0
    image[50, 50] = 0  # a black speck is of the tissue
    patches = as_patches([image], [np.zeros((P, P), np.uint8)])
    _, free = fill.find_windows(patches, fill.holes_of(patches.masks), 0)
    assert free[:, 1].min() == 16
    assert free[:, 2].max() == 48
    assert len(free) == 4 * 4


def test_windows_are_what_stands_at_their_places():
    values = torch.arange(2 * P * P).view(2, P, P)
    (window,) = fill.cut(values, torch.tensor([[1, 16, 48]]))
    assert torch.equal(window, values[1, 16:48, 48:80])
    assert fill.cut(values, torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 32, 32)


def test_measures_by_hand_leave_out_holes():
    image = torch.tensor([[[3, 3, 3], [9, 9, 9]], [[0, 3, 6], [250, 250, 250]]])[None]
    hole = torch.tensor([[[False, False], [False, True]]])
    # brightness 3, 9, 3: mean 5, spread sqrt((4 + 16 + 4) / 3)
    expected = torch.tensor([[4.0, 5.0, 6.0, 8**0.5]])
    torch.testing.assert_close(fill.measure(image.to(torch.uint8), hole), expected)


def test_glass_and_ink_do_not_pass_for_tissue():
    rng = np.random.default_rng(1)
    pairs = [draw_patch(rng) for _ in range(12)]
    blank = np.zeros((P, P), np.uint8)
    odd = [np.full((P, P, 3), level, np.uint8) for level in (245, 180, 20)]  # 180: without texture
    images = [image for image, _ in pairs] + odd
    patches = as_patches(images, [mask for _, mask in pairs] + [blank] * 3)
    holes = fill.holes_of(patches.masks)
    nuclei, free = fill.find_windows(patches, holes, 0)
    assert free[:, 0].max() == 14
    tissue = fill.looks_of(patches, holes, nuclei).of(patches, free)
    assert tissue[:, 0].max() == 11
    assert len(tissue) > 0.5 * (free[:, 0] < 12).sum()


# ---------------------------------------------------------------- the fill


class Grey(nn.Module):
    """A generator that makes everything grey, and says that nothing has to change."""

    def forward(self, images):
        zero = torch.zeros_like(images)
        return Transferred(zero, zero[:, :1], images, images, zero[:, :2, 0, 0], zero[:, :1])


def test_only_holes_are_filled_and_all_of_them_whatever_the_generator_calls_a_nucleus():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 100, (5, 32, 32, 3), np.uint8))
    holes = torch.from_numpy(rng.random((5, 32, 32)) < 0.3)
    filled = fill.fill_holes(Grey(), images, holes, CPU)
    assert torch.equal(filled[~holes], images[~holes])
    assert (filled[holes] != images[holes]).float().mean() > 0.9
    everywhere = torch.ones_like(holes)
    assert (fill.fill_holes(Grey(), images, everywhere, CPU) == 128).all()  # 127.5


def test_a_fill_keeps_its_pattern_and_takes_the_colour_of_what_is_around_it():
    holes = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    holes[..., 10:14, 10:14] = True
    pattern = torch.zeros(1, 3, 32, 32)
    pattern[..., 11, 12] = 5  # a speck inside the hole
    images = torch.full((1, 3, 32, 32), 60.0)
    images[..., 10:14, 10:14] = 20  # a nucleus
    laid = fill.lay_on(200 + pattern, images, holes)
    torch.testing.assert_close(laid, 60 + pattern)


def test_the_black_around_a_region_gives_no_colour_and_stays_black():
    images = torch.full((1, 64, 64, 3), 60, dtype=torch.uint8)
    images[:, 50:] = 0
    holes = torch.zeros(1, 64, 64, dtype=torch.bool)
    holes[:, 40:50, 20:40] = True  # at the edge of the region
    filled = fill.fill_holes(Grey(), images, holes, CPU)
    assert (filled[:, :50] == 60).all()
    assert (filled[:, 50:] == 0).all()


def test_a_membrane_is_the_mean_of_what_is_around_it():
    images = torch.arange(32.0).expand(1, 3, 32, 32)  # brighter to the right
    holes = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    holes[..., 12:20, 12:20] = True
    laid = fill.lay_on(torch.zeros(1, 3, 32, 32), images, holes)
    torch.testing.assert_close(laid, images, atol=0.05, rtol=0)  # a plane bends nowhere


def test_the_fills_of_the_trunk_are_its_own():
    rng = np.random.default_rng(0)
    image, mask = draw_patch(rng)
    for name in fill.PLAIN:
        (filled,) = fill.replace_nuclei(*(torch.from_numpy(x)[None] for x in (image, mask)), name)
        assert torch.equal(filled[mask == 0], torch.from_numpy(image)[mask == 0])
        assert not torch.equal(filled, torch.from_numpy(image))


# ---------------------------------------------------------------- train_fill.py


def test_a_generator_sees_no_pixel_of_a_test_patch_and_fills_its_training_patches(filled):
    for fold in filled.folds:
        train, _, test = read_fold(filled, fold)
        patches = load_patches(filled, id_files(filled, train))
        whole = {window.tobytes() for window in every_window(patches.images.numpy())}
        for windows in learned_from(filled, fold):
            assert len(windows) >= train_fill.FEWEST
            assert {window.tobytes() for window in windows} <= whole
        names = {path.name for path in ood_folder(filled, fold).glob("*.png")}
        assert names == set(train)
        assert names.isdisjoint(test)


def every_window(images):
    starts = range(0, P - fill.SIDE + 1, fill.STRIDE)
    for image in images:
        for top in starts:
            for left in starts:
                yield image[top : top + fill.SIDE, left : left + fill.SIDE]


def test_a_filled_patch_is_the_patch_but_for_its_nuclei_and_their_margin(filled):
    paths = sorted(ood_folder(filled, 1).glob("*.png"))
    for path in paths:
        patch = read_image(filled.workspace / "Image_Patchs" / path.name)
        mask = read_mask(filled.workspace / "Mask_Patchs" / path.name, 7)
        changed = (read_image(path) != patch).any(-1)
        assert changed[mask > 0].mean() > 0.9
        near = cv2.dilate((mask > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        assert not changed[~near].any()
    assert len(paths) == 24


def test_windows_without_nuclei_are_real_tissue(filled):
    with_nuclei, tissue = learned_from(filled, 1)
    assert (with_nuclei.min((1, 2, 3)) < 110).all()
    assert (tissue.min((1, 2, 3)) > 110).all()


def test_what_is_there_is_kept_and_what_changed_is_made_again(cfg, capsys):
    train_fill.train_fill(cfg)
    sheet = cfg.workspace / "transfer" / "fill" / "1.png"
    assert sheet.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    train_fill.train_fill(cfg)
    assert capsys.readouterr().out.count("kept, made from the same") == 2
    train_fill.train_fill(dataclasses.replace(cfg, channels=2))
    said = capsys.readouterr().out
    assert "channels was 1, is 2" in said
    assert "OoD_Patchs_1: made again: generator changed" in said


def test_too_few_windows_of_tissue_are_refused_with_their_number(cfg):
    for path in (cfg.workspace / "Mask_Patchs").glob("*.png"):
        mask = read_mask(path, 7)
        mask[::8, ::8] = 1
        write_png(path, mask)
    with pytest.raises(UserError, match=r"0 without, of which 0, in 0 patches.* at least 50 of"):
        train_fill.train_fill(cfg)
    assert not (cfg.workspace / "transfer").exists()


# ---------------------------------------------------------------- in the trunk


def test_without_a_fill_the_steps_say_which_command_makes_it(cfg):
    said = r"OoD_Patchs_1 is missing: run `python transfer/train_fill.py .*--folds 1.*` first"
    with pytest.raises(UserError, match=said) as error:
        generate_unfiltered_oods(trunk(cfg))
    assert "ood_fill" not in str(error.value)  # not a setting of train_fill.py


def test_med_ood_trains_on_the_filled_patches_of_its_own_fold(filled, monkeypatch):
    cfg = dataclasses.replace(filled, folds=(2,), pct_grid=(1.0,))
    for step in (generate_unfiltered_oods, train, rank_prune_ood, estimate_pct):
        step(cfg)
    assert not (cfg.workspace / "OoD_Patchs").exists()
    added = []
    monkeypatch.setattr(loop, "train_fold", lambda cfg, fold, files, *_: added.extend(files))
    train_ood(cfg)
    assert {image.parent.name for image, mask in added if mask is None} == {"OoD_Patchs_2"}


@pytest.mark.parametrize("change", ["generator", "patch"])
def test_filled_patches_of_another_generator_or_patch_are_refused(filled, change):
    if change == "generator":
        (fill_generator_folder(filled, 1) / WEIGHTS).write_bytes(b"another")
    else:
        name = read_fold(filled, 1).train[0]
        write_png(filled.workspace / "Image_Patchs" / name, np.zeros((P, P, 3), np.uint8))
    with pytest.raises(UserError, match="OoD_Patchs_1 is out of date .*transfer/train_fill.py"):
        generate_unfiltered_oods(filled)


def test_a_generator_of_the_user_fills(cfg):
    train_fill.train_fill(cfg)
    before = read_image(next((cfg.workspace / "OoD_Patchs_1").glob("*.png")))
    (fill_generator_folder(cfg, 1) / RECORD).unlink()
    shutil.rmtree(cfg.workspace / "OoD_Patchs_1")
    train_fill.train_fill(dataclasses.replace(cfg, channels=2))  # its own width counts
    after = read_image(next((cfg.workspace / "OoD_Patchs_1").glob("*.png")))
    np.testing.assert_array_equal(after, before)


def test_filled_patches_whose_generator_is_gone_are_used_as_they_are(filled):
    shutil.rmtree(filled.workspace / "transfer")
    generate_unfiltered_oods(filled)


def test_the_record_of_other_fills_is_what_it_was(patched):
    made = record_of(patched.workspace / "OoD_Patchs").content["made_from"]
    assert list(made) == ["settings", "inputs", "masks"]
    assert made["settings"] == {"ood_fill": "zero"}


def test_the_controls_have_a_row_for_the_fill_where_it_is(filled, capsys):
    cfg = dataclasses.replace(filled, ood_fill="zero")
    study = as_settings_of(controls.ControlsConfig, cfg, plan=True, seeds=1)
    generate_unfiltered_oods(cfg)
    recipe = controls.filled("transfer", study, 2)
    added = [image for image, mask in recipe.files if mask is None]
    assert {image.parent.name for image in added} == {"OoD_Patchs_2"}
    assert recipe.steps == common.med_ood(study, 2).steps
    controls.controls(study)
    assert "Med-OoD, transfer" in capsys.readouterr().out
    for fold in (1, 2):
        shutil.rmtree(study.workspace / f"OoD_Patchs_{fold}")
    controls.controls(study)
    said = capsys.readouterr().out
    again = command(study, "transfer/train_fill.py", train_fill.FillConfig)
    assert f"Med-OoD, transfer is left out: run `{again}` first" in said
    assert "--patch_size 96 --folds 1 2 --split region" in again
