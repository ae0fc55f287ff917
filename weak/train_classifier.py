"""Train classifiers on image labels: which classes does an image have?

What one of them learns as a class depends on its random numbers; what all agree on, less so. For
the two kinds see weak/classifier.py.

Reads   weak/Images                            (generate_images.py), and the CSV of image labels
Writes  weak/classifier/<fold>_<encoder>/      weights, log, AUC and F1 on held-out patients

With method = unet or transfer the trunk's network is the classifier: see weak/pooled.py. It is
written to weak/classifier/<fold>_pooled_<model>/, and an interrupted training continues.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from config import UserError
from medood.data.files import write_json
from medood.models.network import pick_device
from medood.runs.command_line import run
from medood.training.loop import fit, write_log
from weak.arrays import load_images
from weak.check_labels import check_labels
from weak.classifier import (
    ClassifierTraining,
    image_scores,
    kinds_of,
    logits_of,
    save_classifier,
)
from weak.image_labels import for_classifier
from weak.pooled import PooledTraining, save_pooled, seen_by
from weak.products import (
    classifier_folder,
    classifier_product,
    fold_labels,
    image_paths,
    make_folds,
    unfinished,
)
from weak.settings import ClassifierConfig


def train_classifiers(cfg: ClassifierConfig) -> None:
    """Train the classifiers of every fold on the patients of its training side."""
    cfg = for_classifier(cfg)
    check_labels(cfg)
    train = train_pooled if cfg.is_pooled else train_fold
    make_folds(cfg, classifier_product(cfg), train)


def train_fold(cfg: ClassifierConfig, fold: int, folder: Path) -> None:
    """Write the classifiers of a fold into a folder."""
    labels, train, test = fold_labels(cfg, fold)
    paths, device = image_paths(cfg, labels), pick_device(cfg.device)
    images = load_images(cfg, paths)
    kinds = kinds_of(cfg)
    if "contrast" in kinds and labels.labels[train].any(1).all():
        raise UserError(
            f"method = contrast: every training image of fold {fold} has a class, so there is"
            " nothing to contrast with: set method to cam, or add images without any"
        )
    learned = "shuffled labels" if cfg.shuffled else ", ".join(labels.classes)
    print(
        f"fold {fold}: {cfg.classifiers} classifiers ({', '.join(kinds)}) on {cfg.encoder},"
        f" {len(train)} images, {learned}, {device.type}"
    )
    truth = torch.from_numpy(labels.labels).float()
    logits, log = torch.zeros(len(test), len(labels.classes)), []
    for number in range(cfg.classifiers):
        classifier = None
        for kind in kinds:
            training = ClassifierTraining(
                cfg, fold, kind, number, images[train], truth[train], device, classifier
            )
            fit(training)
            classifier = training.model.eval()
            if kind == "plain":
                logits += logits_of(cfg, classifier, images[test], device) / cfg.classifiers
            log += training.log
            save_classifier(classifier, folder, kind, number)
    write_scores(cfg, fold, folder, logits, log)


def train_pooled(cfg: ClassifierConfig, fold: int, folder: Path) -> None:
    """Write the classifiers of a fold with method = unet into a folder."""
    labels, train, test = fold_labels(cfg, fold)
    paths, device = image_paths(cfg, labels), pick_device(cfg.device)
    images, truth = load_images(cfg, paths), torch.from_numpy(labels.labels).float()
    learned = "shuffled labels" if cfg.shuffled else ", ".join(labels.classes)
    print(
        f"fold {fold}: {cfg.classifiers} classifiers, {cfg.model_name}, {len(train)} images,"
        f" {learned}, {device.type}"
    )
    where = unfinished(classifier_folder(cfg, fold))
    made_from = classifier_product(cfg).made_from(cfg, fold)
    logits, log = torch.zeros(len(test), len(labels.classes)), []
    for number in range(cfg.classifiers):
        training = PooledTraining(cfg, fold, number, images[train], truth[train], device)
        fit(training, where / str(number + 1), made_from)
        network = training.model.eval()
        logits += seen_by(cfg, [network], images[test], device).logits / cfg.classifiers
        log += training.log
        save_pooled(network, folder, number)
    write_scores(cfg, fold, folder, logits, log)


def write_scores(
    cfg: ClassifierConfig, fold: int, folder: Path, logits: Tensor, log: list[dict]
) -> None:
    """Write the log of classifiers, and AUC and F1 on the test images. logits: of these, (N, C)."""
    labels, _, test = fold_labels(cfg, fold)
    scores = image_scores(logits.numpy(), labels.held[test])
    write_log(folder, log)
    write_json(folder / "scores.json", {"classes": labels.classes, **scores})
    told = [
        f"{name} {'-' if auc is None else f'{auc:.3f}'}"
        for name, auc in zip(labels.classes, scores["auc"], strict=True)
    ]
    where = classifier_folder(cfg, fold)
    print(f"{where}: AUC on {len(test)} images of held-out patients: {', '.join(told)}")


if __name__ == "__main__":
    run(train_classifiers, ClassifierConfig())
