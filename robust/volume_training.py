"""How a network of volumes is trained: patches, augmentation, steps, its files, OoD volumes.

Of OoD volumes the ranking, the ratio of positives to negatives and the search for the share are the
trunk's, with volumes instead of patches.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from monai.data import set_track_meta
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    SpatialPad,
    ToDeviced,
)
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from config import UserError
from estimate_pct import choose_pct, count_samples, pnr
from medood.data.files import csv_text, read_json, write_json, write_text
from medood.models.checkpoints import versions
from medood.models.network import pick_device
from medood.training.batches import AUGMENTATION, INITIALISATION, ORDER, stream_seed
from medood.training.loop import fit, write_trained
from medood.training.losses import segmentation_loss
from medood.training.protocol import Losses, Training
from rank_prune_ood import rank_and_prune
from robust.free import Noise
from robust.nifti import AXES
from robust.settings import NetworkConfig, TrainVolumesConfig, VolumeConfig
from robust.volumes import Plan, Segmenter, Task, Volume, build_network

WARM_UP = 0.1  # of the steps, in which the learning rate rises
WEIGHT_DECAY = 1e-3
LONGEST = 12.0  # norm of a gradient; a longer one is shortened
DESCRIPTION, WEIGHTS = "config.json", "model.safetensors"

POINTS = 10**4  # of each volume: possible centres of patches
TURN = math.radians(15)  # about each axis, in both directions
SCALE, CONTRAST, BRIGHTNESS, GAMMA = 0.15, 0.25, 0.25, (0.7, 1.5)
MOVED, MIRRORED, RECOLOURED = 0.75, 0.5, 0.2  # shares of the patches


class VolumeLoader:
    """The batches of an epoch: a patch of each volume, shuffled and augmented."""

    def __init__(
        self,
        cfg: NetworkConfig,
        fold: int,
        volumes: list[Volume],
        patch: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        self.cfg, self.fold, self.device = cfg, fold, device
        set_track_meta(False)  # patches with metadata take twice as long
        self.cut = cut_and_change(patch, device)
        pad = SpatialPad(patch)  # by zeros, as Segmenter pads
        self.volumes = []
        for volume in volumes:
            image, label = pad(volume.image), pad(volume.label[None])
            # where patches may be centred, at random: indices of the flattened label
            anywhere = np.random.default_rng(0).integers(label.numel(), size=POINTS)
            inside = label.flatten().nonzero()[:, 0].numpy()
            inside = np.random.default_rng(0).choice(inside, POINTS) if len(inside) else anywhere
            places = {"anywhere": anywhere, "inside": inside}
            self.volumes.append({"image": image, "label": label} | places)
        self.is_ood = torch.tensor([volume.is_ood for volume in volumes])
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle the volumes and begin the patches of an epoch, counted from 0."""
        order, augmentation = (
            stream_seed(self.cfg, self.fold, stream, epoch) for stream in (ORDER, AUGMENTATION)
        )
        shuffled = torch.randperm(len(self.volumes), generator=torch.Generator().manual_seed(order))
        self.batches = shuffled.split(self.cfg.batch_size)
        self.cut.set_random_state(augmentation % 2**32)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield images (N, C, *patch) in 0..1, target int64 (N, *patch) and weight (N,)."""
        for batch in self.batches:
            parts = [self.cut(self.volumes[index])[0] for index in batch.tolist()]
            images = torch.stack([part["image"] for part in parts]).clamp(0, 1)
            target = torch.stack([part["label"][0] for part in parts]).long()
            is_ood = self.is_ood[batch].to(self.device)
            target[is_ood] = 0
            yield images, target, torch.where(is_ood, self.cfg.ood_weight, 1.0)


def cut_and_change(patch: tuple[int, int, int], device: torch.device) -> Compose:
    """Return a transform that cuts a patch out of a volume, and changes it at random, on a device.

    Half of the patches are centred on foreground, if there is any. They are mirrored only along the
    first axis: from left to right a body is nearly its mirror image. Front and back are not, and a
    network that sees them mirrored takes several times as long to distinguish them.
    """
    both = ("image", "label")
    places = {"fg_indices_key": "inside", "bg_indices_key": "anywhere"}
    ways = {"mode": ("bilinear", "nearest"), "padding_mode": "reflection"}
    ranges = {"rotate_range": [TURN] * 3, "scale_range": [SCALE] * 3}
    return Compose(
        [
            RandCropByPosNegLabeld(both, "label", patch, **places),
            ToDeviced(both, device),
            RandAffined(both, prob=MOVED, **ranges, **ways),
            RandFlipd(both, MIRRORED, 0),
            RandAdjustContrastd("image", RECOLOURED, GAMMA),
            RandScaleIntensityFixedMeand("image", CONTRAST, prob=RECOLOURED),
            RandScaleIntensityd("image", BRIGHTNESS, prob=RECOLOURED),
        ]
    )


class VolumeTrainer(Training):
    """A segmenter in training on volumes and, for free training, the noise that persists."""

    def __init__(
        self, cfg: TrainVolumesConfig, fold: int, volumes: list[Volume], segmenter: Segmenter
    ) -> None:
        self.replays = cfg.replays if cfg.free else 1
        epochs, device = math.ceil(cfg.epochs / self.replays), segmenter.mean.device
        super().__init__(cfg, f"fold {fold}", segmenter.train(), epochs, device)
        self.loader = VolumeLoader(cfg, fold, volumes, segmenter.patch, device)
        weights = segmenter.network.parameters()
        self.optimiser = torch.optim.AdamW(weights, cfg.lr, weight_decay=WEIGHT_DECAY)
        self.parts["optimiser"] = self.optimiser
        shape = cfg.batch_size, *volumes[0].image.shape[:1], *segmenter.patch
        self.noise = Noise(shape, cfg.eps / 255, 0, 1).to(device)

    def begin_epoch(self, epoch: int) -> VolumeLoader:
        """Return the batches of an epoch, which begins with noise 0."""
        self.taken = 0  # steps in this epoch
        self.noise.start()
        self.loader.set_epoch(epoch)
        return self.loader

    def step(self, images: Tensor, target: Tensor, weight: Tensor) -> Losses:
        """Take an optimiser step on a batch, or, for free training, m; return the last loss."""
        share = (len(self.log) + self.taken / len(self.loader)) / self.epochs
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.cfg, share)
        self.taken += 1
        for _ in range(self.replays):
            logits = self.model(self.noise(images) if self.cfg.free else images)
            # the sums of the loss are independent of the axes
            loss = segmentation_loss(logits.flatten(3), target.flatten(2), weight, "dice_ce")
            loss.backward()
            clip_grad_norm_(self.model.network.parameters(), LONGEST)
            self.optimiser.step()
            self.optimiser.zero_grad()
            if self.cfg.free:
                self.noise.ascend()
        return {"loss": loss.detach()}

    def end_epoch(self, losses: dict[str, float]) -> dict:
        """Return the row of the log, with the last learning rate."""
        return super().end_epoch(losses) | {"lr": self.optimiser.param_groups[0]["lr"]}


def learning_rate(cfg: NetworkConfig, share: float) -> float:
    """Return the learning rate after a share of all steps: rising linearly, falling as a cosine."""
    falling = max(0.0, (share - WARM_UP) / (1 - WARM_UP))
    return cfg.lr * min(1.0, (share + 1e-3) / WARM_UP) * (1 + math.cos(math.pi * falling)) / 2


def train_segmenter(
    cfg: TrainVolumesConfig,
    fold: int,
    task: Task,
    volumes: list[Volume],
    plan: Plan,
    folder: Path,
    made_from: dict,
    start: Path | None,
) -> None:
    """Train a network, see `fit`, and write it to `folder`.

    start: the folder of a network to continue from; None begins with random weights.
    """
    device = pick_device(cfg.device)
    torch.manual_seed(stream_seed(cfg, fold, INITIALISATION))
    network = build_network(cfg.network, task.modalities, len(task.class_names), plan)
    segmenter = Segmenter(cfg, network, plan, device)
    if start:
        network.load_state_dict(load_file(start / WEIGHTS))
    oods = sum(volume.is_ood for volume in volumes)
    print(
        f"fold {fold}: {cfg.model_name}, {len(volumes) - oods} ID + {oods} OoD volumes, patches"
        f" {' x '.join(map(str, plan.patch))}, {device.type}"
    )
    trainer = VolumeTrainer(cfg, fold, volumes, segmenter)
    run = {"fold": fold, "epoch": fit(trainer, folder, made_from)}
    run |= {"id_patches": len(volumes) - oods, "ood_patches": oods}
    run |= {"versions": versions(), "made_from": made_from}

    def save_network(finished: Path) -> None:
        weights = {name: value.contiguous() for name, value in network.state_dict().items()}
        (finished / WEIGHTS).write_bytes(save(weights))  # save_file would hide it from others
        described = {"network": cfg.network, "axes": AXES, "modalities": task.modalities}
        described |= {"class_names": list(task.class_names), "plan": plan._asdict()}
        write_json(finished / DESCRIPTION, described)

    write_trained(folder, trainer, run, {volume.name for volume in volumes}, save_network)


def load_network(cfg: VolumeConfig, folder: Path, device: torch.device) -> Segmenter:
    """Return a trained segmenter, in eval mode; UserError if there is none."""
    described = read_json(folder / DESCRIPTION)
    if described and described.get("axes") != AXES:
        raise UserError(
            f"{folder} was trained on volumes along their stored axes, by an earlier version: train"
            " it again"
        )
    try:
        plan = Plan(**described["plan"])
        sizes = described["modalities"], len(described["class_names"])
        network = build_network(described["network"], *sizes, plan)
        network.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # JSON, key names, shapes and safetensors each have their own kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder} contains no usable network ({reason}): train it again") from None
    return Segmenter(cfg, network, plan, device).eval()


def remove_foreground(volume: Volume, fill: str) -> Volume:
    """Return a volume as an OoD volume: without its foreground; the label shows where that was.

    fill: `zero` leaves the minimum of the volume, `mean` the mean of its background, by channel.
    """
    foreground = volume.label > 0
    level = torch.zeros(len(volume.image), 1)
    if fill == "mean" and not foreground.all():
        level = volume.image[:, ~foreground].mean(1, keepdim=True)
    image = volume.image.clone()
    image[:, foreground] = level.expand(-1, int(foreground.sum()))
    return volume._replace(image=image, is_ood=True)


def add_oods(
    cfg: TrainVolumesConfig, fold: int, clean: Path, volumes: list[Volume], names: tuple[str, ...]
) -> Iterator[Volume]:
    """Return the OoD volumes to train on, one at a time, and write the ranking that they come from.

    clean: the folder of the network to be fooled. names: of the classes.
    """
    by_name = {volume.name: volume for volume in volumes}
    segmenter, seen = load_network(cfg, clean, pick_device(cfg.device)), []
    for volume in tqdm(volumes, "mining", leave=False, disable=None):
        holed = remove_foreground(volume, cfg.ood_fill).image
        with torch.no_grad():
            logits = segmenter(holed[None].to(segmenter.mean.device))
        seen.append(logits.argmax(1).flatten().bincount(minlength=len(names)).cpu())
    rows = rank_and_prune(list(by_name), torch.stack(seen).numpy())
    header = ["rank", "volume", "miou", "false_voxels", *names[1:], "kept"]
    path = cfg.home / "HardOoD" / f"{clean.name}.csv"
    write_text(path, csv_text(header, rows))
    hard = [row[1] for row in rows if row[-1]]
    shares = [(volume.label > 0).float().mean().item() for volume in volumes]
    positives, negatives = count_samples(shares, 1)
    best, _ = choose_pct(positives, negatives, len(hard), cfg.pct_grid, cfg.pnr_opt)
    print(
        f"fold {fold}: foreground is predicted in {len(hard)} of {len(rows)} volumes without any"
        f" ({path}); {best['ood_patches']} of them change the pnr from"
        f" {pnr(positives, negatives, 0):.3f} to {best['pnr']:.3f}"
    )
    chosen = hard[: best["ood_patches"]]
    return (remove_foreground(by_name[name], cfg.ood_fill) for name in chosen)
