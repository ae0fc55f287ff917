"""What a step wrote and somebody changed: neither used nor overwritten, and both cures work."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from config import UserError
from estimate_pct import estimate_pct
from generate_patches import generate_patches
from medood.data import files, ood_set
from medood.data.files import hash_of, read_json, write_json
from medood.data.folds import read_fold
from medood.data.images import read_mask, write_png
from medood.data.records import RECORD, fresh_folder, is_kept, record_of, write_recorded
from medood.data.workspace import id_files, model_folder, pct_path, ranking_path
from medood.runs.products import BASELINE, ESTIMATE, MED_OOD, network_made_from
from medood.runs.provenance import require
from rank_prune_ood import rank_prune_ood
from test import evaluate
from train import train
from train_ood import train_ood

MADE_FROM = {"settings": {"seed": 0}, "inputs": "of these"}
TABLE = ",img_name,obj_tag\n0,a_0.png,train\n1,b_0.png,test\n2,c_0.png,train\n"


def touch(path: Path) -> bytes:
    """Change a table as a spreadsheet does, not its values; return its bytes."""
    quoted = re.sub(r"[^,\n]+", r'"\g<0>"', path.read_bytes().decode())
    path.write_bytes(quoted.replace("\n", "\r\n").encode())
    return path.read_bytes()


def refused(product: Path, act) -> str:
    """Return what the error says that refuses a changed product; the product stays as it is."""
    with pytest.raises(UserError, match=f"{product} was changed, or damaged, since") as error:
        act()
    return str(error.value)


def keep_as_said(message: str) -> None:
    """Remove the record that the error says to remove to keep the product."""
    Path(re.search(r"or remove (\S+) to keep it as user-supplied", message)[1]).unlink()


def test_a_table_that_was_touched_is_refused_and_both_cures_work(tmp_path):
    path = tmp_path / "list.csv"
    write_recorded(path, TABLE, MADE_FROM)
    assert is_kept(path, MADE_FROM)
    changed = touch(path)
    for made in (MADE_FROM, MADE_FROM | {"inputs": "of others"}):  # also if it is out of date
        said = refused(path, lambda made=made: is_kept(path, made))
        assert path.read_bytes() == changed
    keep_as_said(said)
    assert is_kept(path, MADE_FROM | {"inputs": "of others"})
    assert record_of(path).is_yours
    write_recorded(path, TABLE, MADE_FROM)
    touch(path)
    path.unlink()
    assert not is_kept(path, MADE_FROM)


def test_a_kill_between_record_and_table_leaves_the_table_to_be_made(tmp_path, monkeypatch):
    path, write = tmp_path / "list.csv", files.write_text
    write_recorded(path, TABLE, MADE_FROM)

    def stop(target, text):
        if target == path:
            raise KeyboardInterrupt
        write(target, text)

    monkeypatch.setattr(files, "write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        write_recorded(path, TABLE + "3,d_0.png,test\n", MADE_FROM | {"inputs": "of others"})
    assert not is_kept(path, MADE_FROM)
    monkeypatch.undo()
    write_recorded(path, TABLE, MADE_FROM)
    assert is_kept(path, MADE_FROM)


@pytest.mark.parametrize("record", ["", "{", "[]", "\xff"])
def test_a_record_that_cannot_be_read_does_not_make_a_product_the_users(tmp_path, record):
    write_recorded(tmp_path / "list.csv", TABLE, MADE_FROM)
    with fresh_folder(tmp_path / "made", MADE_FROM) as out:
        write_png(out / "a.png", np.zeros((4, 4, 3), np.uint8))
    for product, path in (("list.csv", "list.json"), ("made", f"made/{RECORD}")):
        (tmp_path / path).write_text(record, encoding="latin-1")
        with pytest.raises(UserError, match=f"{path} cannot be read: remove {tmp_path}/{product} "):
            is_kept(tmp_path / product, MADE_FROM)
        (tmp_path / path).unlink()
        assert is_kept(tmp_path / product, MADE_FROM)


def test_med_ood_is_not_trained_on_a_ranking_that_was_touched(ran, quick_report, capsys):
    cfg = dataclasses.replace(ran, folds=(1,))
    path, made = ranking_path(cfg, 1), ranking_path(cfg, 1).read_bytes()
    changed = touch(path)
    for step in (rank_prune_ood, estimate_pct, train_ood):
        said = refused(path, lambda step=step: step(cfg))
        assert path.read_bytes() == changed
    path.unlink()
    rank_prune_ood(cfg)
    assert path.read_bytes() == made
    touch(path)
    keep_as_said(said)
    for step in (rank_prune_ood, estimate_pct, train_ood):
        step(cfg)
    assert f"{path}: kept, user-supplied" in capsys.readouterr().out
    assert path.read_bytes() != made


def test_an_estimate_that_was_edited_is_refused_and_one_of_the_user_is_used(report, capsys):
    cfg = dataclasses.replace(report[0], folds=(1,))
    path = pct_path(cfg, 1)
    made = path.read_bytes()
    estimate_pct(cfg)
    assert f"{path}: kept, made from the same inputs" in capsys.readouterr().out
    path.write_text(json.dumps(read_json(path)))  # the same values
    estimate_pct(cfg)
    write_json(path, read_json(path) | {"ood_patches": 1})
    for step in (estimate_pct, train_ood):
        said = refused(path, lambda step=step: step(cfg))
    assert "remove `made_from` from it to keep it as user-supplied" in said
    write_json(path, {k: v for k, v in read_json(path).items() if k != "made_from"})
    estimate_pct(cfg)
    require(cfg, ESTIMATE)
    assert len(ood_set.chosen_oods(cfg, 1)) == 1
    path.unlink()
    estimate_pct(cfg)
    assert path.read_bytes() == made


PARTS = ("a.png", "maps.npz", "list.json", "sheet/first.png")
BESIDE = ("README.md", "log.csv", "resume.pt", "model.onnx", ".DS_Store", "notes.txt", ".x/a.png")


@pytest.fixture
def product(tmp_path) -> Path:
    """A folder that a step wrote, with a file of every kind."""
    with fresh_folder(tmp_path / "made", MADE_FROM) as out:
        for name in (*PARTS, "README.md", "log.csv"):
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_text(name)
    return tmp_path / "made"


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("how", ["changed", "lost"])
def test_every_file_of_a_product_counts(product, name, how):
    assert is_kept(product, MADE_FROM)
    before = record_of(product).outputs()
    if how == "changed":
        (product / name).write_text("another")
    else:
        (product / name).unlink()
    assert record_of(product).outputs() != before
    if (name, how) == ("a.png", "lost"):  # an image is made again
        assert not is_kept(product, MADE_FROM)
        return
    said = refused(product, lambda: is_kept(product, MADE_FROM))
    assert name in said or name.endswith((".png", ".npz"))
    keep_as_said(said)
    assert is_kept(product, MADE_FROM)
    assert record_of(product).is_yours


def test_what_came_later_or_is_for_people_is_no_part_of_a_product(product):
    before = record_of(product).outputs()
    for name in BESIDE:
        (product / name).parent.mkdir(exist_ok=True)
        (product / name).write_text("written later")
        assert record_of(product).outputs() == before, name
    assert is_kept(product, MADE_FROM)


@pytest.mark.parametrize(
    ("name", "is_there"),
    [("a.npz", True), ("Labels/a.mat", True), ("resume.pt", False), (".a.png", False)],
)
def test_a_folder_without_a_record_is_the_users_unless_a_training_began_it(
    tmp_path, name, is_there
):
    path = tmp_path / "made" / name
    path.parent.mkdir(parents=True)
    path.write_text("content")
    assert record_of(tmp_path / "made").is_yours == is_there
    assert is_kept(tmp_path / "made", MADE_FROM) == is_there


def test_an_edited_mask_of_a_patch_or_a_region_is_refused(one_fold):
    workspace = one_fold.workspace
    path = workspace / "Mask_Patchs/region_0_0.png"
    made = path.read_bytes()
    write_png(path, 1 + 0 * read_mask(path, 7))
    # what is missing beside it does not make the step overwrite it
    shutil.rmtree(workspace / "Image_Patchs")
    refused(path.parent, lambda: generate_patches(one_fold))
    shutil.rmtree(path.parent)
    generate_patches(one_fold)
    assert path.read_bytes() == made
    path = workspace / "Semantic_Labels/region_1.png"
    write_png(path, read_mask(path, 7) * 0)
    keep_as_said(refused(path.parent, lambda: generate_patches(one_fold)))
    generate_patches(one_fold)
    cut = list((workspace / "Mask_Patchs").glob("region_1_*.png"))
    assert len(cut) == 16
    assert not any(read_mask(path, 7).any() for path in cut)


def test_a_change_is_seen_where_size_and_time_stay(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns - 10**10))
    for content in (b"one", b"two", b"six"):
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns - 10**10))
        assert hash_of(path) == hashlib.sha256(content).hexdigest()


def test_a_network_that_was_changed_is_neither_used_nor_overwritten(one_trained):
    folder, name = model_folder(one_trained, 1, ood=False), "trained_on.txt"
    changed = (folder / name).read_bytes().replace(b"region_0", b"region_9") + b"\n"
    (folder / name).write_bytes(changed)
    for step in (train, rank_prune_ood, evaluate):
        said = refused(folder, lambda step=step: step(one_trained))
    assert f"({name}): remove it to have it regenerated, or move it elsewhere to keep it" in said
    assert (folder / name).read_bytes() == changed


def test_scores_beside_a_network_and_a_record_without_hashes_do_not_change_it(ran):
    cfg = dataclasses.replace(ran, folds=(1,))
    folder = model_folder(cfg, 1, ood=False)
    weights = (folder / "model.safetensors").stat().st_ino
    train(cfg)
    run = read_json(folder / "run.json")
    assert run["scores"]  # written by test.py
    write_json(folder / "run.json", {k: v for k, v in run.items() if k != "outputs"})
    (folder / "trained_on.txt").write_text("of a version that did not look\n")
    train(cfg)
    assert (folder / "model.safetensors").stat().st_ino == weights


def test_the_weight_of_ood_patches_decides_a_network_that_has_some(ran):
    cfg = dataclasses.replace(ran, folds=(1,))
    other = dataclasses.replace(cfg, ood_weight=2.5)
    assert BASELINE.made_from(cfg, 1) == BASELINE.made_from(other, 1)
    now, then = (MED_OOD.made_from(one, 1)["settings"] for one in (other, cfg))
    assert now == then | {"ood_weight": 2.5}
    files = id_files(cfg.workspace, read_fold(cfg, 1).train)
    assert network_made_from(cfg, 1, files) == network_made_from(other, 1, files)
    (image, _), *rest = files
    assert network_made_from(cfg, 1, [(image, None), *rest]) != network_made_from(
        other, 1, [(image, None), *rest]
    )
    # and an estimate is of the patches that it counts
    held_out = dataclasses.replace(ran, select="val")
    assert ESTIMATE.made_from(ran, 1) != ESTIMATE.made_from(held_out, 1)
