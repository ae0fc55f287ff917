"""Batches of training patches, ID and OoD: shuffled together, augmented, split over processes."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from config import Config
from medood.data.dataset import CHUNK, Patches
from medood.data.labels import BACKGROUND
from medood.processes import rank, world_size
from medood.training.augmentation import draw_augmentation

# each stream of random numbers depends only on seed and fold, so no fold changes another
INITIALISATION, ORDER, AUGMENTATION, DROPOUT, ATTACK = range(5)


def stream_seed(cfg: Config, fold: int, stream: int, epoch: int = 0) -> int:
    """Return the seed of one stream of random numbers."""
    sequence = np.random.SeedSequence([cfg.seed, fold, stream, epoch])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))  # torch takes 63 bits


def balanced(labels: np.ndarray) -> np.ndarray:
    """Return the probability of each image to be drawn, (N,), so that no class is rare.

    labels: 0 or 1, (N, C). The weight of an image is the rarity of its labels, averaged over
    classes: images with a class have the same total weight as those without it. A class that all
    images have, or none, is ignored.
    """
    share = labels.mean(0)
    known = (share > 0) & (share < 1)
    if not known.any():
        return np.full(len(labels), 1 / len(labels))
    labels, share = labels[:, known], share[known]
    weight = np.where(labels == 1, 1 / share, 1 / (1 - share)).mean(1)
    return weight / weight.sum()


def rarity(patches: Patches, classes: int) -> Tensor:
    """Return the weight of each patch in drawing, (N,), for `sampling = "rare"`.

    ID patches are `balanced` by their classes; an OoD patch has the average weight of an ID patch.
    """
    is_id = (~patches.is_ood).numpy()
    values = range(BACKGROUND + 1, classes)
    masks = patches.masks.flatten(1).split(CHUNK)
    held = np.concatenate([np.stack([(part == v).any(1) for v in values], 1) for part in masks])
    weight = np.ones(len(patches))
    weight[is_id] = is_id.sum() * balanced(held[is_id])
    return torch.from_numpy(weight)


def batches(
    cfg: Config, fold: int, epoch: int, count: int, likely: Tensor | None = None
) -> list[Tensor]:
    """Return the indices of the patches in each batch of an epoch, for `count` patches.

    likely: the weight of each patch in drawing, (count,); None: each patch once.
    """
    generator = torch.Generator().manual_seed(stream_seed(cfg, fold, ORDER, epoch))
    if likely is None:
        order = torch.randperm(count, generator=generator)
    else:
        order = likely.multinomial(count, replacement=True, generator=generator)
    indices = list(order.split(cfg.batch_size))
    # batch normalisation cannot normalise the deepest layer of a single small patch
    return indices[:-1] if len(indices) > 1 and len(indices[-1]) == 1 else indices


def shard_of(batch: Tensor) -> tuple[Tensor, float]:
    """Return which patches of a batch this process takes, and the weight of each.

    Batch normalisation needs two patches in each process. Of a last batch too small for that, every
    process takes all patches, and counts them in part; torch's DistributedSampler would give some
    patches to two processes, and count them twice.
    """
    if len(batch) < 2 * world_size():
        return batch, 1 / world_size()
    return batch[rank() :: world_size()], 1.0


def storage_device(patches: Patches, device: torch.device) -> torch.device:
    """Return where the patches are stored during a training on `device`: there, or on the CPU.

    They are on the CPU if they take more than half of the free memory of a GPU: networks need the
    other half.
    """
    size = patches.images.nbytes + patches.masks.nbytes
    crowded = device.type == "cuda" and 2 * size > torch.cuda.mem_get_info(device)[0]
    return torch.device("cpu") if crowded else device


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return values on a device, without waiting for a copy to a GPU."""
    if values.device.type == "cpu" != device.type:
        values = values.pin_memory()  # a copy from any other memory makes the host wait
    return values.to(device, non_blocking=True)


class Loader:
    """The batches of an epoch, as Trainer.step takes them: this process's shard of each."""

    def __init__(self, cfg: Config, fold: int, patches: Patches, device: torch.device) -> None:
        self.cfg, self.fold, self.patches, self.device = cfg, fold, patches, device
        self.storage = storage_device(patches, device)
        weight = torch.ones(len(patches))
        if patches.is_ood.any():
            weight[patches.is_ood] = cfg.ood_weight
        rare = cfg.sampling == "rare"
        self.likely = rarity(patches, len(cfg.class_names)) if rare else None
        self.data = [part.to(self.storage) for part in (patches.images, patches.masks, weight)]
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle the patches and draw their augmentation for an epoch, counted from 0."""
        count = len(self.patches)
        seed = stream_seed(self.cfg, self.fold, AUGMENTATION, epoch)
        self.epoch = epoch
        self.batches = batches(self.cfg, self.fold, epoch, count, self.likely)
        self.augmentation = draw_augmentation(count, seed, self.cfg.stain).to(self.storage)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield images, masks, weight and augmentation of each batch, on the device."""
        shards = [shard_of(batch) for batch in self.batches]
        # all indices at once: copying those of each batch would wait for the device at every step
        indices = torch.cat([index for index, _ in shards]).to(self.storage)
        indices = indices.split([len(index) for index, _ in shards])
        for index, (_, share) in zip(indices, shards, strict=True):
            parts = (part[index] for part in (*self.data, self.augmentation))
            images, masks, weight, augmentation = (to_device(part, self.device) for part in parts)
            yield images, masks, share * weight, augmentation
