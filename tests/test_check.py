"""A look at the data before the run: all that is wrong, with file and cure, nothing changed."""

import dataclasses
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from config import UserError
from generate_patches import generate_patches
from main import look, main
from medood import training
from medood.check import check, refuse_findings
from medood.files import csv_text, model_folder, write_text
from medood.folds import fold_path, read_fold
from medood.hard_ood import ranking_path
from medood.images import read_image, write_png
from medood.records import RECORD
from tests.conftest import write_region

ROOT = Path(__file__).parents[1]


def run_check(cfg, *more):
    settings = (f"--patch_size={cfg.patch_size}", "--encoder=mobilenet_v2", "--device=cpu")
    command = [sys.executable, "main.py", "--check", f"--workspace={cfg.workspace}", *settings]
    return subprocess.run(
        [*command, "--encoder_weights=none", *more], cwd=ROOT, capture_output=True, text=True
    )


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_look_at_good_data_says_what_is_there_and_changes_nothing(tiny):
    before = files(tiny.workspace)
    done = run_check(tiny)
    assert (done.returncode, done.stderr) == (0, "")
    assert files(tiny.workspace) == before
    for said in ("images, labels  3, 3", "regions that fit  3", "drawn by patch", "GB free"):
        assert said in done.stdout
    assert "3 steps on this machine" in done.stdout


def change_label(path, **changes):
    content = {key: value for key, value in loadmat(path).items() if key[0] != "_"} | changes
    savemat(path, {key: value for key, value in content.items() if value is not None})


def truncate(path):
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 2])


def to_16_bit(path):
    cv2.imwrite(str(path), cv2.imread(str(path)).astype(np.uint16) * 257)


def make_holes(path):
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2BGRA)
    image[:10, :10, 3] = 0
    cv2.imwrite(str(path), image)


def list_twice(path):
    ids = loadmat(path)["id"]
    ids[0] = ids[1]
    change_label(path, id=ids)


PROBLEMS = {
    "image truncated": ("png", truncate, "is not a whole image file"),
    "image of 16 bits": ("png", to_16_bit, "has 16 bits per channel: save it with 8"),
    "image with holes": ("png", make_holes, "has transparent pixels"),
    "image missing": ("png", Path.unlink, "has no image of its name"),
    "image of another size": (
        "png",
        lambda path: write_png(path, np.zeros((9, 8, 3), np.uint8)),
        "is 8 x 9 pixels but its label",
    ),
    "label truncated": ("mat", truncate, "is not a readable .mat file"),
    "label missing": ("mat", Path.unlink, "has no label of its name"),
    "key missing": ("mat", lambda path: change_label(path, id=None), "has no `id`"),
    "id unlisted": (
        "mat",
        lambda path: change_label(path, id=loadmat(path)["id"] + 1000),
        "inst_map holds nucleus",
    ),
    "id twice": ("mat", list_twice, "lists a nucleus twice"),
    "class 7": (
        "mat",
        lambda path: change_label(path, **{"class": loadmat(path)["class"] * 0 + 7}),
        "`class` holds 7, expected 1..6",
    ),
}


def test_every_problem_is_named_at_once_with_its_file(tiny):
    for number, (ending, damage, _) in enumerate(PROBLEMS.values(), start=3):
        write_region(tiny.workspace, f"bad_{number}", 90, 90, seed=number)
        folder = {"png": "Lizard_Images", "mat": "Labels"}[ending]
        damage(tiny.workspace / folder / f"bad_{number}.{ending}")
    before = files(tiny.workspace)
    done = run_check(tiny)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert files(tiny.workspace) == before
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"error: {len(PROBLEMS)} problems")
    for number, (_, _, said) in enumerate(PROBLEMS.values(), start=3):
        assert any(f"bad_{number}." in line and said in line for line in lines), said
    skipped = run_check(tiny, "--skip_bad_files")
    assert skipped.returncode == 0
    assert "regions that fit  3" in skipped.stdout


@pytest.mark.parametrize("kind", ["L", "P", "RGBA", "1"])
def test_what_loses_nothing_is_converted(tmp_path, kind):
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.integers(0, 2, (20, 30, 1), np.uint8) * 255, 3, axis=2)
    for ending in ("png", "tif", "bmp"):
        if (kind, ending) == ("RGBA", "bmp"):
            continue  # Pillow writes none that OpenCV knows to have alpha
        path = tmp_path / f"{kind}.{ending}"
        Image.fromarray(grey).convert(kind).save(path)
        np.testing.assert_array_equal(read_image(path), grey)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_what_would_lose_something_is_refused(tmp_path, ending):
    rng = np.random.default_rng(0)
    path = tmp_path / f"image.{ending}"
    cv2.imwrite(str(path), rng.integers(0, 2**16, (20, 30, 3), np.uint16))
    with pytest.raises(UserError, match="has 16 bits per channel"):
        read_image(path)
    cv2.imwrite(str(path), rng.integers(0, 2**16, (20, 30), np.uint16))
    with pytest.raises(UserError, match="has 16 bits per channel"):
        read_image(path)
    image = Image.fromarray(rng.integers(0, 255, (20, 30, 4), np.uint8), "RGBA")
    image.save(path)
    with pytest.raises(UserError, match="has transparent pixels"):
        read_image(path)
    if ending == "tif":
        image.convert("RGB").save(path, save_all=True, append_images=[image.convert("RGB")])
        with pytest.raises(UserError, match="holds 2 pages"):
            read_image(path)


def test_an_image_that_claims_to_be_huge_is_refused_before_it_is_decoded(tmp_path):
    write_png(tmp_path / "bomb.png", np.zeros((10, 10, 3), np.uint8))
    data = bytearray((tmp_path / "bomb.png").read_bytes())
    data[16:24] = (60_000).to_bytes(4) * 2
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(UserError, match="3,600,000,000 pixels, more than max_pixels"):
        read_image(tmp_path / "bomb.png")
    write_png(tmp_path / "plain.png", np.zeros((10, 10, 3), np.uint8))
    read_image(tmp_path / "plain.png", max_pixels=100)
    with pytest.raises(UserError, match="100 pixels, more than max_pixels = 99"):
        read_image(tmp_path / "plain.png", max_pixels=99)


def test_a_label_that_claims_to_be_huge_is_refused(tiny):
    cfg = dataclasses.replace(tiny, max_pixels=97 * 100 - 1)
    findings = check(cfg)
    assert set(findings.bad) == {"region_0.mat", "region_1.mat"}
    assert "9,700 pixels, more than max_pixels = 9,699" in findings.bad["region_1.mat"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (",img_name,obj_tag\n0,gone_1.png,train\n1,region_0_1.png,test\n", "names 1 patches that"),
        (",img_name,obj_tag\n0,region_0_0.png,train\n", "has no patch tagged test"),
        (",img_name,obj_tag\n0,region_0_0.png,train\n1,region_0_0.png,test\n", "a patch twice"),
        (",img_name,obj_tag\n0,region_0_0.png,both\n", "expected train or test"),
        ("a,b\n1,2\n", "lacks rows with the columns"),
        ("\xff\xfe\x00", "is not a CSV in UTF-8"),
    ],
)
def test_a_wrong_fold_list_is_found_before_there_are_patches(tiny, text, said):
    fold_path(tiny, 1).parent.mkdir()
    fold_path(tiny, 1).write_bytes(text.encode("latin-1"))
    findings = check(tiny)
    (problem,) = findings.stops
    assert said in problem
    assert str(fold_path(tiny, 1)) in problem


def test_folds_of_the_user_that_overlap_are_said(tiny, capsys):
    fold_path(tiny, 1).parent.mkdir()
    for fold in (1, 2):
        rows = f"0,region_0_{fold}.png,test\n1,region_0_3.png,test\n2,region_1_0.png,train\n"
        fold_path(tiny, fold).write_text(",img_name,obj_tag\n" + rows)
    refuse_findings(tiny, check(tiny))
    said = capsys.readouterr().out
    assert "folds 1, 2  test 1 patches both" in said
    assert "yours: 1 train, 2 test patches, 0 regions on both sides" in said


def test_bad_prepared_patches_are_found(patched):
    for folder in ("Lizard_Images", "Labels", "Semantic_Labels"):
        shutil.rmtree(patched.workspace / folder)
    for folder in ("Image_Patchs", "Mask_Patchs"):
        (patched.workspace / folder / RECORD).unlink()
    truncate(patched.workspace / "Image_Patchs" / "region_0_1.png")
    (patched.workspace / "Image_Patchs" / "region_0_2.png").unlink()
    mask = patched.workspace / "Mask_Patchs" / "region_0_3.png"
    write_png(mask, np.full((32, 32), 9, np.uint8))
    write_png(patched.workspace / "Mask_Patchs" / "region_0_4.png", np.zeros((31, 32), np.uint8))
    findings = check(patched)
    assert {name: said.split(" ", 1)[1][:14] for name, said in findings.bad.items()} == {
        "region_0_1.png": "is not a whole",
        "region_0_2.png": "is missing: pu",
        "region_0_3.png": "is not a class",
        "region_0_4.png": "is 32 x 31 pix",
    }
    with pytest.raises(UserError, match="4 problems"):
        refuse_findings(patched, findings)


def test_too_small_a_disk_is_said_before_it_is_full(tiny, monkeypatch):
    usage = namedtuple("usage", "total used free")(1, 1, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="0.0 GB free, 0.2 may be written: free some space"):
        look(tiny)


def test_a_missing_table_of_the_official_split_is_found(tiny):
    findings = check(dataclasses.replace(tiny, split="official"))
    assert "no info.csv" in findings.stops[0]


def test_a_region_without_any_nucleus_is_fine_and_none_at_all_is_not(tiny):
    empty = {"inst_map": np.zeros((64, 64), int), "id": np.zeros((0, 1)), "class": np.zeros((0, 1))}
    write_png(tiny.workspace / "Lizard_Images" / "empty.png", np.zeros((64, 64, 3), np.uint8))
    savemat(tiny.workspace / "Labels" / "empty.mat", empty)
    refuse_findings(tiny, check(tiny))
    for label in (tiny.workspace / "Labels").glob("region_*.mat"):
        shape = loadmat(label)["inst_map"].shape
        savemat(label, empty | {"inst_map": np.zeros(shape, int)})
    with pytest.raises(UserError, match="no label holds a nucleus"):
        refuse_findings(tiny, check(tiny))


# ---------------------------------------------------------------- results that went stale


def test_a_changed_source_is_seen_by_the_steps_behind_it_and_the_reason_is_said(patched, capsys):
    from generate_semantic_labels import generate_semantic_labels
    from train import train

    cfg = dataclasses.replace(patched, folds=(1,), epochs=1)
    train(cfg)
    image = cfg.workspace / "Lizard_Images" / "region_0.png"
    write_png(image, read_image(image)[:, ::-1])
    with pytest.raises(UserError, match="Image_Patchs is out of date .what it is made from"):
        train(cfg)
    generate_patches(cfg)
    assert "Image_Patchs: made again: what it is made from changed" in capsys.readouterr().out
    train(cfg)
    assert "trained again, what it is made from changed" in capsys.readouterr().out
    label = cfg.workspace / "Labels" / "region_0.mat"
    change_label(label, **{"class": loadmat(label)["class"] * 0 + 2})
    with pytest.raises(UserError, match="Semantic_Labels is out of date"):
        generate_patches(cfg)
    generate_semantic_labels(cfg)
    said = capsys.readouterr().out
    assert "Semantic_Labels: made again: what it is made from changed" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch_size": 64}, r"Image_Patchs is out of date .patch_size was 32, is 64.*patches.py"),
        ({"split": "region"}, r"fold 1: split was patch, is region.*generate_patches.py"),
        ({"seed": 4}, r"fold 1: seed was 0, is 4.*generate_patches.py"),
        ({"ood_fill": "mean"}, r"OoD_Patchs is out of date .ood_fill was zero, is mean.*oods.py"),
    ],
)
def test_a_changed_setting_is_seen_by_the_steps_behind_it(patched, change, said):
    from rank_prune_ood import rank_prune_ood

    with pytest.raises(UserError, match=said):
        rank_prune_ood(dataclasses.replace(patched, folds=(1,), **change))


def test_an_estimate_for_another_aim_is_not_used(report):
    from train_ood import train_ood

    cfg, _ = report
    with pytest.raises(UserError, match=r"pnr_opt was 0.65, is 0.8.*estimate_pct.py --folds 1"):
        train_ood(dataclasses.replace(cfg, pnr_opt=0.8))


def test_a_list_of_the_user_is_used_as_it_is(patched):
    fold_path(patched, 1).with_suffix(".json").unlink()
    expected = read_fold(patched, 1)
    generate_patches(dataclasses.replace(patched, seed=9))
    assert read_fold(patched, 1) == expected


@pytest.mark.parametrize("lost", [("Lizard_Images",), ("Lizard_Images", "Labels")])
def test_patches_whose_sources_are_gone_are_used_as_they_are(patched, lost):
    for folder in lost:
        shutil.rmtree(patched.workspace / folder)
    cfg = dataclasses.replace(patched, folds=(1,), epochs=1)
    main(cfg)
    assert (cfg.workspace / "reports/unet_mobilenet_v2/index.html").exists()


def test_bad_files_of_patches_that_were_the_users_are_forgotten_with_them(patched):
    for folder in ("Image_Patchs", "Mask_Patchs"):
        (patched.workspace / folder / RECORD).unlink()
    truncate(patched.workspace / "Image_Patchs" / "region_0_1.png")
    with pytest.raises(UserError, match="region_0_1.png is not a whole"):
        generate_patches(patched)
    for folder in ("Image_Patchs", "Mask_Patchs"):
        shutil.rmtree(patched.workspace / folder)
    generate_patches(patched)
    assert "region_0_1.png" in read_fold(patched, 1).train + read_fold(patched, 1).test


# ---------------------------------------------------------------- what was mended


def test_a_setting_that_was_corrected_lets_a_file_in(tiny):
    from generate_semantic_labels import generate_semantic_labels

    with pytest.raises(UserError, match="9,700 pixels, more than max_pixels"):
        generate_semantic_labels(dataclasses.replace(tiny, max_pixels=97 * 100 - 1, workers=1))
    generate_semantic_labels(tiny)
    generate_patches(tiny)


@pytest.mark.parametrize("skip", [False, True])
def test_an_image_without_a_label_is_seen_when_it_comes_and_forgotten_when_it_goes(patched, skip):
    from train import train

    cfg = dataclasses.replace(patched, folds=(1,), epochs=1, skip_bad_files=skip)
    lone = cfg.workspace / "Lizard_Images" / "lone.png"
    write_png(lone, np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(UserError, match="Image_Patchs is out of date .left out"):
        train(cfg)
    if skip:
        generate_patches(cfg)
    else:
        with pytest.raises(UserError, match="lone.png has no label of its name"):
            generate_patches(cfg)
    lone.unlink()
    generate_patches(cfg)
    train(cfg)


def test_hidden_files_of_macos_are_no_patches(patched):
    from train import train

    for folder in ("Image_Patchs", "Mask_Patchs", "Lizard_Images"):
        name = next((patched.workspace / folder).glob("*.png")).name
        (patched.workspace / folder / f"._{name}").write_bytes(b"macOS")
    generate_patches(patched)
    train(dataclasses.replace(patched, folds=(1,), epochs=1))


def test_an_estimate_of_time_without_memory_is_said_with_the_batch_size_to_try(tiny, monkeypatch):
    def fill(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(training, "training_step", fill)
    training.step_seconds.cache_clear()
    with pytest.raises(UserError, match="set batch_size to 4$"):
        look(tiny)


def test_own_ood_patches_that_lack_some_are_found_before_the_training(patched):
    folder = patched.workspace / "OoD_Patchs"
    (folder / RECORD).unlink()
    (folder / "region_0_3.png").unlink()
    (problem,) = check(patched).stops
    assert "lacks 1 patches, region_0_3.png for one" in problem
    wrong = dataclasses.replace(patched, ood_source=Path("nowhere"))
    assert any("there is no folder nowhere" in said for said in check(wrong).stops)


@pytest.mark.parametrize("again", ["rank_prune_ood", "train_ood"])
def test_a_baseline_of_other_settings_is_not_mined_nor_trained_on(report, again):
    import importlib

    step = getattr(importlib.import_module(again), again)
    cfg, _ = report
    with pytest.raises(UserError, match="is out of date .epochs was 2, is 3.*train.py"):
        step(dataclasses.replace(cfg, epochs=3))


def test_a_network_and_a_ranking_of_the_user_are_not_overwritten(report, capsys):
    from rank_prune_ood import rank_prune_ood
    from train import train

    cfg, _ = report
    cfg = dataclasses.replace(cfg, folds=(1,))
    ranking = ranking_path(cfg, 1)
    ranking.with_suffix(".json").unlink()
    before = ranking.read_bytes()
    ranking.write_bytes(before + b"\n")
    rank_prune_ood(cfg)
    assert "kept, it was put there by you" in capsys.readouterr().out
    assert ranking.read_bytes() == before + b"\n"
    folder = model_folder(cfg, 1, ood=False)
    (folder / "run.json").unlink()
    with pytest.raises(UserError, match="was put there by you: remove it to have it trained"):
        train(cfg)
    assert (folder / "model.safetensors").exists()


def test_a_table_that_is_gone_does_not_undo_its_lists(tiny):
    from generate_semantic_labels import generate_semantic_labels
    from medood.prepared import require_fresh

    rows = "".join(f"region_{n},drawn,{n + 1}\n" for n in range(3))
    (tiny.workspace / "info.csv").write_text("FileName,Source,Split\n" + rows)
    cfg = dataclasses.replace(tiny, split="official")
    generate_semantic_labels(cfg)
    generate_patches(cfg)
    (tiny.workspace / "info.csv").unlink()
    require_fresh(cfg)
    generate_patches(cfg)
    assert check(cfg).stops == []


def test_names_in_tables_do_not_reach_outside_the_workspace(patched):
    from generate_patches import nuclei_of_patches
    from medood.hard_ood import columns, read_hard_oods

    cfg = dataclasses.replace(patched, folds=(1,))
    secret = cfg.workspace.parent / "secret.png"
    write_png(secret, np.zeros((32, 32, 3), np.uint8))
    rows = [[1, "../../secret.png", 0.5, 1, *[1, 0, 0, 0, 0, 0], 1]]
    write_text(ranking_path(cfg, 1), csv_text(columns(cfg), rows))
    with pytest.raises(UserError, match=r"ranks ../../secret.png, which is no OoD patch"):
        read_hard_oods(cfg, 1)
    folder = cfg.workspace / "Semantic_Labels"
    write_text(folder / "nuclei.csv", "region,class,x,y\n../../secret,1,3.0,4.0\n")
    with pytest.raises(UserError, match="nuclei.csv is damaged"):
        nuclei_of_patches(folder, 32)
    fold_path(cfg, 1).write_text(
        ",img_name,obj_tag\n0,../../secret.png,train\n1,region_0_0.png,test\n"
    )
    with pytest.raises(UserError, match="names 1 patches that are not in Image_Patchs"):
        read_fold(cfg, 1)


@pytest.mark.parametrize("folder", ["Image_Patchs", "Mask_Patchs", "OoD_Patchs"])
def test_a_folder_of_ours_that_was_damaged_is_neither_kept_nor_overwritten(patched, folder):
    from generate_unfiltered_oods import generate_unfiltered_oods

    path = patched.workspace / folder / "region_0_1.png"
    truncate(path)
    damaged = path.read_bytes()
    step = generate_unfiltered_oods if folder == "OoD_Patchs" else generate_patches
    with pytest.raises(UserError, match=f"{folder} was changed, or damaged, since it was made"):
        step(patched)
    assert path.read_bytes() == damaged  # it may be the user's own correction
    shutil.rmtree(patched.workspace / folder)
    generate_patches(patched)
    generate_unfiltered_oods(patched)
    assert path.read_bytes() != damaged


def test_a_ranking_without_rows_is_none(report):
    from medood.hard_ood import read_hard_oods

    cfg, _ = report
    ranking_path(cfg, 1).write_text("a,b\n")
    with pytest.raises(UserError, match="lacks columns of rank"):
        read_hard_oods(cfg, 1)
