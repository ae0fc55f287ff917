"""The classifier of --method unet: maps of full resolution, whose highest values say the classes.

The generator of --method transfer is trained against it, too.

It is the trunk's own network, trained without a mask (GP-UNet, Chatterjee et al. 2026). Two things
make its maps show where a class is, and not only that it is somewhere:

- An image without a class has no pixel of it: all of them are negatives (NEGEV, Belharbi 2022).
- In an image with it, the mean of the map is taught a share of the image (Fan, Zhang and Boykov,
  arXiv 2503.06954). Without this, an image with a class was painted all over.

What brightness adds, and how maps become masks: see weak/pooled_masks.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from config import Config
from medood.data.files import reading
from medood.data.labels import BACKGROUND
from medood.models.inference import batch_size
from medood.models.network import (
    Normalise,
    autocast,
    build_model,
    exact,
    for_training,
    pick_device,
)
from medood.training.augmentation import RANDOM, augment, parameters_of
from medood.training.batches import AUGMENTATION, INITIALISATION, balanced, batches, stream_seed
from medood.training.protocol import Losses, Training
from weak.classifier import EMPTY, WARM_UP, load_classifier, logits_of
from weak.settings import ClassifierConfig

TOP = 0.02  # of a map's pixels, for the pooling of that name
SHARPNESS = 4.0  # of the soft maximum: the mean at 0, the maximum at infinity
TINY = 1e-6
LIGHT, GENTLE = 7, 0.1  # of an augmentation's random numbers: the first of light, and their factor


def maps_by(network: nn.Module, images: Tensor) -> Tensor:
    """Return the map of each class, (N, C, H, W), of normalised images (N, 3, H, W).

    It is the log-odds of the class against background.
    """
    logits = network(images).float()
    return logits[:, BACKGROUND + 1 :] - logits[:, BACKGROUND : BACKGROUND + 1]


def pooled(maps: Tensor, pooling: str) -> Tensor:
    """Return the logits of images, (N, C), from their maps (N, C, H, W).

    top: the mean of the highest TOP of the pixels, one at least. lse: the soft maximum
    log(mean(exp(SHARPNESS x))) / SHARPNESS (Pinheiro and Collobert 2015). max: the maximum.
    """
    flat = maps.flatten(2)
    if pooling == "max":
        return flat.amax(2)
    if pooling == "lse":
        return (SHARPNESS * flat).logsumexp(2).sub(np.log(flat.shape[2])) / SHARPNESS
    return flat.topk(max(1, round(TOP * flat.shape[2])), 2).values.mean(2)


def size_loss(maps: Tensor, share: Tensor) -> Tensor:
    """Return the distance of the mean probability of each map from a share, (N, C).

    It is the binary cross-entropy of the two: KL divergence and a constant, least where they are
    equal.
    maps: (N, C, H, W). share: (N, C) in 0..1.
    """
    mean = maps.sigmoid().mean((2, 3)).clamp(TINY, 1 - TINY)
    return F.binary_cross_entropy(mean, share, reduction="none")


def pooled_loss(maps: Tensor, labels: Tensor, pooling: str, size: float) -> Tensor:
    """Return the scalar loss of maps (N, C, H, W), for labels (N, C).

    It is the mean, over images and classes, of the binary cross-entropy of the pooled map and, if
    the image has the class, the size_loss; if not, EMPTY times the mean of the cross-entropies of
    its pixels.
    labels: 0, 1 or, if an image has a class, the share that it covers. size: that share where the
    label is 1.
    """
    held = (labels > 0).float()
    share = torch.where(labels < 1, labels, size)
    of_image = F.binary_cross_entropy_with_logits(pooled(maps, pooling), held, reduction="none")
    of_pixels = F.softplus(maps).mean((2, 3))  # binary cross-entropy of each against 0
    return (of_image + held * size_loss(maps, share) + EMPTY * (1 - held) * of_pixels).mean()


# ---------------------------------------------------------------- training


class PooledTraining(Training):
    """A classifier of --method unet in training on images.

    AdamW, whose rate rises once and falls once; an epoch has as many images as there are, drawn by
    `balanced`.
    """

    rate = "classifier_lr"

    def __init__(
        self,
        cfg: ClassifierConfig,
        fold: int,
        number: int,
        images: Tensor,
        labels: Tensor,
        device: torch.device,
    ) -> None:
        """number: from 0; each has its own random numbers.

        images: RGB uint8 (N, P, P, 3). labels: float (N, C), as pooled_loss takes them.
        """
        torch.manual_seed(stream_seed(cfg, fold, INITIALISATION, number))
        network = for_training(build_model(cfg), device)
        self.called = str(number + 1)
        epochs = cfg.classifier_epochs
        super().__init__(cfg, f"fold {fold}, classifier {self.called}", network, epochs, device)
        self.fold, self.images, self.labels = fold, images, labels
        self.first = number * epochs  # of its epochs
        self.normalise = Normalise(cfg.encoder).to(device)
        self.precision = autocast(cfg.precision, device)
        rate = cfg.classifier_lr
        self.optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-4)
        self.parts["optimiser"] = self.optimiser
        # the rise and the fall need two steps each
        steps = max(4, epochs * -(-len(images) // cfg.batch_size))
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, rate, total_steps=steps, pct_start=max(WARM_UP, 2 / steps)
        )
        self.parts["schedule"] = self.schedule

    def begin_epoch(self, epoch: int) -> list[tuple[Tensor, Tensor]]:
        """Return the indices of the images of each batch, and their augmentation."""
        return batches_of(self.cfg, self.fold, self.first + epoch, self.labels)

    def step(self, index: Tensor, augmentation: Tensor) -> Losses:
        """Take a step on some of the images."""
        batch = self.images[index].to(self.device)
        unused = torch.zeros(batch.shape[:3], dtype=torch.uint8, device=self.device)
        augmented, _ = augment(batch, unused, augmentation.to(self.device))
        self.optimiser.zero_grad()
        with exact(self.cfg.precision):
            with self.precision:
                maps = maps_by(self.model, self.normalise(augmented))
            labels = self.labels[index].to(self.device)
            loss = pooled_loss(maps.float(), labels, self.cfg.pooling, self.cfg.size)
            loss.backward()
        self.optimiser.step()
        self.schedule.step()
        return {"loss": loss.detach()}

    def end_epoch(self, losses: dict[str, float]) -> dict:
        """Return the row of the log, with the name of the classifier."""
        return {"classifier": self.called, **super().end_epoch(losses)}


def batches_of(
    cfg: ClassifierConfig, fold: int, epoch: int, labels: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Return the indices of the images of each batch of an epoch, and their augmentation.

    epoch: counted on from one classifier to the next.
    """
    likely = torch.from_numpy(balanced((labels > 0).numpy().astype(np.uint8)))
    indices = batches(cfg, fold, epoch, len(labels), likely)
    augmentation = gentle(len(labels), stream_seed(cfg, fold, AUGMENTATION, epoch))
    return list(zip(indices, augmentation.split(cfg.batch_size), strict=False))


def gentle(count: int, seed: int) -> Tensor:
    """Return random parameters of an augmentation that keeps the brightness, (count, K).

    Brightness is half of what distinguishes a lesion from tissue. The warps do not change: with
    angles a tenth as wide, maps of the sample showed a class at the border of the image.
    """
    random = torch.rand(count, RANDOM, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    random[:, LIGHT:] *= GENTLE
    return parameters_of(random)


# ---------------------------------------------------------------- predictions


class Seen(NamedTuple):
    """The predictions of classifiers for N images."""

    maps: Tensor  # float32 (N, C, P, P)
    logits: Tensor  # float32 (N, C)


@torch.inference_mode()
def seen_by(
    cfg: ClassifierConfig, networks: list[nn.Module], images: Tensor, device: torch.device
) -> Seen:
    """Return maps and logits of images, RGB uint8 (N, P, P, 3), on the CPU.

    They are the mean over networks, of the image and its mirror image.
    """
    normalise, precision = Normalise(cfg.encoder).to(device), autocast(cfg.precision, device)
    parts = tqdm(images.split(batch_size(device)), "  classifying", leave=False, disable=None)
    maps, logits = [], []
    for part in parts:
        batch = normalise(part.to(device).permute(0, 3, 1, 2).float())
        found = []
        for network in networks:
            with precision, exact(cfg.precision):
                found += [maps_by(network, batch), maps_by(network, batch.flip(3)).flip(3)]
        logits.append(torch.stack([pooled(each, cfg.pooling) for each in found]).mean(0).cpu())
        maps.append(torch.stack(found).mean(0).cpu())
    return Seen(torch.cat(maps), torch.cat(logits))


def logits_by(cfg: ClassifierConfig, folder: Path, images: Tensor) -> Tensor:
    """Return the logits, (N, C) on the CPU, by the classifiers of a method in their folder.

    They are the mean over (plain) classifiers. images: RGB uint8 (N, P, P, 3).
    """
    device = pick_device(cfg.device)
    if cfg.is_pooled:
        return seen_by(cfg, load_pooled(cfg, folder, device), images, device).logits
    numbers = range(cfg.classifiers)
    plain = [load_classifier(cfg, folder, "plain", number, device) for number in numbers]
    return torch.stack([logits_of(cfg, one, images, device) for one in plain]).mean(0)


def save_pooled(network: nn.Module, folder: Path, number: int) -> None:
    """Write the weights of a classifier into a folder. number: from 0."""
    weights = {name: values.contiguous() for name, values in network.state_dict().items()}
    save_file(weights, _weights(folder, number))


def load_pooled(cfg: Config, folder: Path, device: torch.device) -> list[nn.Module]:
    """Return the classifiers of a folder, in eval mode."""
    networks = []
    for number in range(cfg.classifiers):
        network = build_model(replace(cfg, encoder_weights="none"))
        weights = _weights(folder, number)
        with reading(weights):
            network.load_state_dict(load_file(weights))
        networks.append(network.eval().to(device, memory_format=torch.channels_last))
    return networks


def _weights(folder: Path, number: int) -> Path:
    return folder / f"{number + 1}.safetensors"
