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

# torchrun sets these variables, and two for the place where the processes meet
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
TIMEOUT = timedelta(days=30)  # rank 0 may prepare the data, or draw, while the others wait
MEETING = timedelta(minutes=2)  # for all to come

_numbers: dict[str, int] = {}  # their values, if this process is one of several
_alone = False  # rank 0 does something for which the others wait


def rank() -> int:
    """Return the number of this process, 0 for the main one."""
    return _numbers.get("RANK", 0)


def local_rank() -> int:
    """Return the number of this process among those of its machine."""
    return _numbers.get("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return _numbers.get("LOCAL_WORLD_SIZE", 1)


def world_size() -> int:
    """Return the number of processes that work together."""
    return 1 if _alone else _numbers.get("WORLD_SIZE", 1)


def is_main() -> bool:
    """Say whether this process is the one that writes and prints."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes of torchrun, if it started any.

    A process that fails in this block ends, and torchrun ends the others. The first one that fails
    raises its error; those that fail after it, often because it is gone, exit without a message.
    Each of several processes ends at the end of the block. Raises UserError if they do not meet.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    store = _meet()
    if not is_main():
        # it stays open until the process ends
        sys.stdout = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
        sys.stderr.isatty = lambda: False  # tqdm draws no bar where there is no terminal
    try:
        yield
    except (Exception, KeyboardInterrupt):
        try:
            is_first = store.add("failed", 1) == 1
        except RuntimeError:  # the process that holds the store is gone
            is_first = False
        if not is_first:
            sys.exit(1)
        raise
    sys.stdout.flush()
    # at the usual end of the interpreter, a process sometimes aborts, although all is done, and
    # torchrun then ends the others too
    os._exit(0)


def _meet() -> "Store":
    """Return the store of all processes when all have come; UserError if they do not."""
    import torch  # here, so that --help needs no torch
    import torch.distributed as dist

    try:
        found = {name: int(os.environ[name]) for name in VARIABLES}
        if torch.cuda.is_available():
            torch.cuda.set_device(found["LOCAL_RANK"] % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # else torchrun waits
            place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
            print(
                f"process {found['RANK']} of WORLD_SIZE = {found['WORLD_SIZE']} waits for the"
                f" others at {place}; without others, stop it and `unset WORLD_SIZE`",
                file=sys.stderr,
                flush=True,
            )
        handler = signal.signal(signal.SIGINT, signal.SIG_DFL)  # torch ignores Ctrl-C meanwhile
        try:
            store, number, count = next(dist.rendezvous("env://", timeout=MEETING))
        finally:
            signal.signal(signal.SIGINT, handler)
        store.set_timeout(TIMEOUT)
        dist.init_process_group(
            backend, store=store, rank=number, world_size=count, timeout=TIMEOUT
        )
    except (KeyError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(
            f"WORLD_SIZE = {os.environ['WORLD_SIZE']}, but the processes do not meet ({reason}):"
            " start the script with torchrun; or alone, after `unset WORLD_SIZE`"
        ) from None
    _numbers.update(found)
    return store


@functools.cache
def say_once(message: str) -> None:
    """Print a message of several steps or folds once per run."""
    print(message)


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
