"""Lizard as its three archives unpack: folders, keys and types as they are stored there."""

import dataclasses
from io import BytesIO

import numpy as np
from scipy.io import loadmat, savemat, whosmat

from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels
from generate_unfiltered_oods import generate_unfiltered_oods
from medood.data.files import pngs
from medood.data.folds import read_fold
from medood.data.images import read_image, read_mask, read_values, write_png
from medood.data.patients import patients_of
from medood.evaluation.nuclei import no_nuclei, read_canvases
from medood.sample import draw_region, mat_bytes
from tests import oracles
from tests.conftest import TINY

# as `whosmat` prints them of a file of the release; N nuclei in an H x W region
TYPES = {"inst_map": "int32", "id": "int32", "class": "uint8", "bbox": "int32"}
TYPES["centroid"] = "double"
INFO = "Filename,Source,Split\nconsep_1,train_1,3\nglas_2,train_1,1\ncrag_7,train_1,2\n"


def write_release(workspace):
    """Two regions of the sample, one in each folder of images; info.csv names a third."""
    labels = workspace / "Lizard_Labels"
    for number, name in ((1, "consep_1"), (2, "glas_2")):
        image, inst_map, ids, classes = draw_region(np.random.default_rng(number), 100, 130)
        folder = workspace / f"Lizard_Images{number}"
        for made in (folder, labels / "Labels"):
            made.mkdir(parents=True, exist_ok=True)
        write_png(folder / f"{name}.png", image)
        (folder / f"._{name}.png").write_bytes(b"\0")  # of macOS, beside each file
        path = labels / "Labels" / f"{name}.mat"
        content = loadmat(BytesIO(mat_bytes(inst_map, ids, classes)), variable_names=list(TYPES))
        content = {key: content[key].astype(kind) for key, kind in TYPES.items()}
        savemat(path, content, do_compression=True)
        assert {key: kind for key, _, kind in whosmat(path)} == TYPES
    (labels / "info.csv").write_text(INFO)


def test_the_release_is_prepared_from_end_to_end(tmp_path):
    write_release(tmp_path)
    cfg = dataclasses.replace(TINY, workspace=tmp_path, split="official", folds=(1,))
    for step in (generate_semantic_labels, generate_patches, generate_unfiltered_oods):
        step(cfg)
    fold = read_fold(cfg, 1)
    names = [path.name for path in pngs(tmp_path / "Image_Patchs")]
    assert sorted(fold.train + fold.test) == sorted(names)
    assert fold.test == [name for name in names if name.startswith("glas_2")]
    # Source names a slide within its set: these are two
    assert {*patients_of(cfg, names)} == {"consep/train_1", "glas/train_1"}
    nuclei = 0
    for region in ("consep_1", "glas_2"):
        label = loadmat(tmp_path / "Lizard_Labels" / "Labels" / f"{region}.mat")
        nuclei += len(label["id"])
        classes = dict(zip(label["id"].ravel(), label["class"].ravel(), strict=True)) | {0: 0}
        truth = np.vectorize(classes.get)(label["inst_map"]).astype(np.uint8)
        own = [name for name in names if name.startswith(region)]
        own.sort(key=lambda name: int(name[:-4].rsplit("_", 1)[1]))
        for folder, whole, read in (
            ("Mask_Patchs", truth, lambda path: read_mask(path, 7)),
            ("Instance_Patchs", label["inst_map"], read_values),
        ):
            expected = oracles.tile(whole, 32)
            found = np.stack([read(tmp_path / folder / name) for name in own])
            np.testing.assert_array_equal(found, expected)
    for name in names:
        cut, image = (read_image(tmp_path / f"{kind}_Patchs" / name) for kind in ("OoD", "Image"))
        mask = read_mask(tmp_path / "Mask_Patchs" / name, 7)[..., None]
        np.testing.assert_array_equal(cut, np.where(mask == 0, image, 0))
    assert no_nuclei(cfg) == ""
    masks = np.stack([read_mask(tmp_path / "Mask_Patchs" / name, 7) for name in names])
    canvases = read_canvases(cfg, names, masks)
    assert sum(len(canvas.truth[1]) - 1 for canvas in canvases) == nuclei
