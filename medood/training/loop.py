"""The one training loop: baseline and Med-OoD differ only in the patches that it gets."""

import os
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from config import Config, UserError
from medood.data.dataset import CHUNK, Patches, load_patches
from medood.data.files import csv_text, timed, whole_folder, write_json, write_text
from medood.data.records import RUN, hashes, is_kept, record_of
from medood.data.workspace import SOURCE_PREFIX, Pair, data_name
from medood.evaluation.model_card import write_card
from medood.evaluation.testing import tally_patches
from medood.models.checkpoints import TRAINED_ON, read_run, versions
from medood.models.network import pick_device
from medood.processes import is_main, rank, world_size
from medood.runs.products import network_made_from, plain_settings
from medood.training.batches import DROPOUT, INITIALISATION, Loader, stream_seed
from medood.training.state import TrainingState
from medood.training.step import Trainer, explain_errors
from medood.training.tensorboard import add_row, open_writer, remove_log

SLOW_SHARE = 10 / 36  # of the epochs, the last ones, run at a tenth of the learning rate


def learning_rate(cfg: Config, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0."""
    slow = round(cfg.epochs * SLOW_SHARE)
    return cfg.lr if epoch < cfg.epochs - slow else cfg.lr / 10


def train_fold(
    cfg: Config,
    fold: int,
    files: list[Pair],
    val_files: list[Pair],
    folder: Path,
    kind: type[Trainer] = Trainer,
    made_from: dict | None = None,
) -> None:
    """Train the network of a fold on patches and write it to `folder`.

    files: image and mask of each patch, no mask for an OoD patch. val_files: the patches that
    choose the epoch, for select = "val". kind: what takes the optimiser steps. made_from: what
    decides the network; None: the settings and these patches. A network that is there already, made
    from the same, is kept.
    """
    made_from = made_from or network_made_from(cfg, fold, files + val_files)
    made_from = made_from | kind.made_from(cfg)
    run = read_run(folder)
    if (folder / RUN).exists() and not run:
        raise UserError(f"{folder / RUN} cannot be read: remove {folder} to have it trained")
    if record_of(folder).is_yours:
        raise UserError(
            f"{folder} is user-supplied: remove it to have it trained, or test it as it is with the"
            " option --checkpoint of test.py"
        )
    if not is_kept(folder, made_from):
        with timed(cfg.workspace, f"training {folder.name}"):
            fit(cfg, fold, files, val_files, folder, made_from, kind)
        return
    # predict.py needs these settings, and training does not depend on their changes
    described = {name: plain_settings(cfg)[name] for name in ("classes", "mpp")}
    if is_main() and run["settings"] | described != run["settings"]:
        run["settings"] |= described
        write_json(folder / RUN, run)
        write_card(folder, run)


def fit(
    cfg: Config,
    fold: int,
    files: list[Pair],
    val_files: list[Pair],
    folder: Path,
    made_from: dict,
    kind: type[Trainer] = Trainer,
) -> None:
    """Train the network of cfg on patches and write it to `folder`.

    val_files: the weights of the epoch with the highest `miou` on them are kept; without any, the
    last. A training that was interrupted goes on after its last whole epoch, and ends with the same
    weights, to the bit on the CPU. Raises UserError if the ID patches or those of `val_files` hold
    no nucleus, if loss or gradient stop being finite, and if the device has no memory for a batch.
    """
    patches = load_patches(cfg, files)
    val = load_patches(cfg, val_files) if val_files else None
    warning = without_classes(cfg, patches)
    device = pick_device(cfg)
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(cfg.deterministic)
    torch.manual_seed(stream_seed(cfg, fold, INITIALISATION))
    with explain_errors(cfg, device):
        trainer = kind(cfg, device)
        loader = Loader(cfg, fold, patches, device)
    state = TrainingState(folder / "resume.pt", made_from, trainer)
    n_ood = int(patches.is_ood.sum())
    print(
        f"fold {fold}: {cfg.architecture} on {cfg.encoder}, {len(patches) - n_ood} ID +"
        f" {n_ood} OoD patches, {device.type}"
        + (f" in {world_size()} processes" if world_size() > 1 else "")
        + (f", from epoch {len(state.log) + 1}" if state.log else "")
    )
    if warning:
        print(f"fold {fold}: {warning}")
    tensorboard = None
    if cfg.tensorboard and is_main():
        tensorboard = open_writer(cfg, folder.name, len(state.log))
    elif is_main() and not state.log:
        remove_log(cfg, folder.name)
    print("  epoch    loss       lr  seconds")
    for epoch in range(len(state.log), cfg.epochs):
        started = time.perf_counter()
        lr = learning_rate(cfg, epoch)
        torch.manual_seed(stream_seed(cfg, fold, DROPOUT, epoch) + rank())
        loader.set_epoch(epoch)
        losses, norms = train_epoch(trainer, loader, lr)
        refuse_not_finite(loader, losses, norms)
        trainer.average_buffers()
        row = {"epoch": epoch + 1, "loss": round(losses.mean().item(), 6), "lr": lr}
        if val is not None:
            row["val_miou"] = validate(cfg, trainer.model, val, device)
        if tensorboard is not None:
            add_row(tensorboard, row)
        state.add(row)
        seconds = time.perf_counter() - started
        score = f"  val_miou {row['val_miou']:.4f}" if val is not None else ""
        line = f"  {epoch + 1:5d}  {row['loss']:6.4f}  {lr:.1e}  {seconds:7.1f}{score}"
        print(line, flush=True)
    if tensorboard is not None:
        tensorboard.close()
    run = {
        "fold": fold,
        "data": data_name(cfg.workspace),
        "settings": plain_settings(cfg),
        "epoch": state.load_best(),
        "id_patches": len(patches) - n_ood,
        "ood_patches": n_ood,
        "processes": world_size(),
        "versions": versions(),
        "made_from": made_from,
    }
    # an OoD patch, unless external, has the name of the training patch that it was cut from
    names = {name for name in patches.names if not name.startswith(SOURCE_PREFIX)}
    if is_main():
        write_network(trainer.model, run, state.log, names | set(val.names if val else []), folder)


def train_epoch(trainer: Trainer, loader: Loader, lr: float) -> tuple[Tensor, Tensor]:
    """Take a step on each batch; return the losses and the norms of the gradient, (S,) each."""
    trainer.begin_epoch(lr)
    losses, norms = torch.empty(2, len(loader), device=loader.device)
    progress = tqdm(loader, f"  epoch {loader.epoch + 1}", leave=False, disable=None)
    with explain_errors(trainer.cfg, loader.device):
        for step, batch in enumerate(progress):
            # no .item() here: the host would wait for the device
            losses[step], norms[step] = trainer.step(*batch)
    return losses, norms


def refuse_not_finite(loader: Loader, losses: Tensor, norms: Tensor) -> None:
    """Raise UserError that names the first step of an epoch whose loss or gradient is not finite.

    losses, norms: of each step, (S,). resume.pt keeps the epochs before, and not this one.
    """
    wrong = ~(losses.isfinite() & norms.isfinite())
    if not wrong.any():
        return
    step = int(wrong.nonzero()[0])
    names = ", ".join(loader.patches.names[index] for index in loader.batches[step].tolist())
    what, value = ("gradient", norms) if losses[step].isfinite() else ("loss", losses)
    raise UserError(
        f"fold {loader.fold}, epoch {loader.epoch + 1}, step {step + 1}: the {what} is"
        f" {value[step].item()} on the patches {names}: lower lr (now"
        f" {loader.cfg.lr:g}) or set precision to float32, and train again; with the same settings"
        " it goes on after the epochs before"
    )


def without_classes(cfg: Config, patches: Patches) -> str:
    """Return a warning that names the classes without a pixel in the ID patches, or "".

    Raises UserError if no class has any. Some studies train on OoD patches alone: no warning then.
    """
    if patches.is_ood.all():
        return ""
    present = {value for part in patches.masks.split(CHUNK) for value in part.unique().tolist()}
    absent = [name for value, name in enumerate(cfg.class_names) if value and value not in present]
    if len(absent) == len(cfg.classes):
        raise UserError("no training mask holds a nucleus: look at Mask_Patchs")
    if not absent:
        return ""
    return f"no training patch holds {' or '.join(absent)}: the network will not know it"


def validate(cfg: Config, model: nn.Module, val: Patches, device: torch.device) -> float:
    """Return `miou` of a network in training on held-out patches.

    Without mirrors: how a network is used later does not decide which epoch's weights are kept.
    """
    cfg = replace(cfg, mirrors=False)
    tally, _ = tally_patches(cfg, model.eval(), val, device, "  validation")
    model.train()
    miou = tally.scores()["miou"]
    if miou is None:
        raise UserError(
            f"select = val: no nucleus in the {len(val)} patches held out of the training side:"
            " set select to last, or another seed"
        )
    return miou


def write_network(
    model: nn.Module, run: dict, log: list[dict], names: set[str], folder: Path
) -> None:
    """Write a network as smp's save_pretrained does, with its log and card, onto the disk.

    run: the content of run.json. names: of the ID patches behind the network.
    """
    with whole_folder(folder) as finished:
        try:
            model.eval().save_pretrained(finished)
        except SafetensorError as error:  # safetensors turns an error of the disk into text
            raise UserError(
                f"the weights cannot be written to {folder.parent} ({error}): free some space and"
                " run the same command again, nothing that was done is lost"
            ) from None
        mode = (finished / "config.json").stat().st_mode  # safetensors hides its file from others
        for path in finished.iterdir():
            path.chmod(mode)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        write_text(finished / "log.csv", csv_text(list(log[0]), (row.values() for row in log)))
        write_text(finished / TRAINED_ON, "".join(f"{name}\n" for name in sorted(names)))
        write_json(finished / RUN, run | {"outputs": hashes(finished)})
        write_card(finished, run)
