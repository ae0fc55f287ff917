"""The processes that torchrun started, if it did: all run the same script, the main one writes.

`torchrun --nproc-per-node=2 train.py` runs train.py twice. Both processes read the same settings
and files. In training each takes its share of every batch; in mining and testing each takes its
share of the patches and fills its part of the result. Rank 0, the main process, alone writes and
prints. Without torchrun there is one process, and nothing here does anything.
"""

import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")  # by torchrun
PATIENCE = timedelta(days=30)  # to wait for the main process, which may be preparing the data

_joined = False  # in a group of processes
_alone = False  # the main process does what the others only wait for


def rank() -> int:
    """Return the number of this process, 0 for the main one."""
    return int(os.environ["RANK"]) if _joined else 0


def local_rank() -> int:
    """Return the number of this process among those of its machine."""
    return int(os.environ["LOCAL_RANK"]) if _joined else 0


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if _joined else 1


def world_size() -> int:
    """Return the number of processes that work together."""
    return int(os.environ["WORLD_SIZE"]) if _joined and not _alone else 1


def is_main() -> bool:
    """Say whether this process is the one that writes and prints."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Work with the processes that torchrun started, if it did."""
    if not all(name in os.environ for name in TOLD) or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    global _joined
    import torch  # here, so that --help answers without it
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    _joined = True
    if not is_main():
        _hush()
    yield
    # not after an error: it would wait for what the others no longer do
    dist.destroy_process_group()
    _joined = False


def _hush() -> None:
    """Leave the output to the main process, but for errors, and take no terminal for a reader."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open until the process ends
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(_NoTerminal(2, "w")), line_buffering=True)


class _NoTerminal(io.FileIO):
    def isatty(self) -> bool:
        return False  # progress bars look here


@contextmanager
def agreed() -> Iterator[None]:
    """End all processes if one fails in this block: the first that does says why, the others not.

    All must reach the end of the block, so nothing in it may wait for another process.
    """
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    if world_size() > 1:
        import torch
        import torch.distributed as dist

        first = torch.tensor(world_size() if error is None else rank())
        dist.all_reduce(first, dist.ReduceOp.MIN)
        if int(first) not in (rank(), world_size()):
            sys.exit(1)
    if error is not None:
        raise error


def on_main(function: Callable) -> Callable:
    """Mark a function without a result that the main process carries out; the others wait.

    In it, the main process is alone: world_size() is 1.
    """

    @functools.wraps(function)
    def call(*args, **kwargs) -> None:
        global _alone
        with agreed():
            if not is_main():
                return
            before, _alone = _alone, True
            try:
                function(*args, **kwargs)
            finally:
                _alone = before

    return call


def share(count: int, unit: int) -> slice:
    """Return which of `count` items are this process's: contiguous, in whole batches of `unit`.

    Those of all processes are disjoint, in the order of their ranks, and cover all items.
    """
    units = -(-count // unit)
    first, last = (units * number // world_size() * unit for number in (rank(), rank() + 1))
    return slice(min(first, count), min(last, count))


def add_up(values: "Tensor") -> "Tensor":
    """Replace `values` by their sum over all processes, and return them.

    Where each process has filled its own part of zeros, all have the whole then.
    """
    if world_size() > 1:
        import torch.distributed as dist

        dist.all_reduce(values)
    return values
