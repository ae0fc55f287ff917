"""The interface of what the one training loop trains: its parts, epochs and steps."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from config import Config

Losses = dict[str, Tensor]


class Training(ABC):
    """What the loop trains. A subclass defines the network, an epoch and a step."""

    rate = "lr"  # the setting that lowers its learning rate

    def __init__(
        self, cfg: Config, name: str, model: nn.Module, epochs: int, device: torch.device
    ) -> None:
        """name: of the training, for messages."""
        self.cfg, self.name, self.model = cfg, name, model
        self.epochs, self.device = epochs, device
        self.log: list[dict] = []  # a row for each epoch so far, kept by the loop
        # what an interrupted training needs to continue; each has a state_dict
        self.parts: dict[str, object] = {"model": model}

    def is_over(self) -> bool:
        """Say whether the last epoch of the log is the last of all."""
        return len(self.log) >= self.epochs

    @abstractmethod
    def begin_epoch(self, epoch: int) -> Iterable[tuple]:
        """Return the batches of an epoch, counted from 0: what `step` takes."""

    @abstractmethod
    def step(self, *batch: object) -> Losses:
        """Take a step on a batch; return its losses, scalars on the device, or other measures.

        The host waits for nothing. The result is valid until the next step.
        """

    def end_epoch(self, losses: dict[str, float]) -> dict:
        """Return the row of the log, given the means of the losses over the epoch."""
        return {"epoch": len(self.log) + 1, **losses}

    def seen_in(self, step: int) -> str:
        """Return for a message the data of a step of this epoch, counted from 0."""
        return ""
