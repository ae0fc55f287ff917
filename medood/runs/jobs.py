"""One function on many files: in threads of this machine, or on the workers of a dask cluster."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from config import Config, UserError
from medood.data.names import name_of
from medood.data.records import BadFiles, listed

if TYPE_CHECKING:
    from distributed import Client

PATIENCE = 5  # seconds for the scheduler to answer, then for a first worker to appear

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

    Raises UserError if distributed is not installed, if no scheduler or worker answers, if one
    cannot import this repository or see the workspace, and if the cluster loses its work.
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
            f"no dask scheduler answers at {address}: start one with `python -m dask scheduler`,"
            " or remove the setting dask_scheduler"
        ) from None
    try:
        with client, parallel_config(backend="dask", client=client):
            _require_workers(client, cfg)
            yield
    except (CancelledError, KilledWorker) as error:
        raise UserError(
            f"the cluster of {address} lost its work ({type(error).__name__}): read the output of"
            " scheduler and workers, then run the same command again"
        ) from None


def _require_workers(client: "Client", cfg: Config) -> None:
    """Raise UserError unless there are workers, with this repository and the workspace."""
    address, workspace = cfg.dask_scheduler, cfg.workspace.absolute()
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        raise UserError(
            f"the dask scheduler at {address} has no worker: start some with"
            f" `python -m dask worker {shlex.quote(address)}`"
        ) from None
    found = client.run(sees, workspace, on_error="return")
    try:
        client.run_on_scheduler(sees, workspace)  # it unpacks what is sent
    except Exception as error:
        found["scheduler"] = error
    for place, answer in found.items():
        if isinstance(answer, Exception):
            raise UserError(
                f"{place} of the cluster of {address} cannot import this repository ({answer}):"
                " start scheduler and workers in its folder and with its environment"
            )
        if not answer:
            raise UserError(
                f"{place} of the cluster of {address} does not see {workspace}: move the workspace"
                " to a disk that all workers share, under the same name"
            )


def sees(folder: Path) -> bool:
    """Say whether this process sees a folder; a worker imports this repository to say so."""
    return folder.is_dir()
