"""One function on many files: in threads of this machine, or on the workers of a dask cluster."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from config import Config, UserError
from medood.data.names import name_of
from medood.data.records import BadFiles, listed

PATIENCE = 5  # seconds for the scheduler to answer, then for a first worker to come

T = TypeVar("T")


def for_each(
    step: Callable[..., T], jobs: Sequence[tuple], cfg: Config, task: str, bad: BadFiles
) -> list[T]:
    """Return the results of step(path, ...) for each of `jobs`, in their order.

    The jobs run in threads or, with `dask_scheduler`, on the workers of a cluster. A job that ends
    in a UserError gives no result and stops no other: its message is put into `bad`. Raises
    UserError if no job gives a result. task: what the progress bar says.
    """

    def attempt(*job: object) -> T | UserError:
        try:
            return step(*job)
        except UserError as error:
            return error

    found = []
    with dask_cluster(cfg) if cfg.dask_scheduler else nullcontext():
        # threads end with their process, and reading, converting and writing images release the
        # GIL; a worker of dask may finish its image later, in a folder that stays unused
        results = Parallel(n_jobs=-1, prefer="threads", return_as="generator")(
            delayed(attempt)(*map(_absolute, job)) for job in jobs
        )
        for job, result in zip(jobs, tqdm(results, task, len(jobs), disable=None), strict=True):
            if isinstance(result, UserError):
                reason = str(result)
                for path in (item for item in job if isinstance(item, Path)):
                    reason = reason.replace(str(path.absolute()), str(path))
                bad[name_of(job[0])] = reason
            else:
                found.append(result)
    if not found:
        raise listed(bad, "correct them")
    return found


def _absolute(item: object) -> object:
    """Return a path as processes in another folder find it; any other item as it is."""
    return item.absolute() if isinstance(item, Path) else item


@contextmanager
def dask_cluster(cfg: Config) -> Iterator[None]:
    """Let joblib's Parallel call its functions on the workers of `dask_scheduler`.

    Raises UserError if distributed is not installed, if no scheduler with a worker answers, if one
    of them cannot import this repository or see the workspace, and if the cluster loses its work.
    """
    try:
        from distributed import CancelledError, Client, KilledWorker
    except ImportError:
        raise UserError(
            "dask_scheduler is set, but the package distributed is not installed: run"
            ' `pip install "dask[distributed]"`'
        ) from None
    address, workspace = cfg.dask_scheduler, cfg.workspace.absolute()
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
        client.wait_for_workers(1, timeout=PATIENCE)
    except OSError:
        raise UserError(
            f"no dask scheduler with a worker answers at {address}: start them with `python -m dask"
            f" scheduler` and `python -m dask worker {shlex.quote(address)}`"
        ) from None
    with client, parallel_config(backend="dask", client=client):
        try:
            seen = [*client.run(sees, workspace).values()]
            seen.append(client.run_on_scheduler(sees, workspace))  # it unpacks what is sent
        except Exception as error:
            raise UserError(
                f"the cluster of {address} cannot import this repository ({error}): start scheduler"
                " and workers in its folder and with its environment"
            ) from None
        if not all(seen):
            raise UserError(
                f"the cluster of {address} does not see {workspace}: move the workspace to a disk"
                " that all its machines share, under the same name"
            )
        try:
            yield
        except (CancelledError, KilledWorker) as error:
            raise UserError(
                f"the cluster of {address} lost its work ({type(error).__name__}): read the output"
                " of scheduler and workers, then run the same command again"
            ) from None


def sees(folder: Path) -> bool:
    """Say whether this process sees a folder; a worker imports this repository to say so."""
    return folder.is_dir()
