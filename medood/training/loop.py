"""The one training loop, of every network that is trained here.

A training (protocol.py) draws the batches of an epoch and takes a step on each. The loop does the
rest: it counts the epochs, stops if a loss is not finite, prints the log and keeps resume.pt
(state.py).
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from config import Config, UserError
from medood.data.files import csv_text, whole_folder, write_json, write_text
from medood.data.records import RUN, hashes
from medood.models.checkpoints import TRAINED_ON
from medood.processes import is_main
from medood.training.protocol import Losses, Training
from medood.training.state import TrainingState

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SHOWN = {"lr": ".1e", "seconds": ".1f"}  # how a column of the log is printed; others: ".4f"


def fit(training: Training, folder: Path | None = None, made_from: dict | None = None) -> int:
    """Train to the last epoch; return which epoch's weights the network has then.

    It is the last, or the first with the highest `val_miou` if the rows of the log have one.
    folder: of resume.pt, from which an interrupted training continues after its last whole epoch,
    to end with the same weights, bit for bit on the CPU; None keeps nothing. made_from: what the
    network is made from. Raises UserError if a loss is not finite or the device has too little
    memory for a batch.
    """
    state = TrainingState(training, folder and folder / "resume.pt", made_from or {})
    if training.log:
        print(f"  it continues after epoch {len(training.log)}")
    writer = writer_of(training, folder)
    first = len(training.log)
    while not training.is_over():
        started = time.perf_counter()
        losses = train_epoch(training, len(training.log))
        refuse_not_finite(training, losses)
        row = training.end_epoch({name: round(v.mean().item(), 6) for name, v in losses.items()})
        state.add(row)
        tell(row | {"seconds": time.perf_counter() - started}, len(training.log) == first + 1)
        for name, value in [*row.items()][1:] if writer else []:
            if value is not None:
                writer.add_scalar(name, value, next(iter(row.values())))
    if writer is not None:
        writer.close()
    return state.load_best()


def writer_of(training: Training, folder: Path | None) -> "SummaryWriter | None":
    """Open TensorBoard's <workspace>/tensorboard/<name of the folder> if the settings ask for it.

    Curves of an earlier training are removed: they would look like those of the new network.
    Raises UserError if TensorBoard is not installed.
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


def train_epoch(training: Training, epoch: int) -> Losses:
    """Take a step on each batch of an epoch, counted from 0; return the losses of all, (S,)."""
    found, losses = [], {}
    with explain_errors(training.cfg, training.device):
        batches = training.begin_epoch(epoch)
        for batch in tqdm(batches, f"  epoch {epoch + 1}", leave=False, disable=None):
            losses = training.step(*batch)
            found.append(torch.stack(list(losses.values())))  # no .item(): the host would wait
    return dict(zip(losses, torch.stack(found, 1), strict=True))


def tell(row: dict, header: bool) -> None:
    """Print a row of the log, with the names of its columns above the first one."""
    if header:
        print("  " + "  ".join(f"{name[:9]:>9}" for name in row))
    cells = [
        f"{value:{SHOWN.get(name, '.4f')}}" if isinstance(value, float) else value
        for name, value in row.items()
    ]
    cells = ["-" if cell is None else cell for cell in cells]
    print("  " + "  ".join(f"{cell:>9}" for cell in cells), flush=True)


def refuse_not_finite(training: Training, losses: Losses) -> None:
    """Raise UserError that names the first step of an epoch with a loss that is not finite.

    losses: of each step, (S,). resume.pt keeps the epochs before this one.
    """
    values = torch.stack(list(losses.values()), 1)
    wrong = (~values.isfinite()).nonzero()
    if not len(wrong):
        return
    step, which = wrong[0].tolist()
    cfg, rate = training.cfg, training.rate
    raise UserError(
        f"{training.name}, epoch {len(training.log) + 1}, step {step + 1}: the"
        f" {list(losses)[which]} is {values[step, which].item()}{training.seen_in(step)}: lower"
        f" {rate} (now {getattr(cfg, rate):g}) or set precision to float32, and train again"
    )


@contextmanager
def explain_errors(cfg: Config, device: torch.device) -> Iterator[None]:
    """Turn a lack of memory, compiler or deterministic operation into a UserError."""
    try:
        yield
    except torch.OutOfMemoryError:
        half = cfg.batch_size // 2
        raise UserError(
            f"{device} has too little memory for batches of {cfg.batch_size} patches: set"
            f" {f'batch_size to {half}' if half else 'device to cpu'}"
        ) from None
    except (ValueError, RuntimeError) as error:
        reason, cure = str(error).strip().partition("\n")[0], ""
        if "more than 1 value per channel" in reason:  # batch normalisation of a single value
            cure = "batch_size to 2 or more"
        elif "does not have a deterministic implementation" in reason:
            cure = "deterministic to False"
        elif type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            cure = "compile to False"
        if not cure:
            raise
        raise UserError(f"{cfg.model_name} cannot be trained here ({reason}): set {cure}") from None


def write_trained(
    folder: Path, training: Training, run: dict, names: set[str], save: Callable[[Path], object]
) -> None:
    """Write a trained network to the disk: its weights, its log and what it is made from.

    run: the content of run.json, without its outputs. names: of what it was trained on.
    save: writes the network into a folder.
    """
    with whole_folder(folder) as finished:
        save(finished)
        write_log(finished, training.log)
        write_text(finished / TRAINED_ON, "".join(f"{name}\n" for name in sorted(names)))
        write_json(finished / RUN, run | {"outputs": hashes(finished)})


def write_log(folder: Path, log: list[dict]) -> None:
    """Write the log of a training, a row for each epoch, into its folder."""
    write_text(folder / "log.csv", csv_text(list(log[0]), (row.values() for row in log)))
