"""One function on many files: in threads of this machine, or on the workers of a dask cluster."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from config import Config, UserError
from medood.data.records import BadFiles, listed

if TYPE_CHECKING:
    from distributed import Client

PATIENCE = 5  # seconds for the scheduler to answer, then for a first worker to be there
NEEDED = "medood.check"  # the first job is one of its functions, and needs the most

T = TypeVar("T")


def for_each(
    step: Callable[..., T], jobs: Sequence[tuple], cfg: Config, task: str, bad: BadFiles
) -> list[T]:
    """Call step(path, ...) for each of `jobs` as `each_result` does, and return the results."""
    return list(each_result(step, jobs, cfg, task, bad))


def each_result(
    step: Callable[..., T], jobs: Sequence[tuple], cfg: Config, task: str, bad: BadFiles
) -> Iterator[T]:
    """Call step(path, ...) for each of `jobs` in threads, or on the workers of `dask_scheduler`.

    Yields the results, in order. A UserError stops no other job: what it says is put into `bad`.
    Raises UserError if every job ends in one. task: what the progress bar says.
    """

    def attempt(*job: object) -> T | UserError:
        try:
            return step(*job)
        except UserError as error:
            return error

    elsewhere = cfg.dask_scheduler is not None
    good = 0
    with dask_cluster(cfg) if elsewhere else nullcontext():
        # threads end with their process, and reading, converting and writing images leave them
        # free; a worker of dask may end its image after us, in a folder that nobody renames then
        done = Parallel(n_jobs=cfg.workers, prefer="threads", return_as="generator")(
            delayed(attempt)(*(_absolute(job) if elsewhere else job)) for job in jobs
        )
        for job, result in zip(jobs, tqdm(done, task, len(jobs), disable=None), strict=True):
            if isinstance(result, UserError):
                bad[job[0].name] = _named_as_in(job, str(result))
            else:
                good += 1
                yield result
    if not good:
        raise listed(bad, "mend them")


def _absolute(job: tuple) -> tuple:
    """Return a job for a process that works in another folder."""
    return tuple(item.absolute() if isinstance(item, Path) else item for item in job)


def _named_as_in(job: tuple, said: str) -> str:
    """Return what was said of an `_absolute` job with its paths as they are in `job`."""
    for path in job:
        if isinstance(path, Path):
            said = said.replace(str(path.absolute()), str(path))
    return said


@contextmanager
def dask_cluster(cfg: Config) -> Iterator[None]:
    """Have joblib's Parallel call its functions on the workers of `dask_scheduler`.

    Raises UserError where distributed is not installed, no scheduler or worker answers, these
    cannot import this repository or see the workspace, or are lost on the way.
    """
    try:
        from distributed import CancelledError, Client, KilledWorker
    except ImportError:
        raise UserError(
            "dask_scheduler is set, but the package distributed is not installed: run"
            ' `pip install "dask[distributed]"`'
        ) from None
    address = cfg.dask_scheduler
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except OSError:
        raise UserError(
            f"no dask scheduler answers at {address}: start one there with"
            " `python -m dask scheduler`, or leave dask_scheduler out"
        ) from None
    try:
        with client, parallel_config(backend="dask", client=client):
            _require_workers(client, cfg)
            yield
    except (CancelledError, KilledWorker) as error:
        raise UserError(
            f"the cluster of {address} lost its work ({type(error).__name__}): look at what"
            " scheduler and workers said, then run the same command again"
        ) from None


def _require_workers(client: "Client", cfg: Config) -> None:
    """Raise UserError unless there are workers, with this repository and the workspace."""
    address, workspace = cfg.dask_scheduler, cfg.workspace.absolute()
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        raise UserError(
            f"the dask scheduler at {address} has no worker: start some with"
            f" `python -m dask worker {address}`"
        ) from None
    # what is sent is named by its module, so the scheduler, which looks into it, needs that too
    failed = client.run(exec, f"import {NEEDED}", on_error="return")
    try:
        client.run_on_scheduler(exec, f"import {NEEDED}")
    except Exception as error:
        failed["scheduler"] = error
    for place, error in failed.items():
        if error is not None:
            raise UserError(
                f"{place} of the cluster of {address} cannot import this repository ({error}):"
                " start scheduler and workers in its folder and with its environment"
            )
    for worker, sees in client.run(os.path.isdir, str(workspace)).items():
        if not sees:
            raise UserError(
                f"{worker} of the cluster of {address} does not see {workspace}: put the workspace"
                " on a disk that all workers share, under the same name"
            )
