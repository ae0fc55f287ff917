"""Jobs on the workers of a dask cluster, instead of in threads of this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from joblib import parallel_config

from config import Config, UserError

if TYPE_CHECKING:
    from distributed import Client

PATIENCE = 5  # seconds for the scheduler to answer, then for a first worker to be there
NEEDED = "medood.check"  # the first job is one of its functions, and needs the most


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
