"""The processes of torchrun, if it started any: all run the same script, rank 0 writes.

`torchrun --nproc-per-node=2 train.py` runs train.py in two processes, which read the same settings
and files. In training, each takes its shard of every batch; in mining and testing, each takes its
shard of the patches and fills its part of the result. Only rank 0, the main process, writes and
prints. Without torchrun there is one process, and nothing here has an effect.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from config import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store

# torchrun sets these variables
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(days=30)  # rank 0 may prepare the data, or draw, while the others wait
MEETING = timedelta(minutes=5)  # for all to come
CURE = f"start the script with torchrun; or without, after `unset {' '.join(VARIABLES)}`"

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
    """Join the processes of torchrun, if it started any.

    A process that fails in this block ends, and torchrun ends the others. The first one that fails
    raises its error; those that fail after it, often because it is gone, exit without a message.
    Each of several processes ends at the end of the block.
    """
    if not _are_several():
        yield
        return
    global _joined
    import torch  # here, so that --help needs no torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    number, count = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    store = _meet()
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=TIMEOUT)
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
    # at the usual end of the interpreter, a process sometimes aborts, although all is done, and
    # torchrun then ends the others too
    os._exit(0)


@functools.cache
def say_once(message: str) -> None:
    """Print a message of several steps or folds once per run."""
    print(message)


def _are_several() -> bool:
    """Say whether torchrun's variables ask for several processes; UserError if they are wrong."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    lacking = [name for name in VARIABLES if not os.environ.get(name)]
    if lacking:
        raise UserError(f"WORLD_SIZE is set, but {', '.join(lacking)} is not: {CURE}")
    found = {name: os.environ[name] for name in VARIABLES if name != "MASTER_ADDR"}
    values = {name: int(text) if text.isdecimal() else -1 for name, text in found.items()}
    is_one_of = 0 <= values["RANK"] < values["WORLD_SIZE"]
    is_one_here = 0 <= values["LOCAL_RANK"] < values["LOCAL_WORLD_SIZE"]
    if not (is_one_of and is_one_here and 0 < values["MASTER_PORT"] < 2**16):
        listed = ", ".join(f"{name} = {text}" for name, text in found.items())
        raise UserError(f"{listed} contradict each other: {CURE}")
    return True


def _meet() -> "Store":
    """Return the store of all processes when all have come; UserError if they do not, in time."""
    from torch.distributed import rendezvous

    found = os.environ
    place = f"{found['MASTER_ADDR']}:{found['MASTER_PORT']} (MASTER_ADDR, MASTER_PORT)"
    who = f"process {found['RANK']} (RANK) of {found['WORLD_SIZE']} (WORLD_SIZE)"
    if found.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # else torchrun waits
        print(f"{who} waits for the others at {place}; {CURE}", file=sys.stderr, flush=True)
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)  # torch ignores Ctrl-C while it waits
    try:
        store, *_ = next(rendezvous("env://", timeout=MEETING))
    except Exception as error:  # torch has several kinds
        reason = str(error).partition("\n")[0]
        if "EADDRINUSE" in reason:
            reason = "another program uses this port: choose a free one"
        raise UserError(f"{who} cannot meet the others at {place} ({reason}): {CURE}") from None
    finally:
        signal.signal(signal.SIGINT, handler)
    store.set_timeout(TIMEOUT)
    return store


def _is_first_to_fail(store: "Store") -> bool:
    """Say whether no other process has failed before, in this attempt of torchrun."""
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:  # the process that holds the store is gone
        return False


def on_main(function: Callable) -> Callable:
    """Mark a function without a result that only rank 0 runs while the others wait.

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

            all_reduce(torch.zeros(1))  # a barrier: that of torch would use a GPU

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

    If each process has filled its own part of zeros, all have the whole afterwards.
    """
    if world_size() > 1:
        import torch.distributed as dist

        dist.all_reduce(values)
    return values
