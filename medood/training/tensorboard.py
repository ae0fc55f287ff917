"""The TensorBoard log of a training, for users who ask for it with --tensorboard."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from config import Config, UserError
from medood.data.dataset import CHUNK, Patches
from medood.data.labels import UNSURE_COLOUR, is_foreground, palette
from medood.models.inference import predict
from medood.models.network import pick_device

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SHOWN = 4  # patches whose image, truth and prediction are drawn after every epoch


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


class TensorBoardLog:
    """A log of each epoch's numbers, and of what the network predicts on a few training patches."""

    def __init__(self, cfg: Config, name: str, patches: Patches, epochs_done: int) -> None:
        """Open <workspace>/tensorboard/<name>, and remove the log of an earlier training there.

        patches: those of the training; the ones with the most foreground are shown. epochs_done: of
        an interrupted training that goes on. Raises UserError if TensorBoard is not installed.
        """
        self.cfg, self.writer = cfg, open_writer(cfg, name, epochs_done)
        masks = patches.masks.split(CHUNK)
        foreground = torch.cat([is_foreground(part).sum((1, 2)) for part in masks])
        shown = foreground.argsort(descending=True, stable=True)[:SHOWN]
        self.images, self.masks = patches.images[shown], patches.masks[shown]

    def add(self, row: dict[str, float], model: nn.Module) -> None:
        """Add an epoch: the row of its log, and a picture; the network stays in training mode.

        Each row of the picture shows a patch: image, truth, prediction.
        """
        epoch = row["epoch"]
        for name, value in row.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, epoch)
        found = predict(self.cfg, model.eval(), self.images, pick_device(self.cfg), "  picture")
        predicted = np.concatenate([part.argmax(1).cpu().numpy() for _, part in found])
        model.train()
        colours = palette((*self.cfg.classes, ("unsure", UNSURE_COLOUR)))
        truth = np.minimum(self.masks.numpy(), len(colours) - 1)  # UNSURE is the largest value
        columns = self.images.numpy(), colours[truth], colours[predicted]
        rows = np.concatenate(columns, axis=2)  # (n, P, 3 P, 3)
        picture = np.concatenate(rows)  # (n P, 3 P, 3)
        self.writer.add_image("image, truth, prediction", picture, epoch, dataformats="HWC")
        self.writer.flush()
