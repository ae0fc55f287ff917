"""Image labels: every mistake in the CSV is named, patients stay together, patches give labels."""

import dataclasses

import numpy as np
import pytest

from config import LIZARD, UserError
from medood.data.files import pngs, read_table
from medood.data.images import read_mask
from weak.image_labels import ImageLabels, colours, read_image_labels, shuffled, split, with_classes
from weak.label_patches import label_patches
from weak.settings import ImagesConfig

PLAIN = "img_name,cat,dog\na.png,0,1\nb.png,1,1\nc.png,0,0\n"


def write(tmp_path, text):
    path = tmp_path / "image_labels.csv"
    path.write_text(text)
    return path


def patients(count, per_patient=2):
    """Image labels of `count` patients, whose images take turns in holding the one class."""
    names = [f"p{n // per_patient}_{n}" for n in range(count * per_patient)]
    labels = np.arange(len(names), dtype=np.uint8)[:, None] % 2
    return ImageLabels(names, [name.split("_")[0] for name in names], labels, ("cat",), None)


def test_a_plain_table_is_read_and_each_image_is_its_own_patient(tmp_path):
    found = read_image_labels(write(tmp_path, PLAIN))
    assert found.names == found.patients == ["a.png", "b.png", "c.png"]
    assert found.classes == ("cat", "dog")
    assert found.given is None
    assert found.labels.dtype == np.uint8
    assert found.labels.tolist() == [[0, 1], [1, 1], [0, 0]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("img_name,cat\n", "write a header, img_name and a column for each class"),
        ("name,cat\na,0\nb,1\n", "write a header"),
        ("img_name,patient\na,x\n", "write a header"),
        ("img_name,cat\na,0\nb,2\nc,1\n", r"row 3 \(b\) has '2' in column cat, expected 0 or 1"),
        ("img_name,cat\na,0\n,1\n", "row 3 has no img_name"),
        ("img_name,patient,cat\na,x,0\nb,,1\n", "row 3 has no patient"),
        ("img_name,cat\na.png,0\na.tif,1\n", r"row 3 \(a.tif\) names an image for the second"),
        (",img_name,cat\n0,a,0\n1,b,1\n", "a class cannot be named '': rename or remove"),
        ("img_name,cat,Background\na,0,1\nb,1,0\n", "a class cannot be named 'Background'"),
        ("img_name,split,cat\na,train,0\nb,val,1\n", r"row 3 \(b\) has 'val' as split"),
        (
            "img_name,patient,split,cat\na,x,train,0\nb,x,test,1\nc,y,test,0\n",
            r"row 3 \(b\): patient x is on both sides of the split",
        ),
    ],
)
def test_a_mistake_in_the_table_is_named(tmp_path, text, problem):
    with pytest.raises(UserError, match=f"image_labels.csv: .*{problem}"):
        read_image_labels(write(tmp_path, text))


def test_classes_are_called_after_the_columns(tmp_path):
    cfg = with_classes(ImagesConfig(image_labels=write(tmp_path, PLAIN)))
    assert cfg.classes == (("cat", LIZARD[0][1]), ("dog", LIZARD[1][1]))
    with pytest.raises(UserError, match="image_labels = None"):
        with_classes(ImagesConfig())
    with pytest.raises(UserError, match="there is no file"):
        read_image_labels(tmp_path / "absent.csv")
    # the table says whose each image is, and not the setting
    assert with_classes(dataclasses.replace(cfg, patients="(p)_.*")).patients is None
    assert len(set(colours(254))) == 254  # each has its own


def test_patients_stay_on_one_side_and_three_folds_test_each_once():
    labels = patients(7)
    tested = []
    for fold in (79, 158, 237):
        train, test = split(labels, fold, seed=0)
        assert sorted(train + test) == list(range(14))
        assert not {labels.patients[n] for n in train} & {labels.patients[n] for n in test}
        tested += test
        assert (train, test) == split(labels, fold, seed=0)
    assert sorted(tested) == list(range(14))
    assert any(split(labels, 79, seed=0) != split(labels, 79, seed=seed) for seed in (1, 2, 3))
    given = patients(2)._replace(given=["train", "train", "test", "test"])  # of every fold
    assert split(given, 79, seed=79) == split(given, 158, seed=158) == ([0, 1], [2, 3])


def test_a_side_without_images_or_without_contrast_is_refused():
    with pytest.raises(UserError, match="fold 80 has no test image: add a column split"):
        split(patients(1), 80, seed=0)  # the only patient is of part 0
    given = patients(2)._replace(given=["train"] * 4)
    with pytest.raises(UserError, match="has no test image: correct the column split"):
        split(given, 79, seed=0)
    for value, kind in ((0, "no"), (1, "every")):
        labels = np.array([[value], [value], [0], [1]], np.uint8)
        one_sided = patients(2)._replace(given=["train", "train", "test", "test"], labels=labels)
        with pytest.raises(UserError, match=f"{kind} training image has cat: .*, or remove its"):
            split(one_sided, 79, seed=0)


def test_shuffled_labels_are_the_same_rows_dealt_among_the_training_images_alone():
    rows = np.array([[n >> 2 & 1, n >> 1 & 1, n & 1] for n in range(8)], np.uint8)
    labels = ImageLabels(list("abcdefgh"), list("abcdefgh"), rows, ("x", "y", "z"), None)
    dealt, again = (shuffled(labels, [0, 1, 2, 3, 5, 6], seed=1).labels for _ in range(2))
    assert dealt[[4, 7]].tolist() == rows[[4, 7]].tolist()
    assert sorted(dealt.tolist()) == sorted(rows.tolist())
    assert dealt.tolist() == again.tolist() != rows.tolist()
    assert labels.labels is rows  # left as they were
    assert rows[3].tolist() == [0, 1, 1]


def test_labels_of_patches_are_what_their_masks_hold(patched):
    label_patches(patched)
    rows = read_table(patched.workspace / "image_labels.csv")
    names = [name for name, _ in LIZARD]
    masks = pngs(patched.workspace / "Mask_Patchs")
    assert [row["img_name"] for row in rows] == [mask.name for mask in masks]
    assert {row["patient"] for row in rows} == {"region_0", "region_1", "region_2"}
    kept = read_image_labels(patched.workspace / "image_labels.csv").classes
    for row, mask in zip(rows, masks, strict=True):
        values = np.unique(read_mask(mask, 7))
        assert [row[name] == "1" for name in kept] == [1 + names.index(n) in values for n in kept]
    label_patches(dataclasses.replace(patched, patients="(region)_[0-9]"))
    rows = read_table(patched.workspace / "image_labels.csv")
    assert {row["patient"] for row in rows} == {"region"}
    with pytest.raises(UserError, match="run `python generate_patches.py"):
        label_patches(dataclasses.replace(patched, workspace=patched.workspace / "nothing"))


def test_labels_leave_out_a_class_that_no_patch_or_every_patch_has(patched, monkeypatch, capsys):
    def counts(_, patches):
        return np.array([[9, n % 2, 0, 1, n, n, n] for n in range(len(patches))])

    monkeypatch.setattr("weak.label_patches.count_classes", counts)
    label_patches(patched)
    assert "none, and skipped: epithelial, lymphocyte (" in capsys.readouterr().out
    (first, *_) = read_table(patched.workspace / "image_labels.csv")
    assert [*first][2:] == ["neutrophil", "plasma", "eosinophil", "connective"]
    monkeypatch.setattr("weak.label_patches.count_classes", lambda *given: 0 * counts(*given))
    (patched.workspace / "image_labels.csv").unlink()
    with pytest.raises(UserError, match="every class is in all patches, or in none"):
        label_patches(patched)
