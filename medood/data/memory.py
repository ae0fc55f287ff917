"""Where patches lie: in memory, or, beyond max_memory, in a mapped file on the workspace's disk.

Such a file has no name, or none that outlives the process: the system removes it with the last
tensor in it, also after a kill. What is read of it, the system keeps in memory as long as no one
else needs that.
"""

import errno
import math
import mmap
import os
import tempfile
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import Config, UserError
from medood import processes
from medood.data.files import PARTIAL

GB = 1e9  # bytes
UNTOLD = 16 * GB  # is assumed of a machine that does not tell its memory (Windows)
LIMIT_1 = "memory.limit_in_bytes"  # in version 1 of Linux's control groups
_held = 0  # bytes that zeros has given out in memory and not got back


def memory_limit(cfg: Config) -> float:
    """Return in bytes what max_memory leaves to this process, of those on this machine."""
    whole = _machine_memory() / 2 if cfg.max_memory is None else cfg.max_memory * GB
    return whole / processes.local_world_size()


def exceeds_memory(cfg: Config, size: int) -> bool:
    """Say whether so many bytes, with those held already, are more than max_memory."""
    return size > 0 and _held + size > memory_limit(cfg)


def zeros(cfg: Config, shape: tuple[int, ...], mapped: bool) -> Tensor:
    """Return uint8 zeros in memory or, `mapped`, in a file; UserError if the disk has no room."""
    if mapped:
        return torch.frombuffer(_map_file(cfg, math.prod(shape)), dtype=torch.uint8).view(shape)
    array = np.zeros(shape, np.uint8)
    _count(array.nbytes)
    weakref.finalize(array, _count, -array.nbytes)  # the tensor keeps it as long as it lives
    return torch.from_numpy(array)


def _count(change: int) -> None:
    global _held
    _held += change


def _map_file(cfg: Config, size: int) -> mmap.mmap:
    """Return so many bytes, all 0, of a file that is gone when they are."""
    try:
        with tempfile.TemporaryFile(prefix=".", suffix=PARTIAL, dir=cfg.workspace) as file:
            _reserve(file.fileno(), size)
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise UserError(
            f"{cfg.workspace} takes no file of {size / GB:.3g} GB ({error.strerror}) for the"
            f" patches beyond max_memory = {memory_limit(cfg) / GB:.3g}: make it take one, or raise"
            " max_memory"
        ) from None


def _reserve(file: int, size: int) -> None:
    """Give an open file so many bytes, on the disk if it can: else it is asked for them later."""
    if hasattr(os, "posix_fallocate"):
        try:
            # a disk that fills up later, at a write into memory, would kill the process
            os.posix_fallocate(file, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.ftruncate(file, size)


def _machine_memory() -> float:
    """Return the bytes of memory that this process may use."""
    told = [UNTOLD]
    if hasattr(os, "sysconf"):
        told = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    return min(told + _group_limits())


def _group_limits() -> list[int]:
    """Return the limits of Linux's control groups: of containers and of job queues."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    limits = []
    for _, controllers, own in (line.split(":", 2) for line in groups):
        root = Path("/sys/fs/cgroup", "" if not controllers else "memory")
        if controllers in ("", "memory"):  # version 2, or 1
            folder = root / own.lstrip("/")
            for place in (folder, *folder.parents):
                limits += [_number(place / "memory.max"), _number(place / LIMIT_1)]
    return [limit for limit in limits if limit is not None]


def _number(path: Path) -> int | None:
    """Return the number that a file holds; None if it is not there, or holds a word."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
