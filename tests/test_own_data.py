"""Data of one's own: other classes, masks of other values, grey images, and a network for them."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from tifffile import imread

from config import Config
from main import main
from medood.data.images import read_mask
from medood.data.workspace import model_folder
from medood.models.checkpoints import with_settings_of
from predict import PredictConfig, predict_images
from tests.conftest import TINY, drawn_tissue

CLASSES = (("tumour", "#d55e00"), ("stroma", "#0072b2"))


def own_region(seed, height=96, width=120):
    """A grey image, and its mask with 128 and 255 for two kinds of nuclei."""
    image, mask = drawn_tissue(seed, height, width)
    return image.mean(2).astype(np.uint8), np.array([0, *[128] * 3, *[255] * 3], np.uint8)[mask]


@pytest.fixture
def own(tmp_path):
    """Settings for a second data set: two classes, its own folders and values, grey images."""
    images, masks = tmp_path / "scans", tmp_path / "annotations"
    images.mkdir()
    masks.mkdir()
    for seed, name in enumerate(["a", "a-1", "b_2"]):  # in another order with their endings
        image, mask = own_region(seed)
        Image.fromarray(image).save(images / f"{name}.jpg", quality=95)
        Image.fromarray(mask).save(masks / f"{name}.png")
    of_data = {"images": images, "masks": masks, "mask_values": (128, 255), "classes": CLASSES}
    of_run = {"workspace": tmp_path / "own", "folds": (1,), "epochs": 1}
    return dataclasses.replace(TINY, mpp=0.25, **of_data, **of_run)


def test_another_data_set_goes_all_the_way_through_config_alone(own, quick_report, tmp_path):
    main(own)
    mask = read_mask(own.workspace / "Semantic_Labels" / "a-1.png", classes=3)
    np.testing.assert_array_equal(mask, np.searchsorted([0, 128, 255], own_region(1)[1]))
    out = own.workspace / "reports" / own.model_name
    scores = json.loads((out / "scores.json").read_text())
    for network in scores["1"].values():
        assert np.shape(network["confusion"]) == (3, 3)
    page = (out / "index.html").read_text()
    assert all(word in page for word in ("tumour", "stroma", "#d55e00"))
    assert "lymphocyte" not in page
    header, *_ = (own.workspace / "HardOoD" / f"1_{own.model_name}.csv").read_text().splitlines()
    assert header.endswith(",tumour,stroma,kept")
    folder = model_folder(own, 1, ood=True)
    card = (folder / "README.md").read_text()
    assert "| 1 | tumour | `#d55e00` |" in card
    assert "0.25 microns" in card

    # the network carries its classes: the settings of the one who uses it do not matter
    assert with_settings_of(Config(), folder).classes == CLASSES
    predict_images(
        PredictConfig(image=(own.images,), checkpoint=folder, out=tmp_path / "out", device="cpu")
    )
    assert imread(tmp_path / "out" / "a_mask.tif").max() < 3
    found = json.loads((tmp_path / "out" / "a_nuclei.geojson").read_text())["features"]
    assert {f["properties"]["classification"]["name"] for f in found} <= {"tumour", "stroma"}
