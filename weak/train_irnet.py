"""Train IRNet: the boundaries of classes, learned from the pixels of which the maps are sure.

Reads   weak/Images, weak/classifier, weak/maps          (generate_maps.py)
Writes  weak/irnet/<fold>_<encoder>/                     weights and log

The encoder of the first classifier is frozen. Training images without any class are not used: all
of their pixels are background.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from config import UserError
from medood.data.labels import BACKGROUND, is_foreground
from medood.models.network import pick_device
from medood.runs.command_line import run
from medood.training.batches import INITIALISATION, ORDER, stream_seed
from medood.training.loop import fit, write_log
from medood.training.protocol import Losses, Training
from weak.arrays import load_images, save_weights
from weak.classifier import load_classifiers
from weak.generate_maps import read_seeds
from weak.image_labels import with_classes
from weak.irnet import TRAINING_RADIUS, WEIGHTS, Encoder, IRNet, affinity_loss, encoder_of, pairs
from weak.maps import masks_with_unsure, thresholds_of
from weak.products import (
    IRNET,
    classifier_folder,
    fold_labels,
    image_paths,
    irnet_folder,
    make_folds,
)
from weak.settings import IRNetConfig

MOMENTUM, WEIGHT_DECAY, POWER = 0.9, 1e-4, 0.9  # of SGD; of the learning rate's decline


def train_irnets(cfg: IRNetConfig) -> None:
    """Train the IRNet of every fold."""
    if cfg.is_pooled:
        raise UserError(f"method = {cfg.method} uses no IRNet: run weak/generate_masks.py instead")
    make_folds(with_classes(cfg), IRNET, train_fold)


def train_fold(cfg: IRNetConfig, fold: int, folder: Path) -> None:
    """Write the IRNet of a fold into a folder."""
    labels, train, _ = fold_labels(cfg, fold)
    paths, device = [image_paths(cfg, labels)[index] for index in train], pick_device(cfg.device)
    maps, held, areas = read_seeds(cfg, fold, paths)
    holding = held.any(1)
    sure = confident_labels(cfg, maps, held, areas)[holding]
    # from shuffled labels nothing may be learned: the control continues
    if not cfg.shuffled and (not is_foreground(sure).any() or not (sure == BACKGROUND).any()):
        raise UserError(
            f"fold {fold}: the maps leave no pixel sure to be a class, or to be none: raise"
            f" sure_area (now {cfg.sure_area:g}), or lower possible_area (now"
            f" {cfg.possible_area:g})"
        )
    images = load_images(cfg, paths)[holding]
    classifier, *_ = load_classifiers(cfg, classifier_folder(cfg, fold), "plain", device)
    torch.manual_seed(stream_seed(cfg, fold, INITIALISATION))
    irnet = IRNet(classifier.levels)
    print(f"fold {fold}: IRNet on {len(images)} images, {device.type}")
    encoder = encoder_of(cfg, classifier, device)
    training = IRNetTraining(cfg, fold, encoder, irnet, images, sure, device)
    fit(training)
    save_weights(irnet, folder / WEIGHTS)
    write_log(folder, training.log)
    print(f"{irnet_folder(cfg, fold)}: loss {training.log[-1]['loss']:.3f}")


def confident_labels(cfg: IRNetConfig, maps: Tensor, held: Tensor, areas: list[float]) -> Tensor:
    """Return the class of each pixel if its maps are sure, else 255: uint8 (N, h, w).

    maps: (N, C, h, w). held: bool (N, C), the classes of each image; no other counts. An image
    without any is background. areas: the share that each class covers of an image with it.
    """
    limits = [
        thresholds_of(maps, held, [width * area for area in areas])
        for width in (cfg.sure_area, cfg.possible_area)
    ]
    return masks_with_unsure(maps, held, limits)


class IRNetTraining(Training):
    """An IRNet in training, in place, on images and their mirror images.

    The encoder stays as it is. All random numbers come from seed and fold.
    """

    rate = "irnet_lr"

    def __init__(
        self,
        cfg: IRNetConfig,
        fold: int,
        encoder: Encoder,
        irnet: IRNet,
        images: Tensor,
        labels: Tensor,
        device: torch.device,
    ) -> None:
        """images: RGB uint8 (N, P, P, 3). labels: uint8 (N, P / MAP_STRIDE, P / MAP_STRIDE)."""
        super().__init__(
            cfg, f"fold {fold}, IRNet", irnet.to(device).train(), cfg.irnet_epochs, device
        )
        self.encoder, self.images, self.labels = encoder, images, labels
        self.optimiser = torch.optim.SGD(
            irnet.parameters(), cfg.irnet_lr, MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        steps = cfg.irnet_epochs * -(-len(images) // cfg.batch_size)
        self.schedule = torch.optim.lr_scheduler.PolynomialLR(self.optimiser, steps, POWER)
        self.generator = torch.Generator().manual_seed(stream_seed(cfg, fold, ORDER))

    def begin_epoch(self, epoch: int) -> list[tuple[Tensor, Tensor]]:
        """Return the indices of the images of each batch, and which of them are mirrored."""
        order = torch.randperm(len(self.images), generator=self.generator)
        is_mirrored = torch.rand(len(self.images), generator=self.generator) < 0.5
        return [(batch, is_mirrored[batch]) for batch in order.split(self.cfg.batch_size)]

    def step(self, batch: Tensor, flips: Tensor) -> Losses:
        """Take a step on some of the images."""
        images = _mirrored(self.images[batch], flips).to(self.device)
        with torch.no_grad():
            features = self.encoder(images.permute(0, 3, 1, 2).float())
        labels = _mirrored(self.labels[batch], flips).to(self.device)
        logits = self.model(features, labels.shape[1:])
        loss = affinity_loss(logits, pairs(labels, TRAINING_RADIUS), TRAINING_RADIUS)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        return {"loss": loss.detach()}


def _mirrored(values: Tensor, flips: Tensor) -> Tensor:
    """Return values (N, P, P, ...) with those that `flips`, bool (N,), names mirrored."""
    flips = flips.view(-1, *[1] * (values.dim() - 1)).to(values.device)
    return torch.where(flips, values.flip(2), values)


if __name__ == "__main__":
    run(train_irnets, IRNetConfig())
