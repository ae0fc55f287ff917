"""Patches, decoded once and kept as uint8 until they become a batch."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from config import UserError
from medood.data.files import in_threads
from medood.data.images import read_image, read_mask, require_side
from medood.data.names import name_of
from medood.data.workspace import Pair
from medood.processes import local_world_size

CHUNK = 64  # patches to process at once: a copy of all of them may not fit into memory
PIXEL = 4  # bytes: three colours and a class
GROUP_LIMITS = ("memory.max", "memory.limit_in_bytes")  # of Linux's control groups, version 2 and 1


@dataclass(frozen=True)
class Patches:
    """N patches of P x P pixels."""

    names: list[str]
    images: Tensor  # uint8 (N, P, P, 3), RGB
    masks: Tensor  # uint8 (N, P, P), the class, or UNSURE; all 0 for an OoD patch
    is_ood: Tensor  # bool (N,)

    def __len__(self) -> int:
        return len(self.names)


def load_patches(files: list[Pair], side: int, classes: int) -> Patches:
    """Read patches; a patch without a mask is an OoD patch.

    classes: with background. Raises UserError for a patch that is not `side` pixels wide and high,
    and if the patches do not fit into memory.
    """
    require_memory(len(files), side)
    shape = len(files), side, side
    images, masks = torch.zeros(*shape, 3, dtype=torch.uint8), torch.zeros(shape, dtype=torch.uint8)
    read_truth = partial(read_mask, classes=classes)

    def read(index: int) -> None:
        image, mask = files[index]
        for path, reader, out in ((image, read_image, images), (mask, read_truth, masks)):
            if path is not None:
                pixels = reader(path)
                require_side(path, pixels, side)
                out[index] = torch.from_numpy(pixels)

    in_threads(read, range(len(files)), "reading patches")
    return Patches(
        [name_of(image) for image, _ in files],
        images,
        masks,
        torch.tensor([mask is None for _, mask in files], dtype=torch.bool),
    )


def require_memory(count: int, side: int) -> None:
    """Raise UserError unless `count` patches fit into memory in each process."""
    needed = PIXEL * count * side**2 * local_world_size()
    if needed > (free := available_memory()):
        raise UserError(
            f"{count} patches take {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are"
            " available: close other programs, request more, or use fewer images"
        )


def available_memory() -> float:
    """Return the bytes that this machine, or the job, has for new data; inf if unknown.

    That is Linux's estimate for the machine, and the limits of its control groups: those of
    containers and of job queues.
    """
    limits = [float("inf")]
    with suppress(OSError):  # not Linux
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(1024 * int(lines["MemAvailable"].split()[0]))
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kind, group = line.split(":", 2)
            folder = Path("/sys/fs/cgroup", kind, group.lstrip("/"))
            if kind in ("", "memory"):  # version 2, or 1
                files = [part / name for part in (folder, *folder.parents) for name in GROUP_LIMITS]
                found = [file.read_text().strip() for file in files if file.is_file()]
                limits += [int(limit) for limit in found if limit.isdigit()]  # else "max"
    return min(limits)
