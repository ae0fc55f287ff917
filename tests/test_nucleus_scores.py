"""Scores by nucleus, on nuclei that can be counted by hand, and against MONAI."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat

from config import UserError
from generate_patches import cut_nuclei, generate_patches
from medood.data.files import pngs
from medood.data.images import read_mask, read_values, write_png
from medood.data.workspace import id_files
from medood.evaluation.nuclei import count_canvases, count_nuclei, no_nuclei, read_canvases
from medood.evaluation.scores import COUNTS, nucleus_scores
from medood.predicting.nuclei import nuclei_of

# the first is found, of the second less than half, the third is renamed, the fourth is invented
TRUTH, CALLED = np.zeros((2, 8, 8), int)
TRUTH[:2, :2] = CALLED[:2, :2] = 1
TRUTH[3:5, 3:7], CALLED[3, 3:5], CALLED[4, 3] = 2, 2, 2
TRUTH[6:, :2] = CALLED[6:, :2] = 3
CALLED[:2, 6:] = 4
TRUE_CLASS, CALLED_CLASS = np.array([0, 1, 1, 2]), np.array([0, 1, 1, 1, 2])


def test_four_nuclei_by_hand():
    counts = count_nuclei((TRUTH, TRUE_CLASS), (CALLED, CALLED_CLASS), CALLED > 0, 3, radius=1.0)
    # true, predicted, matched, sum of IoU, found, invented, missed, misnamed
    assert counts.tolist() == [
        [3, 4, 2, 2.0, 2, 1, 0, 1],  # of all classes
        [2, 3, 1, 1.0, 1, 0, 0, 0],
        [1, 1, 0, 0.0, 0, 1, 0, 1],
    ]
    scores = nucleus_scores(counts)
    assert scores["pq"].tolist()[1:] == [1 / 2.5, 0]
    assert np.isnan([scores["pq"][0], scores["sq"][2]]).all()
    assert scores["mpq"] == 0.2
    assert scores["bpq"] == scores["f1"] == pytest.approx(2 / 3.5)
    assert scores["nuclei_invented"] == 0.25
    assert scores["nuclei_missed"] == 0
    assert scores["nuclei_misnamed"] == 0.5


def canvases(cfg, names=None):
    """The images of the patches of a workspace, and the patches' masks."""
    names = names or [path.name for path in pngs(cfg.workspace / "Image_Patchs")]
    masks = np.array([read_mask(mask, 7) for _, mask in id_files(cfg.workspace, names)])
    return read_canvases(cfg, names, masks), masks


def test_nothing_is_lost_at_the_borders_of_patches(patched):
    found, masks = canvases(patched)
    assert [canvas.patient for canvas in found] == ["region_0", "region_1", "region_2"]
    for canvas in found:
        label = loadmat(patched.workspace / f"Labels/{canvas.patient}.mat")
        numbers, kinds = canvas.truth
        assert numbers.shape == label["inst_map"].shape
        assert len(kinds) - 1 == len(np.unique(label["inst_map"])) - 1 == len(label["id"])
        assert (kinds[numbers] == canvas.join(masks)).all()
    counts = count_canvases(patched, found, masks)
    assert counts[:, 0, COUNTS.index("true")].tolist() == [len(c.truth[1]) - 1 for c in found]
    scores = nucleus_scores(counts.sum(0))
    assert scores["nuclei_invented"] == scores["nuclei_missed"] == scores["nuclei_misnamed"] == 0


def test_patches_whose_region_is_not_whole_are_counted_alone(patched):
    names = [path.name for path in pngs(patched.workspace / "Image_Patchs")][:-1]
    found, masks = canvases(patched, names)
    assert [canvas.shape for canvas in found] == [(90, 128), (97, 100), *[(32, 32)] * 8]
    whole = np.concatenate([canvas.truth[0].ravel() > 0 for canvas in found])
    assert whole.sum() == (masks > 0).sum()
    assert len(count_canvases(patched, found, masks)) == 3


def random_nuclei(rng):
    """The nuclei of a random drawing, and those of one that is shifted and has other classes."""
    blocks = rng.integers(1, 4, (12, 12)) * (rng.random((12, 12)) < 0.5)
    others = np.where(rng.random((12, 12)) < 0.7, blocks, rng.integers(0, 4, (12, 12)))
    drawings = (np.kron(kinds, np.ones((8, 8))).astype(np.uint8) for kinds in (blocks, others))
    true, called = (nuclei_of(drawing, 2.0, 4.0) for drawing in drawings)
    return true, (np.roll(called[0], 1, 1), called[1])


@pytest.mark.parametrize("seed", range(5))
def test_panoptic_quality_is_that_of_monai_and_what_touches_no_nucleus_is_invented(seed):
    from monai.metrics.panoptic_quality import compute_panoptic_quality

    (truth, kinds), (called, guesses) = random_nuclei(np.random.default_rng(seed))
    counts = count_nuclei((truth, kinds), (called, guesses), called > 0, 4, 6.0)
    scores = nucleus_scores(counts)
    for c in range(4):
        own, theirs = (
            torch.from_numpy(np.where((of[drawn] == c) | (c == 0), drawn, 0)).int()
            for drawn, of in ((truth, kinds), (called, guesses))
        )
        tp, fp, fn, iou = compute_panoptic_quality(
            theirs, own, remap=True, output_confusion_matrix=True
        ).tolist()
        every = dict(zip(COUNTS, counts[c], strict=True))
        assert (every["matched"], every["iou"]) == (tp, pytest.approx(iou, rel=1e-6))
        assert (every["predicted"] - tp, every["true"] - tp) == (fp, fn)
    assert scores["bpq"] == pytest.approx(counts[0, 3] / (counts[0, :2].sum() / 2))
    every = dict(zip(COUNTS, counts[0], strict=True))
    touching = {int(n) for n in np.unique(called[truth > 0])} - {0}
    assert every["invented"] == every["predicted"] - len(touching)
    assert every["matched"] <= len(touching)


def test_a_workspace_without_instances_is_told_what_makes_them(patched, capsys):
    folder = patched.workspace / "Instance_Patchs"
    assert read_values(folder / "region_0_1.png").dtype == np.uint16
    shutil.rmtree(folder)
    assert canvases(patched)[0] == []
    why = no_nuclei(patched)
    assert why.startswith(f"no scores of nuclei: {folder} is missing: run `python generate")
    own = dataclasses.replace(patched, images=patched.workspace, masks=patched.workspace)
    assert no_nuclei(own).endswith("the labels have no instances")
    generate_patches(patched)
    patch = folder / "region_0_1.png"
    whole = read_values(patch)
    write_png(patch, whole[:16])
    with pytest.raises(UserError, match=r"region_0_1.png is 32 x 16 pixels but patch_size is 32"):
        canvases(patched)
    write_png(patch, np.zeros((32, 32), np.uint16))
    with pytest.raises(UserError, match=r"does not match its mask: remove Instance_Patchs and"):
        canvases(patched)
    write_png(patch, whole)
    shutil.move(patched.workspace / "Labels", patched.workspace / "elsewhere")
    assert no_nuclei(patched) == ""  # labels that are gone do not undo what was made of them
    shutil.move(patched.workspace / "elsewhere", patched.workspace / "Labels")
    label = patched.workspace / "Labels" / "region_0.mat"
    content = {key: loadmat(label)[key] for key in ("inst_map", "id", "class")}
    savemat(label, content | {"class": content["class"][::-1]})
    with pytest.raises(UserError, match=r"Instance_Patchs is out of date.*run `python generate_p"):
        no_nuclei(patched)


def test_ids_that_16_bits_do_not_hold_are_numbered_again(tmp_path):
    inst_map = np.zeros((32, 32), np.int32)
    inst_map[2:4, 2:4], inst_map[8:12, 8:12] = 70_000, 5
    savemat(tmp_path / "a.mat", {"inst_map": inst_map, "id": [[70_000], [5]], "class": [[1], [2]]})
    cut_nuclei(tmp_path / "a.mat", 7, 32, tmp_path)
    numbers = read_values(tmp_path / "a_0.png")
    assert len(np.unique(numbers)) == 3
    assert ((numbers > 0) == (inst_map > 0)).all()
