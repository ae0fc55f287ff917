"""The drawn sets of weak/: no threshold on brightness finds a class. Golden files hash them."""

import numpy as np
import pytest
import torch

from medood.data.images import read_image, read_mask
from medood.data.workspace import data_name
from weak.floors import otsu_masks
from weak.image_labels import read_image_labels, split
from weak.sample import CLASSES, draw_sample


@pytest.mark.parametrize(("method", "kinds", "patients"), [("cam", 2, 20), ("transfer", 1, 30)])
def test_labels_are_what_masks_hold_and_brightness_tells_no_class(
    tmp_path, method, kinds, patients, capsys
):
    named = draw_sample(tmp_path, method)
    labels = read_image_labels(named["image_labels"])
    images = np.stack([read_image(named["images"] / name) for name in labels.names])
    masks = np.stack([read_mask(named["masks"] / name, 1 + kinds) for name in labels.names])
    assert labels.classes == CLASSES[:kinds]
    values = range(1, 1 + kinds)
    assert labels.labels.tolist() == [[int((mask == v).any()) for v in values] for mask in masks]
    assert len(set(labels.patients)) == patients
    for fold in (79, 158, 237):
        split(labels, fold, seed=0)  # every class, and images without, are on the training side
    for value in range(1, 1 + kinds):
        holds = torch.from_numpy(value * labels.labels[:, value - 1])  # told for free
        found, true = otsu_masks(torch.from_numpy(images), holds).numpy() == value, masks == value
        assert (found & true).sum() / (found | true).sum() < 0.25
    capsys.readouterr()
    draw_sample(tmp_path, method)
    assert "kept, drawn before" in capsys.readouterr().out
    assert data_name(tmp_path).startswith("SAMPLE")
