"""The curves of a training for TensorBoard, for users who ask for them with --tensorboard."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from config import UserError
from medood.processes import is_main

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from medood.training.protocol import Training


def writer_of(training: Training, folder: Path | None) -> SummaryWriter | None:
    """Open <workspace>/tensorboard/<name of the folder> if the settings ask for it.

    The log of an earlier training there is removed in any case: it would pass for that of the
    network made now. Raises UserError if TensorBoard is not installed.
    """
    if folder is None or not is_main():
        return None
    path = training.cfg.workspace / "tensorboard" / folder.name
    if not training.log:
        shutil.rmtree(path, ignore_errors=True)
    if not training.cfg.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("tensorboard = True needs TensorBoard: `pip install tensorboard`") from None
    done = next(iter(training.log[-1].values())) if training.log else 0
    return SummaryWriter(path, purge_step=done + 1)


def add_row(writer: SummaryWriter, row: dict[str, float | None]) -> None:
    """Add a row of a training's log; its first column counts, and what is None is left out."""
    (_, step), *values = row.items()
    for name, value in values:
        if value is not None:
            writer.add_scalar(name, value, step)
    writer.flush()
