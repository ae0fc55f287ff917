"""Warnings about image labels that can be predicted without any image: a classifier may do so.

Images with a class may show other places of the body than those without, and patients may have only
images of one kind. These are warnings: nothing stops.
"""

import re
from collections import defaultdict

import numpy as np

from medood.data.files import csv_text, write_text
from weak.classifier import auc_of
from weak.image_labels import NAME, PATIENT, ImageLabels
from weak.products import labels_there
from weak.settings import ImagesConfig

GIVEN_AWAY = 0.9  # AUC of only the place
PARTS = 10  # of the places of a patient's images
BOTH = 0.1  # an image is at a place of both kinds if each has more than this share there
FEWEST = 5  # images of a patient whose order shows the place


def places_of(labels: ImageLabels) -> np.ndarray:
    """Return the place of each image in its patient's, 0..1 by the order of their names, (N,).

    NaN where a patient has fewer than FEWEST images. Numbers in names count as numbers.
    """
    places, of_patient = np.full(len(labels.names), np.nan), defaultdict(list)
    for index, patient in enumerate(labels.patients):
        of_patient[patient].append(index)
    for indices in of_patient.values():
        if len(indices) >= FEWEST:
            indices.sort(key=lambda index: _natural(labels.names[index]))
            places[indices] = np.linspace(0, 1, len(indices))
    return places


def _natural(name: str) -> list:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def shares_by_place(places: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Return the share of images with a class among those around the place of each, (N,)."""
    part = np.minimum((places * PARTS).astype(int), PARTS - 1)
    count = np.bincount(part, minlength=PARTS)
    return (np.bincount(part, held, PARTS) / np.maximum(count, 1))[part]


def check_labels(cfg: ImagesConfig) -> None:
    """Print what predicts the labels; write the CSV of images matched by place."""
    labels = labels_there(cfg)
    by_patient = defaultdict(list)
    for patient, held in zip(labels.patients, labels.held.any(1), strict=True):
        by_patient[patient].append(held)
    alone = sum(len(set(held)) == 1 for held in by_patient.values())
    if len(by_patient) < len(labels.names) and alone:
        print(
            f"{cfg.image_labels}: {alone} of {len(by_patient)} patients have only images of one"
            " kind, so that patients may be learned as a class: add their other images"
        )
    places = places_of(labels)
    known = ~np.isnan(places)
    for name, held in zip(labels.classes, labels.held[known].T, strict=True):
        shares = shares_by_place(places[known], held)
        auc = auc_of(shares, held)
        if auc is not None and auc > GIVEN_AWAY:
            matched = np.flatnonzero(known)[(shares > BOTH) & (shares < 1 - BOTH)]
            cure = "no place has both kinds: maps may show the place instead"
            if len(matched):
                path = cfg.workspace / "weak" / f"matched_{name}.csv".replace("/", "_")
                rows = [(labels.names[i], labels.patients[i], *labels.labels[i]) for i in matched]
                write_text(path, csv_text([NAME, PATIENT, *labels.classes], rows))
                cure = (
                    f"use {path}, the {len(matched)} images of places with both, as --image_labels"
                )
            print(
                f"{cfg.image_labels}: the place of an image among those of its patient predicts"
                f" {name} (AUC {auc:.2f}): {cure}"
            )
