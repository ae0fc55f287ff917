"""Where patches lie: in memory or, beyond max_memory, in a mapped file on the workspace's disk.

Such a file has no name, or none that outlives the process: the system removes it with the last
tensor in it, also after a kill. The system keeps in memory what is read of the file, as long as no
one else needs that memory.
"""

import errno
import math
import os
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import Config, UserError
from medood import processes
from medood.data.files import PARTIAL

GB = 1e9  # bytes
ASSUMED = 16 * GB  # the memory of a machine that does not tell it (Windows)
GROUP_LIMITS = ("memory.max", "memory.limit_in_bytes")  # of Linux's control groups, version 2 and 1
_held: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()  # by id


def memory_limit(cfg: Config) -> float:
    """Return the share of max_memory, in bytes, that this process has of its machine."""
    whole = _machine_memory() / 2 if cfg.max_memory is None else cfg.max_memory * GB
    return whole / processes.local_world_size()


def held_memory() -> int:
    """Return the bytes of all tensors from `zeros` that are in memory and in use."""
    return sum(array.nbytes for array in _held.values())


def exceeds_memory(cfg: Config, size: int) -> bool:
    """Say whether so many bytes, with those held already, are more than max_memory."""
    return size > 0 and held_memory() + size > memory_limit(cfg)


def zeros(cfg: Config, shape: tuple[int, ...], mapped: bool) -> Tensor:
    """Return uint8 zeros in memory or, `mapped`, in a file; UserError if the disk has no room."""
    if mapped:
        return torch.from_numpy(_map_file(cfg, shape))
    array = np.zeros(shape, np.uint8)
    _held[id(array)] = array  # the tensor keeps the array as long as it lives
    return torch.from_numpy(array)


def _map_file(cfg: Config, shape: tuple[int, ...]) -> np.memmap:
    """Return uint8 zeros in a file that is gone when they are."""
    size = math.prod(shape)
    try:
        with tempfile.TemporaryFile(prefix=".", suffix=PARTIAL, dir=cfg.workspace) as file:
            _reserve(file.fileno(), size)
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise UserError(
            f"{cfg.workspace} takes no file of {size / GB:.3g} GB ({error.strerror}) for the"
            f" patches beyond max_memory = {memory_limit(cfg) / GB:.3g}: make room there, or raise"
            " max_memory"
        ) from None


def _reserve(file: int, size: int) -> None:
    """Reserve so many bytes for an open file; a system without this does it at the first write."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        # a disk that is found full at a write into mapped memory would kill the process
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a disk that cannot reserve
            raise


def _machine_memory() -> float:
    """Return the bytes of memory that this process may use."""
    whole = ASSUMED
    if hasattr(os, "sysconf"):
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *_group_limits()])


def _group_limits() -> list[int]:
    """Return the limits, in bytes, of Linux's control groups: of containers and of job queues."""
    limits = []
    with suppress(OSError):  # not Linux
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kind, group = line.split(":", 2)
            folder = Path("/sys/fs/cgroup", kind, group.lstrip("/"))
            if kind in ("", "memory"):  # version 2, or 1
                files = [part / name for part in (folder, *folder.parents) for name in GROUP_LIMITS]
                limits += [file.read_text().strip() for file in files if file.is_file()]
    return [int(limit) for limit in limits if limit.isdigit()]  # without a limit it says "max"
