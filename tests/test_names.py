"""Names of files: two spellings of one letter are one name, and any name can be read and shown."""

import dataclasses
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import UserError
from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels
from generate_unfiltered_oods import generate_unfiltered_oods
from medood.check import check
from medood.data.files import digest, fingerprint, pngs, read_json, write_json, write_text
from medood.data.folds import read_fold
from medood.data.images import read_image, write_png
from medood.data.names import by_name, name_of, plain, stem_of
from medood.data.records import hashes
from medood.data.workspace import fold_path, id_files, list_images, ood_files, region_images
from medood.evaluation.tables import count_classes
from predict import find_images
from tests.conftest import ROOT, TINY, as_settings_of, write_region
from weak.generate_images import generate_images
from weak.products import image_paths, labels_there
from weak.settings import ImagesConfig
from weak.truth import read_truth

NFC = "h\u00f6hle_\u00e4"
NFD = unicodedata.normalize("NFD", NFC)
NO_UTF8 = os.fsdecode(b"h\xf6hle")  # as Latin-1 writes it
SHOWN = r"h\udcf6hle"
linux = pytest.mark.skipif(sys.platform != "linux", reason="the disk takes no such names")


@given(st.binary(max_size=20).map(os.fsdecode))
def test_a_plain_name_is_text_that_any_file_holds_and_stays_what_it_is(name):
    found = plain(name)
    assert found.encode().decode() == plain(found) == found


def test_a_plain_name_is_the_composed_one_of_all_spellings():
    for name in (NFC, "\ud55c\u0327", "e\u0301\u0323", "\u212b"):
        assert len({plain(unicodedata.normalize(form, name)) for form in ("NFC", "NFD")}) == 1
    assert plain(NFD) == plain(f" {NFC} ") == NFC
    assert plain(NO_UTF8) == SHOWN
    assert (name_of(Path(f"{NFD}.png")), stem_of(Path(f"{NFD}.png"))) == (f"{NFC}.png", NFC)


@linux
def test_hashes_and_text_take_any_name_and_one_hash_is_of_both_spellings(tmp_path):
    found = []
    for name in (NFC, NFD):
        (tmp_path / name).mkdir()
        write_png(tmp_path / name / f"{name}.png", np.zeros((4, 4), np.uint8))
        paths = pngs(tmp_path / name)
        found.append((fingerprint(paths), hashes(tmp_path / name), digest(plain(name))))
    assert found[0] == found[1]
    (tmp_path / NO_UTF8).write_bytes(b"")
    assert fingerprint([tmp_path / NO_UTF8]) != fingerprint([tmp_path / NFC / f"{NFC}.png"])
    write_text(tmp_path / "text", f"a {NO_UTF8}")
    assert (tmp_path / "text").read_text(encoding="utf-8") == f"a {SHOWN}"
    write_json(tmp_path / "json", {"image": NO_UTF8})
    assert read_json(tmp_path / "json") == {"image": NO_UTF8}


def steps(cfg):
    generate_semantic_labels(cfg)
    generate_patches(cfg)
    generate_unfiltered_oods(cfg)


@linux
@pytest.mark.parametrize(("image", "label", "shown"), [(NFC, NFD, NFC), (NO_UTF8, NO_UTF8, SHOWN)])
def test_a_region_of_any_name_gives_the_patches_of_a_plain_one(
    tmp_path, capsys, image, label, shown
):
    cfg = dataclasses.replace(TINY, workspace=tmp_path / "named", folds=(1,))
    plainly = dataclasses.replace(cfg, workspace=tmp_path / "plain")
    for seed, name in enumerate([image, "b", "c"]):
        write_region(plainly.workspace, "abc"[seed], 64, 64, seed)
        write_region(cfg.workspace, name, 64, 64, seed)
    labels = cfg.workspace / "Labels"
    (labels / f"{image}.mat").rename(labels / f"{label}.mat")
    assert not check(cfg).bad
    for each in (cfg, plainly):
        steps(each)
    capsys.readouterr()
    names = {f"{region}_{k}.png" for region in (shown, "b", "c") for k in range(4)}
    for folder in ("Image_Patchs", "OoD_Patchs", "Mask_Patchs"):
        found = by_name(pngs(cfg.workspace / folder))
        assert set(found) == names
        for name, path in found.items():
            other = plainly.workspace / folder / name.replace(shown, "a")
            assert path.read_bytes() == other.read_bytes()
    fold = read_fold(cfg, 1)
    assert {*fold.train, *fold.test} == names
    of_plain = count_classes(plainly, [name.replace(shown, "a") for name in sorted(names)])
    np.testing.assert_array_equal(count_classes(cfg, sorted(names)), of_plain)
    steps(cfg)
    assert capsys.readouterr().out.count("kept, made from the same inputs") == 6


@linux
def test_prepared_patches_and_lists_may_each_spell_names_in_their_own_way(tmp_path):
    rng = np.random.default_rng(0)
    cfg = dataclasses.replace(TINY, workspace=tmp_path, folds=(1,))
    for folder, form in (("Image", NFC), ("Mask", NFD), ("OoD", NFD)):
        (tmp_path / f"{folder}_Patchs").mkdir()
        for k, name in enumerate([form, "b"]):
            shape = (32, 32) if folder == "Mask" else (32, 32, 3)
            path = tmp_path / f"{folder}_Patchs" / f"{name}_{k}.png"
            write_png(path, rng.integers(0, 7, shape, np.uint8))
    fold_path(cfg.workspace, 1).parent.mkdir()
    rows = f",img_name,obj_tag\n0,{NFD}_0.png,train\n1,b_1.png,test\n"
    fold_path(cfg.workspace, 1).write_text(rows, encoding="utf-8")
    assert not check(cfg).stops
    generate_patches(cfg)
    generate_unfiltered_oods(cfg)
    assert read_fold(cfg, 1) == ([f"{NFC}_0.png"], [], ["b_1.png"])
    ((image, mask),) = id_files(cfg.workspace, read_fold(cfg, 1).train)
    ((ood, _),) = ood_files(cfg.workspace, read_fold(cfg, 1).train)
    names = [image.name, mask.name, ood.name]
    assert names == [f"{NFC}_0.png", f"{NFD}_0.png", f"{NFD}_0.png"]
    assert all(path.exists() for path in (image, mask, ood))
    assert fold_path(cfg.workspace, 1).read_text(encoding="utf-8") == rows


@linux
def test_two_files_that_differ_only_in_spelling_are_one_sentence(tmp_path):
    folder = tmp_path / "Lizard_Images"
    folder.mkdir()
    for name in (NFC, NFD):
        write_png(folder / f"{name}.png", np.zeros((32, 32), np.uint8))
    cfg = dataclasses.replace(TINY, workspace=tmp_path)
    for list_files, place in ((list_images, folder), (region_images, cfg), (find_images, [folder])):
        with pytest.raises(UserError, match="have the same name, spelled in two ways"):
            list_files(place)


@linux
@pytest.mark.parametrize(
    ("file", "row", "shown"),
    [(NFC, NFD, NFC), (NFD, f"{NFC}.png", NFC), (NO_UTF8, SHOWN, SHOWN)],
)
def test_image_labels_find_images_and_masks_of_any_name(tmp_path, file, row, shown):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number, (name, mask) in enumerate([(file, NFD if shown == NFC else file), ("b", "b")]):
        write_png(tmp_path / "images" / f"{name}.png", np.full((32, 32, 3), number, np.uint8))
        write_png(tmp_path / "masks" / f"{mask}.png", np.full((32, 32), number, np.uint8))
    table = tmp_path / "labels.csv"
    table.write_text(f"img_name,Tum\u0308r\n{row},0\nb,1\n", encoding="utf-8")
    cfg = as_settings_of(ImagesConfig, TINY, workspace=tmp_path, image_labels=table)
    cfg = dataclasses.replace(cfg, images=tmp_path / "images", masks=tmp_path / "masks")
    generate_images(cfg)
    labels = labels_there(cfg)
    assert image_paths(cfg, labels)[0].name == f"{shown}.png"
    assert [int(read_image(path).max()) for path in image_paths(cfg, labels)] == [0, 1]
    one = dataclasses.replace(cfg, classes=(("cat", "#000000"),))
    found = [int(read_truth(one, name, (32, 32), 32).max()) for name in labels.names]
    assert found == [0, 1]


@linux
def test_a_bad_region_of_any_name_is_one_sentence_in_any_encoding(tmp_path):
    """Also in one that has no such letters."""
    for seed, name in enumerate([NO_UTF8, "b"]):
        write_region(tmp_path, name, 64, 64, seed)
    (tmp_path / "Labels" / f"{NO_UTF8}.mat").write_bytes(b"no labels")
    done = subprocess.run(
        [sys.executable, "generate_semantic_labels.py", "--workspace", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 1
    assert r"h\udcf6hle.mat" in done.stderr.decode("ascii")
    assert b"Traceback" not in done.stderr
    assert [path.name for path in pngs(tmp_path / "Semantic_Labels")] == ["b.png"]
