"""The state of a training after its last whole epoch, from which it continues if interrupted."""

import copy
import io
from pathlib import Path

import torch

from config import UserError
from medood.data.files import whole
from medood.processes import is_main, world_size
from medood.training.protocol import Training

FORMAT = 2  # of the file; 1 had the weights of the optimiser in another order


class TrainingState:
    """The parts of a training, its log and its best epoch so far, and their file.

    best: the row of the first epoch with the highest `val_miou`, and its weights as `model`; None
    without validation.
    """

    def __init__(self, training: Training, path: Path | None, made_from: dict) -> None:
        """Read the file, if it exists, and load its content into the training.

        made_from: what the network is made from; a file of another training, or one that cannot be
        opened, is not used. Raises UserError if its content is damaged. Every process reads it;
        rank 0 writes it.
        """
        self.training, self.path = training, path
        # batch normalisation depends on the processes
        self.record = made_from | {"processes": world_size(), "format": FORMAT}
        self.best: dict | None = None
        if path is None or not path.exists():
            return
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # many kinds; a damaged file costs the epochs, not the training
            saved = None
        if not isinstance(saved, dict) or saved.get("record") != self.record:
            print(f"{path}: not continued: damaged, or from other settings, patches or version")
            return
        try:
            for name, part in training.parts.items():
                part.load_state_dict(saved[name])
            training.log, self.best = saved["log"], saved["best"]
        except Exception as error:  # torch checks no checksum; half of it may be loaded by now
            raise UserError(
                f"{path} is damaged ({type(error).__name__}): remove it to start again"
            ) from None

    def add(self, row: dict) -> None:
        """Add the row of an epoch to the log, and write the file."""
        self.training.log.append(row)
        score = row.get("val_miou")
        if score is not None and (self.best is None or score > self.best["val_miou"]):
            self.best = {**row, "model": copy.deepcopy(self.training.model.state_dict())}
        if self.path is None or not is_main():
            return
        state = {name: part.state_dict() for name, part in self.training.parts.items()}
        state |= {"record": self.record, "log": self.training.log, "best": self.best}
        buffer = io.BytesIO()  # not to the file: torch hides that a disk is full
        torch.save(state, buffer)
        with whole(self.path) as partial:
            partial.write_bytes(buffer.getbuffer())

    def load_best(self) -> int:
        """Give the network the weights of the best epoch, or the last; return which epoch it is."""
        if self.best is None:
            return len(self.training.log)
        self.training.model.load_state_dict(self.best["model"])
        return self.best["epoch"]
