"""Train classifiers on image labels: which classes does an image have?

What one of them learns as a class depends on its random numbers; what all agree on, less so. An
interrupted training continues. For their kinds see weak/classifier.py.

Reads   weak/Images                            (generate_images.py), and the CSV of image labels
Writes  weak/classifier/<fold>_<encoder>/      weights, log, AUC and F1 on held-out patients

With method = unet or transfer the trunk's network is the classifier: see weak/pooled.py. It is
written to weak/classifier/<fold>_pooled_<model>/.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from config import UserError
from medood.data.files import write_json
from medood.models.network import (
    Normalise,
    autocast,
    build_model,
    for_training,
    pick_device,
)
from medood.runs.command_line import run
from medood.training.augmentation import augment, draw_augmentation
from medood.training.batches import AUGMENTATION, INITIALISATION, balanced, batches, stream_seed
from medood.training.loop import fit, write_log
from medood.training.protocol import Losses, Training
from weak.arrays import load_images, save_weights
from weak.check_labels import check_labels
from weak.classifier import (
    Classifier,
    Kind,
    build_classifier,
    contrast_loss,
    image_scores,
    kinds_of,
    plain_loss,
    weights_file,
)
from weak.image_labels import with_classes
from weak.pooled import gentle, logits_by, maps_by, pooled_loss
from weak.products import (
    CLASSIFIER,
    classifier_folder,
    fold_labels,
    image_paths,
    make_folds,
    unfinished,
)
from weak.settings import ClassifierConfig

HEAD_LR = 10  # times the encoder's: the head has random weights at first
WARM_UP = 0.1  # of all steps, in which the learning rate rises; then it falls


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


class ClassifierTraining(Training):
    """A classifier in training on images and their labels.

    AdamW, whose rate rises once and falls once; an epoch has as many images as there are, drawn by
    `balanced`.
    """

    rate = "classifier_lr"

    def __init__(
        self,
        cfg: ClassifierConfig,
        fold: int,
        kind: Kind,
        number: int,
        images: Tensor,
        labels: Tensor,
        device: torch.device,
        start: Classifier | None = None,
    ) -> None:
        """number: from 0; each has its own random numbers. images: RGB uint8 (N, P, P, 3).

        labels: float (N, C), 0 or 1. start: to continue from, in place, with a new head.
        """
        is_pooled, is_contrast = kind == "pooled", kind == "contrast"
        stream = number + is_contrast * cfg.classifiers
        torch.manual_seed(stream_seed(cfg, fold, INITIALISATION, stream))
        if start:
            start.head.reset_parameters()
        network = start or (build_model(cfg) if is_pooled else build_classifier(cfg))
        network = for_training(network, device)
        epochs = cfg.contrast_epochs if is_contrast else cfg.classifier_epochs
        self.called = f"{kind} {number + 1}"
        super().__init__(cfg, f"fold {fold}, classifier {self.called}", network, epochs, device)
        self.fold, self.images, self.labels = fold, images, labels
        # each epoch of each classifier has its own random numbers
        self.first = stream * (
            epochs if is_pooled else max(cfg.classifier_epochs, cfg.contrast_epochs)
        )
        self.draw_augmentation = gentle if is_pooled else draw_augmentation
        self.maps_by, self.loss_of = {
            "plain": (Classifier.maps, plain_loss),
            "contrast": (Classifier.maps, contrast_loss),
            "pooled": (maps_by, partial(pooled_loss, size=cfg.size)),
        }[kind]
        self.normalise = Normalise(cfg.encoder).to(device)
        self.precision = autocast(cfg.precision, device)
        groups = [{"params": network.parameters(), "lr": cfg.classifier_lr}]
        if not is_pooled:
            of_head = {"params": network.head.parameters(), "lr": HEAD_LR * cfg.classifier_lr}
            groups = [groups[0] | {"params": network.encoder.parameters()}, of_head]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=1e-4)
        # the rise and the fall need two steps each
        steps = max(4, epochs * -(-len(images) // cfg.batch_size))
        rates = [group["lr"] for group in groups]
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, rates, total_steps=steps, pct_start=max(WARM_UP, 2 / steps)
        )
        self.parts |= {"optimiser": self.optimiser, "schedule": self.schedule}

    def begin_epoch(self, epoch: int) -> list[tuple[Tensor, Tensor]]:
        """Return the indices of the images of each batch, and their augmentation."""
        number, count = self.first + epoch, len(self.labels)
        likely = torch.from_numpy(balanced((self.labels > 0).numpy()))
        indices = batches(self.cfg, self.fold, number, count, likely)
        seed = stream_seed(self.cfg, self.fold, AUGMENTATION, number)
        augmentation = self.draw_augmentation(count, seed).split(self.cfg.batch_size)
        return list(zip(indices, augmentation, strict=False))

    def step(self, index: Tensor, augmentation: Tensor) -> Losses:
        """Take a step on some of the images."""
        batch = self.images[index].to(self.device)
        unused = torch.zeros(batch.shape[:3], dtype=torch.uint8, device=self.device)
        augmented, _ = augment(batch, unused, augmentation.to(self.device))
        self.optimiser.zero_grad()
        with self.precision:
            maps = self.maps_by(self.model, self.normalise(augmented))
        loss = self.loss_of(maps.float(), self.labels[index].to(self.device))
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        return {"loss": loss.detach()}

    def end_epoch(self, losses: dict[str, float]) -> dict:
        """Return the row of the log, with the name of the classifier."""
        return {"classifier": self.called, **super().end_epoch(losses)}


if __name__ == "__main__":
    run(train_classifiers, ClassifierConfig())
