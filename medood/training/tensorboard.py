"""The TensorBoard log of a training, for users who ask for it with --tensorboard."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from config import Config, UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def open_writer(cfg: Config, name: str, steps_done: int) -> SummaryWriter:
    """Open <workspace>/tensorboard/<name>, and remove the log of an earlier training there.

    steps_done: of an interrupted training that goes on. Raises UserError if TensorBoard is not
    installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("tensorboard = True needs TensorBoard: `pip install tensorboard`") from None
    if not steps_done:
        remove_log(cfg, name)
    return SummaryWriter(log_folder(cfg, name), purge_step=steps_done + 1)


def log_folder(cfg: Config, name: str) -> Path:
    """Return where the log of a training is."""
    return cfg.workspace / "tensorboard" / name


def remove_log(cfg: Config, name: str) -> None:
    """Remove the log of an earlier training: it would pass for that of the network made now."""
    shutil.rmtree(log_folder(cfg, name), ignore_errors=True)


def add_row(writer: SummaryWriter, row: dict[str, float | None]) -> None:
    """Add a row of a training's log; its first column counts, and what is None is left out."""
    (_, step), *values = row.items()
    for name, value in values:
        if value is not None:
            writer.add_scalar(name, value, step)
    writer.flush()
