"""Brightness by patient, what labels give away, and scores of lesions: by hand."""

import dataclasses

import numpy as np
import pytest
import torch

from medood.data.images import read_image, write_png
from tests.conftest import TINY, as_settings_of
from weak import check_labels
from weak.check_labels import places_of, shares_by_place
from weak.generate_images import DEVIATION, MEAN, generate_images, standardised
from weak.image_labels import ImageLabels, read_image_labels
from weak.products import IMAGES, images_folder
from weak.scoring import lesion_scores
from weak.settings import ImagesConfig


def test_tissue_of_all_images_together_has_one_mean_and_spread():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[0, 2:6], images[1, 2:6] = 30, 40  # tissue: 35 and 5 either way
    found = standardised(images)
    assert (found[0, 2:6] == MEAN - DEVIATION).all()
    assert (found[1, 2:6] == MEAN + DEVIATION).all()
    assert (found[:, 0] == max(0, MEAN - 7 * DEVIATION)).all()
    flat = np.full((1, 4, 4, 3), 9, np.uint8)
    assert (standardised(flat) == flat).all()


@pytest.mark.parametrize(("normalise", "alike"), [("none", None), ("image", 3), ("patient", 2)])
def test_images_are_of_one_brightness_by_image_or_patient(tmp_path, normalise, alike):
    """Patient x has one image three times darker than his other; y is as dark as the darker."""
    rng = np.random.default_rng(0)
    noise = rng.integers(60, 90, (16, 16, 1)).repeat(3, 2)
    (tmp_path / "in").mkdir()
    for name, level in (("a", 3), ("b", 1), ("c", 1)):
        image = np.pad((noise * level / 1.1).astype(np.uint8), ((8, 8), (8, 8), (0, 0)))
        write_png(tmp_path / "in" / f"{name}.png", image)
    csv = tmp_path / "labels.csv"
    csv.write_text("img_name,patient,cat\na,x,1\nb,x,0\nc,y,1\n")
    own = {"workspace": tmp_path, "images": tmp_path / "in", "image_labels": csv}
    cfg = as_settings_of(ImagesConfig, TINY, **own, image_size=32, normalise=normalise)
    generate_images(cfg)
    made = [read_image(images_folder(cfg) / f"{name}.png") for name in "abc"]
    tissue = [image[8:24, 8:24].mean() for image in made]
    if normalise == "none":
        assert tissue[1] == tissue[2]
    else:
        assert sum(abs(mean - MEAN) < 12 for mean in tissue) == alike
    assert ("patients" in IMAGES.made_from(cfg)) == (normalise == "patient")
    assert ("normalise" in IMAGES.made_from(cfg)["settings"]) == (normalise != "none")


def labels_by(held_at):
    """Ten images of each of six patients, whose number says whether they hold the class."""
    names = [f"p{p}_{k}.png" for p in range(6) for k in range(10)]
    held = np.array([[held_at(p, k)] for p in range(6) for k in range(10)], np.uint8)
    return ImageLabels(names, [name.split("_")[0] for name in names], held, ("cat",), None)


def test_a_place_is_the_rank_of_a_name_among_its_patients():
    names = [*(f"x_{k}" for k in (10, 2, 1, 9, 3)), "y"]
    labels = ImageLabels(names, [name[0] for name in names], None, ("cat",), None)
    assert places_of(labels)[:5].tolist() == [1, 0.25, 0, 0.75, 0.5]
    assert np.isnan(places_of(labels)[5])
    shares = shares_by_place(np.array([0.0, 0.05, 0.5, 0.55]), np.array([1, 0, 1, 1]))
    assert shares.tolist() == [0.5, 0.5, 1, 1]


@pytest.mark.parametrize(
    ("held_at", "told"),
    [
        (lambda p, k: float(4 <= k <= 7 or (k == 8 and p % 2)), "matched_cat.csv, the 6 images"),
        (lambda p, k: float(k > 4), "maps may show the place instead"),
        (lambda p, k: float((k + p) % 2), ""),
        (lambda p, k: float((k + p) % 2) if p else 1.0, "1 of 6 patients have only images of one"),
    ],
)
def test_labels_that_a_place_or_a_patient_gives_away_are_told(
    tmp_path, monkeypatch, capsys, held_at, told
):
    monkeypatch.setattr(check_labels, "labels_there", lambda cfg: labels_by(held_at))
    cfg = dataclasses.replace(ImagesConfig(), workspace=tmp_path, image_labels=tmp_path / "all.csv")
    check_labels.check_labels(cfg)
    said = capsys.readouterr().out
    assert told in said
    if "matched" in told:
        matched = read_image_labels(tmp_path / "weak" / "matched_cat.csv")
        assert matched.names == [f"p{p}_8.png" for p in range(6)]
    elif not told:
        assert said == ""


def test_scores_of_lesions_by_hand():
    """Three images of two patients with areas 1, 2 and 4: found whole, not, and half."""

    class Counted:
        confusion = torch.tensor(
            [[[9, 0], [0, 1]], [[8, 0], [2, 0]], [[6, 0], [2, 2]], [[8, 2], [0, 0]]]
        )

    found = lesion_scores(Counted, ["x", "x", "y", "y"])
    assert found["shown"] == pytest.approx(3 / 7)
    x, y = 2 * 1 / (3 + 1), 2 * 2 / (4 + 2 + 2)
    assert found["by_patient"] == pytest.approx((x + y) / 2)
    assert (found["small"], found["medium"]) == (1, 0)
    assert found["large"] == pytest.approx(2 * 2 / 6)
