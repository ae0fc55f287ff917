"""The processes that torchrun started, if it did: all run the same script, rank 0 writes.

`torchrun --nproc-per-node=2 train.py` runs train.py in two processes, which read the same settings
and files. In training, each takes its shard of every batch; in mining and testing, each takes its
shard of the patches and fills its part of the result. Rank 0, the main process, alone writes and
prints. Without torchrun there is one process, and nothing here has an effect.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import TCPStore

# torchrun sets these variables
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(days=30)  # rank 0 may prepare the data, or draw, while the others wait

_joined = False  # this process is one of several
_alone = False  # rank 0 does something for which the others wait


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
    """Work with the processes that torchrun started, if it did.

    A process that fails in this block ends, and torchrun ends the others. The first one that fails
    raises its error; those that fail after it, often because it is gone, exit without a word. Each
    of several processes ends at the end of the block.
    """
    if not all(name in os.environ for name in VARIABLES) or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    global _joined
    import torch  # here, so that --help needs no torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*address, is_master=False)
    _joined = True
    if not is_main():
        # it stays open until the process ends
        sys.stdout = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
        sys.stderr.isatty = lambda: False  # tqdm draws no bar where there is no terminal
    try:
        yield
    except (Exception, KeyboardInterrupt):
        if not _is_first_to_fail(store):
            sys.exit(1)
        raise
    sys.stdout.flush()
    # at the usual end of the interpreter, a process now and then aborts, although all is done, and
    # torchrun then ends the others too
    os._exit(0)


def _is_first_to_fail(store: "TCPStore") -> bool:
    """Say whether no other process has failed before, in this attempt of torchrun."""
    try:
        return store.add(f"failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1) == 1
    except RuntimeError:  # the process that holds the store is gone
        return False


def on_main(function: Callable) -> Callable:
    """Mark a function without a result that rank 0 carries out while the others wait.

    In it, rank 0 is alone: world_size() is 1.
    """

    @functools.wraps(function)
    def call(*args, **kwargs) -> None:
        global _alone
        if is_main():
            before, _alone = _alone, True
            try:
                function(*args, **kwargs)
            finally:
                _alone = before
        if world_size() > 1:
            import torch

            all_reduce(torch.zeros(1))  # a barrier: that of torch would take a GPU for it

    return call


def shard(count: int, unit: int) -> slice:
    """Return which of `count` items are this process's: contiguous, in whole batches of `unit`.

    Those of all processes are disjoint, in the order of their ranks, and cover all items.
    """
    units = -(-count // unit)
    first, last = (units * number // world_size() * unit for number in (rank(), rank() + 1))
    return slice(min(first, count), min(last, count))


def all_reduce(values: "Tensor") -> "Tensor":
    """Replace `values` by their sum over all processes, and return them.

    Where each process has filled its own part of zeros, all have the whole then.
    """
    if world_size() > 1:
        import torch.distributed as dist

        dist.all_reduce(values)
    return values
