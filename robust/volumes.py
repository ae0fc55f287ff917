"""Volumes of the Medical Segmentation Decathlon (MSD): read, resampled, planned for, segmented.

A volume is scaled to 0..1 by the range of its own intensities, channel by channel. All else that a
network needs (clipping, z-score, patches) is in `Segmenter`, so that an attack on its input is a
change of the volume itself, measured in shares of its range.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNet
from nibabel.affines import voxel_sizes
from scipy import ndimage
from torch import Tensor, nn
from tqdm import tqdm

from config import Config, UserError
from medood.data.folds import PARTS, split_units
from medood.data.names import by_name, plain
from medood.models.network import autocast
from medood.processes import world_size
from robust.lattice import Lattice, Stride
from robust.nifti import AXES, apart, read_nifti

Spacing = tuple[float, float, float]

ENDINGS, FOLDERS = (".nii.gz", ".nii"), ("imagesTr", "labelsTr")
PERCENTILES = (0.5, 99.5)  # of the foreground, where intensities are clipped
PER_CASE = 10**5  # foreground voxels of a case, at most, in the statistics
ANISOTROPIC = 3  # slices this many times as far apart as their voxels are resampled one by one
# of a patch: powers of two, and times 1.5. Not 16, which would leave the U-Net's deepest layer two
# voxels: there torch 2.14 computes wrong gradients of 3 x 3 x 3 weights, in bfloat16 on a CPU
SIDES = (24, 32, 48, 64, 96, 128)
WIDTHS = (32, 64, 128, 256)  # of the U-Net's layers
SMALL = 32**3  # voxels of the smallest structure, below which the lattice halves 4 times, else 5
LEAST = 2  # voxels of a patch's side after halving
# the sides of a window are a multiple of it: the U-Net needs this, and the lattice, which takes any
# size, is better with it (mean Dice on Task04_Hippocampus .870 against .837)
MULTIPLE = 8
APART = 0.1  # voxels between an image and its label that change no voxel's class
ROUNDED = 1e-3  # of a label, off a whole number, after scaling in float32
WHOLE = 1.5  # times the patch: sides up to this are segmented in one piece


class Case(NamedTuple):
    """A labelled volume of a task: its name and its files."""

    name: str
    image: Path
    label: Path


class Task(NamedTuple):
    """The content of a task's dataset.json."""

    cases: list[Case]  # by name
    modalities: int
    class_names: tuple[str, ...]  # of each value of a label, 0 is the background


class Volume(NamedTuple):
    """A case as tensors."""

    name: str
    image: Tensor  # float32 (C, X, Y, Z), axes as AXES, each channel scaled to 0..1
    label: Tensor  # uint8 (X, Y, Z)
    spacing: Spacing  # mm from voxel to voxel
    is_ood: bool = False  # all of it is background in training; its label shows what was cut out


def read_task(folder: Path) -> Task:
    """Return the labelled cases in a task's dataset.json; UserError if one is missing.

    Their files are in imagesTr and labelsTr. UserError also in one of several processes.
    """
    if world_size() > 1:
        raise UserError("volumes run in one process: start the script without torchrun")
    path = folder / "dataset.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: name the folder of an MSD task with --data")
    try:
        described = json.loads(path.read_text(encoding="utf-8-sig"))
        labels = {int(value): str(name) for value, name in described["labels"].items()}
        class_names = tuple(labels[value] for value in range(len(labels)))
        pairs = described["training"]
        listed = [(name_of(pair["image"]), name_of(pair["label"])) for pair in pairs]
        modalities = len(described["modality"].keys())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not describe an MSD task ({type(error).__name__}: {error}): it needs"
            " labels 0, 1, ..., modality and training, a list of pairs of image and label"
        ) from None
    for image, label in listed:
        if image != label or listed.count((image, label)) > 1:
            raise UserError(f"{path} pairs {image} with {label}, or names it twice: correct it")
    names, files = sorted(name for name, _ in listed), []
    for side in FOLDERS:
        files.append(_volumes_in(folder / side))
        if lost := [name for name in names if name not in files[-1]]:
            raise UserError(
                f"{folder / side} lacks {lost[0]} as .nii.gz or .nii, which dataset.json names: add"
                " it"
            )
    cases = [Case(name, *(there[name] for there in files)) for name in names]
    return Task(cases, modalities, class_names)


def name_of(file: str | Path) -> str:
    """Return the name of a case from one of its files: `./imagesTr/a_01.nii.gz` -> `a_01`."""
    name = plain(Path(file).name)
    return next((name[: -len(end)] for end in ENDINGS if name.lower().endswith(end)), name)


def _volumes_in(folder: Path) -> dict[str, Path]:
    """Return the NIfTI files of a folder by the names of their cases."""
    paths = (path for path in folder.glob("[!.]*") if path.name.lower().endswith(ENDINGS))
    return by_name(paths, name_of)


def check_cases(task: Task) -> dict[str, Spacing]:
    """Return the spacing of each case, by name; UserError at the first that cannot be used.

    No volume stays in memory.
    """
    folders = {case.image.parent for case in task.cases}
    if others := sum(len(_volumes_in(folder)) for folder in folders) - len(task.cases):
        print(f"volumes that are ignored, as dataset.json lacks them: {others}")
    progress = tqdm(task.cases, "volumes", leave=False, disable=None)
    return {case.name: read_volume(task, case).spacing for case in progress}


def read_volume(task: Task, case: Case) -> Volume:
    """Return a case, its axes turned to AXES; UserError if its files are wrong.

    An image and its label may be stored along different axes.
    """
    image, label = read_nifti(case.image), read_nifti(case.label)
    channels = image.values if image.values.ndim > 3 else image.values[..., None]
    if channels.ndim != 4 or channels.shape[-1] != task.modalities:
        raise UserError(
            f"{case.image}: shape {channels.shape}, expected 3 axes or, of {task.modalities}"
            f" modalities, {task.modalities} as a fourth: correct it, or modality in dataset.json"
        )
    distance = apart(image, label)
    if label.values.shape != channels.shape[:3] or distance > APART:
        raise UserError(
            f"{case.label}: shape {label.values.shape} along the axes {AXES} and a corner"
            f" {distance:.3g} voxels off: it does not match its image, of shape"
            f" {channels.shape[:3]}: replace one of them, or its affine"
        )
    whole, classes = np.rint(label.values), len(task.class_names)
    is_wrong = (np.abs(label.values - whole) > ROUNDED) | (whole < 0) | (whole >= classes)
    if is_wrong.any():
        raise UserError(
            f"{case.label}: value {label.values[is_wrong][0].item()!r}, expected whole numbers from"
            f" 0 to {classes - 1}: correct it, or labels in dataset.json"
        )
    numbers = np.ascontiguousarray(whole, np.uint8)
    spacing = tuple(map(float, voxel_sizes(image.affine)))
    scaled = torch.from_numpy(_to_range(channels))
    return Volume(case.name, scaled, torch.from_numpy(numbers), spacing)


def on_disk(folder: Path, volume: Volume) -> Volume:
    """Return a volume with its arrays mapped from files: only parts in use are in memory."""
    mapped = []
    for name, values in (("image", volume.image), ("label", volume.label)):
        path = folder / f"{volume.name}_{name}_{volume.is_ood}.npy"
        np.save(path, values.numpy())
        mapped.append(torch.from_numpy(np.load(path, mmap_mode="c")))
    return volume._replace(image=mapped[0], label=mapped[1])


def _to_range(channels: np.ndarray) -> np.ndarray:
    """Return channels (X, Y, Z, C) as float32 (C, X, Y, Z), each scaled to 0..1 by its range."""
    low, high = (end(channels, axis=(0, 1, 2)).astype(np.float64) for end in (np.min, np.max))
    scaled = np.empty(channels.shape, np.float32)
    width = np.maximum(high - low, np.finfo(np.float32).tiny)
    np.divide(channels - low, width, out=scaled, casting="same_kind")
    return np.ascontiguousarray(np.moveaxis(scaled, -1, 0))


def split_cases(cases: list[Case], fold: int, seed: int) -> tuple[list[Case], list[Case]]:
    """Return the training and the test cases of a fold: it tests part `fold` mod 3 of three."""
    if len(cases) < PARTS:
        raise UserError(f"{len(cases)} labelled volumes: {PARTS} folds need at least one each")
    part = split_units([case.name for case in cases], seed)
    sides = ([c for c in cases if (part[c.name] == fold % PARTS) == side] for side in (False, True))
    return tuple(sides)


class Plan(NamedTuple):
    """The sizes for which a network of a task is built, all from the training cases."""

    spacing: Spacing  # that volumes are resampled to, mm
    patch: tuple[int, int, int]  # voxels
    strides: tuple[Stride, Stride, Stride]  # of the lattice
    statistics: list[list[float]]  # of each channel's foreground: low, high, mean, deviation


def make_plan(volumes: list[Volume], classes: int) -> Plan:
    """Return the plan for training volumes, already resampled.

    UserError if they contain no foreground.
    """
    median = np.median([volume.label.shape for volume in volumes], axis=0)
    patch = tuple(
        max([side for side in SIDES if side <= size], default=SIDES[0]) for size in median
    )
    counts = np.array(
        [np.bincount(v.label.numpy().ravel(), minlength=classes)[1:] for v in volumes], float
    )
    counts[counts == 0] = np.nan
    if np.isnan(counts).all():
        raise UserError("no training volume contains any foreground: check labelsTr")
    voxels = []  # of the foreground, (C, n) of each volume
    for volume in volumes:
        inside = volume.image[:, volume.label > 0]
        voxels.append(inside[:, :: max(1, inside.shape[1] // PER_CASE)].numpy())
    statistics = [
        [float(n) for n in (*np.percentile(values, PERCENTILES), values.mean(), values.std())]
        for values in np.concatenate(voxels, axis=1).astype(np.float64)
    ]
    smallest = np.nanmin(np.nanmedian(counts[:, ~np.isnan(counts).all(0)], axis=0))
    strides = plan_strides(patch, 4 if smallest < SMALL else 5)
    return Plan(volumes[0].spacing, patch, strides, statistics)


def plan_strides(patch: tuple[int, int, int], halvings: int) -> tuple[Stride, Stride, Stride]:
    """Return the lattice's strides: of its two stems, and between its first levels.

    The lattice halves a side at the first stem, at the second, twice between the first levels and
    once below: at most five times. If a side is to be halved less often, or has too few voxels, the
    second stem leaves it as it is, then the first, then the levels.
    """
    per_side = [
        min(halvings, max(n for n in range(6) if side >> n >= LEAST and side % (1 << n) == 0))
        for side in patch
    ]
    first, second, between = (
        tuple(2 if count >= needed else 1 for count in per_side) for needed in (4, 5, 3)
    )
    return first, second, between


def resample(volume: Volume, spacing: Spacing) -> Volume:
    """Return a volume with another spacing: splines of order 3 for the image, labels as nearest.

    If slices are more than 3 times as far apart as the voxels in them, each is resampled by itself,
    and the nearest slices are used.
    """
    if np.allclose(volume.spacing, spacing, rtol=1e-3):
        return volume
    # of a volume thinner than a new voxel, one remains
    zoom = np.maximum(np.array(volume.spacing) / spacing, 1 / np.array(volume.label.shape))
    across = np.ones(3)
    if max(volume.spacing) / min(volume.spacing) > ANISOTROPIC:
        axis = int(np.argmax(volume.spacing))
        across[axis], zoom[axis] = zoom[axis], 1
    options = {"mode": "nearest", "grid_mode": True}
    channels = [
        ndimage.zoom(ndimage.zoom(channel, zoom, order=3, **options), across, order=0, **options)
        for channel in volume.image.numpy()
    ]
    image = torch.from_numpy(np.stack(channels)).clamp(0, 1)  # splines overshoot
    label = ndimage.zoom(volume.label.numpy(), zoom * across, order=0, **options)
    return Volume(volume.name, image, torch.from_numpy(label), spacing)


class Segmenter(nn.Module):
    """A network with all that belongs to it: volumes in 0..1 -> logits.

    Takes float32 (N, C, X, Y, Z), of any size, and returns float32 (N, classes, X, Y, Z).
    """

    def __init__(self, cfg: Config, network: nn.Module, plan: Plan, device: torch.device) -> None:
        super().__init__()
        self.network, self.patch, self.spacing = network, plan.patch, plan.spacing
        numbers = torch.tensor(plan.statistics, dtype=torch.float32).T.reshape(4, 1, -1, 1, 1, 1)
        numbers[3].clamp_(min=1e-6)
        for name, values in zip(("low", "high", "mean", "std"), numbers, strict=True):
            self.register_buffer(name, values, persistent=False)
        self.precision = autocast(cfg.precision, device)
        self.to(device, memory_format=torch.channels_last_3d)

    def forward(self, images: Tensor) -> Tensor:
        small = [side <= WHOLE * of for side, of in zip(images.shape[2:], self.patch, strict=True)]
        window = [
            -(-side // MULTIPLE) * MULTIPLE if is_small else of_patch
            for side, of_patch, is_small in zip(images.shape[2:], self.patch, small, strict=True)
        ]
        # several windows overlap by half
        options = {"overlap": 0.5, "mode": "constant" if all(small) else "gaussian"}
        return sliding_window_inference(images, window, len(images), self._of_window, **options)

    def _of_window(self, images: Tensor) -> Tensor:
        clipped = torch.minimum(torch.maximum(images, self.low), self.high)
        normalised = (clipped - self.mean) / self.std
        normalised = normalised.contiguous(memory_format=torch.channels_last_3d)
        with self.precision:
            return self.network(normalised).float()


def build_network(name: str, modalities: int, classes: int, plan: Plan) -> nn.Module:
    """Return a network with random weights: `unet` (MONAI's, residual) or `lattice`."""
    if name == "lattice":
        return Lattice(modalities, classes, plan.strides)
    return UNet(3, modalities, classes, WIDTHS, (2, 2, 2), num_res_units=2)
