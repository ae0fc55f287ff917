"""Train classifiers on image labels: which classes does an image have?

What one of them learns as a class depends on its random numbers; what all agree on, less so. An
interrupted training continues. For their kinds see weak/classifier.py.

Reads   weak/Images                            (generate_images.py), and the CSV of image labels
Writes  weak/classifier/<fold>_<encoder>/      weights, log, AUC and F1 on held-out patients

With method = unet or transfer the trunk's network is the classifier: see weak/pooled.py. It is
written to weak/classifier/<fold>_pooled_<model>/.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from config import UserError
from medood.data.files import write_json
from medood.models.network import pick_device
from medood.runs.command_line import run
from medood.training.loop import fit, write_log
from weak.arrays import load_images, save_weights
from weak.check_labels import check_labels
from weak.classifier import ClassifierTraining, image_scores, kinds_of, weights_file
from weak.image_labels import with_classes
from weak.pooled import PooledTraining, logits_by
from weak.products import (
    CLASSIFIER,
    classifier_folder,
    fold_labels,
    image_paths,
    make_folds,
    unfinished,
)
from weak.settings import ClassifierConfig


def train_classifiers(cfg: ClassifierConfig) -> None:
    """Train the classifiers of every fold on the patients of its training side."""
    cfg = with_classes(cfg)
    check_labels(cfg)
    make_folds(cfg, CLASSIFIER, train_fold)


def train_fold(cfg: ClassifierConfig, fold: int, folder: Path) -> None:
    """Write the classifiers of a fold into a folder, with their log, and AUC and F1 on its test."""
    labels, train, test = fold_labels(cfg, fold)
    images, device = load_images(cfg, image_paths(cfg, labels)), pick_device(cfg.device)
    kinds, where = kinds_of(cfg), classifier_folder(cfg, fold)
    if "contrast" in kinds and labels.held[train].any(1).all():
        raise UserError(
            f"method = contrast: every training image of fold {fold} has a class, so there is"
            " nothing to contrast with: set method to cam, or add images without any"
        )
    learned = "shuffled labels" if cfg.shuffled else ", ".join(labels.classes)
    print(
        f"fold {fold}: {cfg.classifiers} classifiers ({', '.join(kinds)}) on"
        f" {cfg.model_name if cfg.is_pooled else cfg.encoder}, {len(train)} images, {learned},"
        f" {device.type}"
    )
    given = images[train], torch.from_numpy(labels.labels[train]).float(), device
    made_from, log = CLASSIFIER.made_from(cfg, fold), []
    for number in range(cfg.classifiers):
        network = None
        for kind in kinds:
            if kind == "pooled":
                training = PooledTraining(cfg, fold, number, *given)
            else:
                training = ClassifierTraining(cfg, fold, kind, number, *given, network)
            fit(training, unfinished(where) / f"{kind}_{number + 1}", made_from)
            network = training.model.eval()
            save_weights(network, weights_file(folder, kind, number))
            log += training.log
    write_log(folder, log)
    logits = logits_by(cfg, folder, images[test])
    scores = image_scores(logits.numpy(), labels.held[test])
    write_json(folder / "scores.json", {"classes": labels.classes, **scores})
    told = [
        f"{name} {'-' if auc is None else f'{auc:.3f}'}"
        for name, auc in zip(labels.classes, scores["auc"], strict=True)
    ]
    print(f"{where}: AUC on {len(test)} images of held-out patients: {', '.join(told)}")


if __name__ == "__main__":
    run(train_classifiers, ClassifierConfig())
