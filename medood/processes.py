"""Several processes at work as one: what `torchrun --nproc-per-node=2 train.py` adds to train.py.

The first process, rank 0, runs the script as it would alone, and nobody else writes a file. The
others serve: they wait for the functions marked `together` and carry them out with it, with the
arguments that it gave. Without torchrun there is one process, and nothing here does anything.
"""

import functools
import importlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from config import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup

T = TypeVar("T")

TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")  # by torchrun
BREATH = 5  # seconds that the first process takes to end, at most
PATIENCE = timedelta(days=30)  # of those who serve: preparing the data, say, is the first's alone

_calls: "ProcessGroup | None" = None  # the group on which calls and answers travel
_at_work = False  # in a function that all carry out: the others do not listen for another


def rank() -> int:
    """Return the number of this process, 0 for the one that leads."""
    return int(os.environ.get("RANK", 0)) if _calls else 0


def local_rank() -> int:
    """Return the number of this process among those of its machine."""
    return int(os.environ["LOCAL_RANK"]) if _calls else 0


def local_size() -> int:
    """Return the number of processes at work as one on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if _calls else 1


def size() -> int:
    """Return the number of processes at work as one."""
    return int(os.environ["WORLD_SIZE"]) if _calls else 1


def leads() -> bool:
    """Say whether this process is the one that reads the settings, writes and prints."""
    return rank() == 0


@contextmanager
def team() -> Iterator[bool]:
    """Join the processes that torchrun started, if it did, and yield whether this one leads.

    For the others, all work is done by the time they are told so.
    """
    if not all(name in os.environ for name in TOLD) or os.environ["WORLD_SIZE"] == "1":
        yield True
        return
    global _calls
    import torch  # here, so that --help answers without it
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    _calls = dist.new_group(backend="gloo", timeout=PATIENCE)
    if leads():
        try:
            yield True
        finally:
            if not _at_work:
                from_first(None)
    else:
        _hush()
        try:
            _serve()
        except BaseException:
            # the first one most likely says the same: it ends at once, and torchrun then ends this
            # one, which speaks only if it still lives
            time.sleep(BREATH)
            raise
        yield False
    # not after an error: it would wait for what the others no longer do
    dist.destroy_process_group()
    _calls = None


def together(function: Callable) -> Callable:
    """Mark a function that all processes carry out when the first calls it.

    The others are sent its arguments by pickle. All of them must come to the same calls of this
    module in the same order, or raise; what the others return is not used.
    """

    @functools.wraps(function)
    def call(*args, **kwargs):
        global _at_work
        if size() == 1 or _at_work:
            return function(*args, **kwargs)
        if leads():
            from_first((function.__module__, function.__qualname__, args, kwargs))
        _at_work = True
        answer = function(*args, **kwargs)
        _at_work = False  # and if it raised, the others are still at it: nobody would listen
        return answer

    return call


def _serve() -> None:
    """Carry out what the first process calls, until there is no more."""
    while task := from_first(None):
        module, name, args, kwargs = task
        getattr(importlib.import_module(module), name)(*args, **kwargs)


def _hush() -> None:
    """Leave the output to the first process, but for errors, and take no terminal for a reader."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open until the process ends
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(_NoTerminal(2, "w")), line_buffering=True)


class _NoTerminal(io.FileIO):
    def isatty(self) -> bool:
        return False  # progress bars look here


def shard(count: int, unit: int) -> slice:
    """Return which of `count` items are this process's: contiguous, in whole batches of `unit`.

    Those of all processes are disjoint, in the order of their ranks, and cover all items.
    """
    units = -(-count // unit)
    first, last = (units * number // size() * unit for number in (rank(), rank() + 1))
    return slice(min(first, count), min(last, count))


def from_first(value: T) -> T:
    """Return what the first process gives here, in all of them."""
    if size() == 1:
        return value
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, 0, group=_calls)
    return values[0]


def gathered(work: Callable[[], T]) -> list[T]:
    """Do each process's own work, and return what comes of it, in the order of their ranks.

    The list is the first's; the others get an empty one. A UserError of one is raised in all.
    """
    if size() == 1:
        return [work()]
    import torch.distributed as dist

    answer, error = None, None
    try:
        answer = work()
    except UserError as said:
        error = said
    errors = [None] * size()
    dist.all_gather_object(errors, error, group=_calls)
    for error in filter(None, errors):
        raise error
    answers = [None] * size() if leads() else None
    dist.gather_object(answer, answers, 0, group=_calls)
    return answers or []


def summed(values: "Tensor") -> "Tensor":
    """Return the sum of `values` over all processes, whose gradient is that of the own values.

    So a loss made of such sums is that of the whole batch, and its gradients, added over the
    processes, are too.
    """
    if size() == 1:
        return values
    import torch.distributed as dist

    total = values.detach().clone()
    dist.all_reduce(total)
    return values + (total - values.detach())


def _replace_by_sum(tensors: list["Tensor"]) -> None:
    """Add up tensors over all processes, in place, in one message."""
    import torch
    import torch.distributed as dist

    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def sum_gradients(parameters: Iterable["nn.Parameter"]) -> None:
    """Add up the gradients of all processes."""
    if size() > 1:
        _replace_by_sum([part.grad for part in parameters if part.grad is not None])


def average_statistics(model: "nn.Module") -> None:
    """Give all processes the mean of their running means and variances."""
    statistics = [values for values in model.buffers() if values.is_floating_point()]
    if size() > 1 and statistics:
        _replace_by_sum(statistics)
        for values in statistics:
            values /= size()


def copy_from_first(model: "nn.Module") -> None:
    """Give all processes the weights of the first."""
    if size() > 1:
        import torch.distributed as dist

        for values in model.state_dict().values():
            dist.broadcast(values, 0)
