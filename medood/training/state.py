"""The state of a training after its last whole epoch, which an interrupted one goes on from."""

import copy
import io
from pathlib import Path

import torch

from config import UserError
from medood.data.files import whole
from medood.processes import is_main, world_size
from medood.training.step import Trainer


class TrainingState:
    """The log of a training, its best epoch so far, and the file that keeps both: resume.pt.

    log: a row per epoch. best: the row of the first epoch with the highest `val_miou`, and its
    weights as `model`; None without validation.
    """

    def __init__(self, path: Path, made_from: dict, trainer: Trainer) -> None:
        """Read the file, if it is there, and load what it holds into the trainer.

        made_from: what the network is made from; a file of another training is not used. Raises
        UserError if the file is damaged. Every process reads it; rank 0 writes it.
        """
        self.path, self.model = path, trainer.model
        self.parts = {"model": trainer.model, "optimiser": trainer.optimiser}
        self.parts |= getattr(trainer, "beside", {})  # what some have beside the two
        self.record = made_from | {"processes": world_size()}  # batch normalisation depends on them
        self.log: list[dict] = []
        self.best: dict | None = None
        if not path.exists():
            return
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            same = isinstance(saved, dict) and saved.get("record") == self.record
            reason = "" if same else "it was begun with other settings or patches"
        except Exception as error:  # many kinds; a damaged file costs the epochs, not the training
            reason = f"it cannot be read ({type(error).__name__})"
        if reason:
            print(f"{path}: not continued, {reason}")
            return
        try:
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
            self.log, self.best = saved["log"], saved["best"]
        except Exception as error:  # half of it may be loaded by now
            raise UserError(
                f"{path} is damaged ({type(error).__name__}): remove it to begin this training anew"
            ) from None

    def add(self, row: dict) -> None:
        """Add the row of an epoch to the log, and write the file."""
        self.log.append(row)
        score = row.get("val_miou")
        if score is not None and (self.best is None or score > self.best["val_miou"]):
            self.best = {**row, "model": copy.deepcopy(self.model.state_dict())}
        if not is_main():
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"record": self.record, "log": self.log, "best": self.best}
        buffer = io.BytesIO()  # not to the file: torch hides that a disk is full
        torch.save(state, buffer)
        with whole(self.path) as partial:
            partial.write_bytes(buffer.getbuffer())

    def load_best(self) -> int:
        """Give the network the weights of the best epoch, or the last; return which epoch it is."""
        if self.best is None:
            return len(self.log)
        self.model.load_state_dict(self.best["model"])
        return self.best["epoch"]
