"""The classifier: the classes of an image, from maps whose spatial mean is the logit.

There are three kinds. A plain one separates the images with a class from all others. It may use
what distinguishes two classes but belongs to neither: for parts of one organ, the tissue around
them. A contrast one continues from it: it separates them only from the images without any class,
and learns that these have no class at any pixel. It cannot say which of two classes an image has,
but where. For the third, pooled, see weak/pooled.py.
"""

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from scipy.stats import mannwhitneyu
from torch import Tensor, nn

from config import Config, UserError
from medood.models.network import Normalise, autocast, build_model, exact, for_training
from medood.training.augmentation import augment, draw_augmentation
from medood.training.batches import AUGMENTATION, INITIALISATION, balanced, batches, stream_seed
from medood.training.protocol import Losses, Training
from weak.arrays import load_weights, on_device
from weak.output_stride import OUTPUT_STRIDE, PROBE, grid_shifts, set_output_stride
from weak.settings import ClassifierConfig

HEAD_LR = 10  # times the encoder's: the head has random weights at first
WARM_UP = 0.1  # of all steps, in which the learning rate rises; then it falls
EMPTY = 4  # weight of the pixels of images without a class, in the contrast loss; an image has 1

Kind = Literal["plain", "contrast", "pooled"]


def kinds_of(cfg: ClassifierConfig) -> list[Kind]:
    """Return the kinds of classifier that are trained, in this order."""
    if cfg.is_pooled:
        return ["pooled"]
    return ["plain", "contrast"] if cfg.method == "contrast" else ["plain"]


class Level(NamedTuple):
    """One of the feature maps of a classifier."""

    channels: int
    grid_shift: float  # in pixels of the map, see grid_shifts


class Classifier(nn.Module):
    """An encoder, a 1 x 1 convolution without bias, and the mean over all pixels.

    The mean of the map of a class *is* the logit of the class: the maps show where it comes from
    (class activation maps, Zhou et al. 2016).
    """

    def __init__(self, encoder: nn.Module, shifts: list[float], classes: int) -> None:
        """shifts: of the encoder's maps, as grid_shifts returns them."""
        super().__init__()
        self.encoder = encoder
        self.head = nn.Conv2d(encoder.out_channels[-1], classes, 1, bias=False)
        sizes = zip(encoder.out_channels[1:], shifts, strict=True)
        self.levels = [Level(channels, grid_shift) for channels, grid_shift in sizes if channels]

    @property
    def grid_shift(self) -> float:
        """How far the maps of the classes are shifted up and left, in their pixels."""
        return self.levels[-1].grid_shift

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of normalised images (N, 3, H, W), shallow to deep."""
        found = self.encoder(images)[1:]
        return [part for part in found if part.shape[1]]  # a transformer has none at stride 2

    def maps(self, images: Tensor) -> Tensor:
        """Return the maps of the classes, (N, C, h, w), of normalised images (N, 3, H, W)."""
        return self.head(self.features(images)[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the classes, (N, C)."""
        return self.maps(images).mean((2, 3))


def build_classifier(cfg: ClassifierConfig, to_train: bool = True) -> Classifier:
    """Return the classifier of cfg; to_train: with the initial weights of its encoder.

    Raises UserError for an unknown encoder, one without such weights, and one that cannot keep the
    output stride.
    """
    # the trunk loads the weights; batch_norm is a setting of the segmentation network
    weights = build_model(replace(cfg, batch_norm=True)).encoder.state_dict() if to_train else {}
    try:
        encoder = smp.encoders.get_encoder(cfg.encoder, depth=cfg.stages, weights=None)
    except Exception as error:  # of smp and of every model of timm: each has its own kind
        raise UserError(
            f"encoder = {cfg.encoder!r} cannot be built with {cfg.stages} stages ({error}): set"
            " stages to 5, or choose another encoder"
        ) from None
    if to_train:
        encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    try:
        shifts = grid_shifts(encoder)
        set_output_stride(encoder)
        with torch.no_grad():
            side = encoder(torch.zeros(2, 3, PROBE, PROBE))[-1].shape[-1]
    except Exception:  # sizes of its branches differ now, or a pooling's, or it takes one size only
        side = 0
    if side * OUTPUT_STRIDE != PROBE:
        raise UserError(
            f"encoder = {cfg.encoder!r} cannot keep an output stride of {OUTPUT_STRIDE}:"
            " choose another encoder, such as resnet18 or mobilenet_v2"
        )
    return Classifier(encoder, shifts, len(cfg.classes))


class ImagesTraining(Training):
    """A network in training on images and their labels.

    AdamW, whose rate rises once and falls once; an epoch has as many images as there are, drawn by
    `balanced`.
    """

    rate = "classifier_lr"
    draw_augmentation = staticmethod(draw_augmentation)

    def __init__(
        self,
        cfg: ClassifierConfig,
        fold: int,
        called: str,
        network: nn.Module,
        groups: list[dict],
        epochs: int,
        first: int,
        images: Tensor,
        labels: Tensor,
        device: torch.device,
    ) -> None:
        """groups: parameters of the network, on the device, each with its highest rate, `lr`.

        first: of the epochs' numbers, each of which has its own random numbers. images: RGB uint8
        (N, P, P, 3). labels: float (N, C).
        """
        self.called = called
        super().__init__(cfg, f"fold {fold}, classifier {called}", network, epochs, device)
        self.fold, self.images, self.labels, self.first = fold, images, labels, first
        self.normalise = Normalise(cfg.encoder).to(device)
        self.precision = autocast(cfg.precision, device)
        rates = [group["lr"] for group in groups]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=1e-4)
        # the rise and the fall need two steps each
        steps = max(4, epochs * -(-len(images) // cfg.batch_size))
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, rates, total_steps=steps, pct_start=max(WARM_UP, 2 / steps)
        )
        self.parts |= {"optimiser": self.optimiser, "schedule": self.schedule}

    @abstractmethod
    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of normalised images (N, 3, H, W), for labels (N, C)."""

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
        with exact(self.cfg.precision):
            loss = self.loss(self.normalise(augmented), self.labels[index].to(self.device))
            loss.backward()
        self.optimiser.step()
        self.schedule.step()
        return {"loss": loss.detach()}

    def end_epoch(self, losses: dict[str, float]) -> dict:
        """Return the row of the log, with the name of the classifier."""
        return {"classifier": self.called, **super().end_epoch(losses)}


class ClassifierTraining(ImagesTraining):
    """A classifier in training, which may continue from another one, with a new head."""

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
        """number: from 0; each has its own random numbers.

        labels: 0 or 1. start: a classifier to continue from, in place.
        """
        self.loss_of, epochs = {
            "plain": (plain_loss, cfg.classifier_epochs),
            "contrast": (contrast_loss, cfg.contrast_epochs),
        }[kind]
        stream = number + (kind == "contrast") * cfg.classifiers
        torch.manual_seed(stream_seed(cfg, fold, INITIALISATION, stream))
        if start:
            start.head.reset_parameters()
        classifier = for_training(start or build_classifier(cfg), device)
        rate = cfg.classifier_lr
        groups = [
            {"params": classifier.encoder.parameters(), "lr": rate},
            {"params": classifier.head.parameters(), "lr": HEAD_LR * rate},
        ]
        first = stream * max(cfg.classifier_epochs, cfg.contrast_epochs)
        called = f"{kind} {number + 1}"
        super().__init__(
            *(cfg, fold, called, classifier, groups, epochs, first, images, labels, device)
        )

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the maps, by the kind."""
        with self.precision:
            maps = self.model.maps(images)
        return self.loss_of(maps.float(), labels)


def plain_loss(maps: Tensor, labels: Tensor) -> Tensor:
    """Return the scalar loss of maps (N, C, h, w), for labels, float (N, C), 0 or 1.

    It is the binary cross-entropy of their means.
    """
    return F.binary_cross_entropy_with_logits(maps.mean((2, 3)), labels)


def contrast_loss(maps: Tensor, labels: Tensor) -> Tensor:
    """Return the scalar loss of maps (N, C, h, w), for labels, float (N, C), 0 or 1.

    It is the mean, over pairs of an image and a class where the image has the class, or none at
    all, of the binary cross-entropy of a map's mean and, for an image without any class, EMPTY
    times the mean of that of its pixels.
    """
    empty = (labels.amax(1, keepdim=True) == 0).expand_as(labels)
    known = empty | (labels == 1)
    of_image = F.binary_cross_entropy_with_logits(maps.mean((2, 3)), labels, reduction="none")
    of_pixels = F.softplus(maps).mean((2, 3))  # binary cross-entropy of each against 0
    return (known * of_image + EMPTY * empty * of_pixels).sum() / known.sum()


@torch.inference_mode()
def logits_of(cfg: Config, classifier: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Return the logits, float32 (N, C) on the CPU, of RGB uint8 images (N, P, P, 3)."""
    normalise = Normalise(cfg.encoder).to(device)
    parts = on_device(images, device, "  classifying")
    return torch.cat([classifier(normalise(part)) for part in parts]).cpu()


def image_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, list[float | None]]:
    """Return AUC and F1 of each class on images: logits (N, C), labels 0 or 1 (N, C).

    AUC is the share of pairs, one image with and one without the class, whose logits are in the
    right order (a tie is half a pair); None if all are of one kind. For F1, a class is predicted if
    the logit is above 0; None if no image has the class and none is predicted to.
    """
    auc, f1 = [], []
    for logit, held in zip(logits.T, labels.T == 1, strict=True):
        called = logit > 0
        auc.append(auc_of(logit, held))
        both = held.sum() + called.sum()
        f1.append(float(2 * (called & held).sum() / both) if both else None)
    return {"auc": auc, "f1": f1}


def auc_of(values: np.ndarray, held: np.ndarray) -> float | None:
    """Return the share of pairs in the right order, as image_scores says; values, held: (N,)."""
    pairs = held.sum() * (~held).sum()
    ranks = mannwhitneyu(values[held], values[~held], method="asymptotic") if pairs else None
    return float(ranks.statistic / pairs) if pairs else None


def load_classifiers(
    cfg: ClassifierConfig, folder: Path, kind: Kind, device: torch.device
) -> list[nn.Module]:
    """Return the classifiers of a kind in a folder, in eval mode."""
    found = []
    for number in range(cfg.classifiers):
        network = (
            build_model(replace(cfg, encoder_weights="none"))
            if kind == "pooled"
            else build_classifier(cfg, to_train=False)
        )
        load_weights(network, weights_file(folder, kind, number))
        found.append(network.to(device, memory_format=torch.channels_last))
    return found


def weights_file(folder: Path, kind: Kind, number: int) -> Path:
    """Return where a folder has the weights of a classifier. number: from 0."""
    name = f"{kind}_{number + 1}".removeprefix("pooled_")
    return folder / f"{name}.safetensors"
