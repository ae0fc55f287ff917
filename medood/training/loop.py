"""The one training loop: what it trains on is the only difference between baseline and Med-OoD."""

import copy
import io
import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from config import Config, UserError
from medood.data.dataset import CHUNK, Patches, load_patches
from medood.data.files import csv_text, timed, whole, whole_folder, write_json, write_text
from medood.data.records import RUN, is_kept, record_of
from medood.data.workspace import SOURCE_PREFIX, Pair, data_name
from medood.evaluation.model_card import write_card
from medood.evaluation.testing import tally_patches
from medood.models.checkpoints import TRAINED_ON, read_run, versions
from medood.models.network import pick_device
from medood.processes import agreed, is_main, rank, world_size
from medood.runs.provenance import network_made_from, plain_settings
from medood.training.augmentation import draw_views
from medood.training.step import Learner, average_statistics, memory_needed
from medood.training.tensorboard import Board

SLOW_SHARE = 10 / 36  # of the epochs, the last ones, run at a tenth of the learning rate
# each stream of random numbers depends on seed and fold alone, so no fold changes another
INITIALISATION, ORDER, VIEWS, DROPOUT = range(4)


def stream_seed(cfg: Config, fold: int, stream: int, epoch: int = 0) -> int:
    """Return the seed of one stream of random numbers."""
    sequence = np.random.SeedSequence([cfg.seed, fold, stream, epoch])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))  # torch takes 63 bits


def learning_rate(cfg: Config, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0."""
    slow = round(cfg.epochs * SLOW_SHARE)
    return cfg.lr if epoch < cfg.epochs - slow else cfg.lr / 10


def batches(cfg: Config, fold: int, epoch: int, count: int) -> list[Tensor]:
    """Return the indices of each batch of an epoch: all patches, ID and OoD, shuffled together."""
    generator = torch.Generator().manual_seed(stream_seed(cfg, fold, ORDER, epoch))
    parts = list(torch.randperm(count, generator=generator).split(cfg.batch_size))
    # batch normalisation cannot normalise the deepest layer of a single small patch
    return parts[:-1] if len(parts) > 1 and len(parts[-1]) == 1 else parts


def train_fold(
    cfg: Config, fold: int, files: list[Pair], val_files: list[Pair], folder: Path
) -> None:
    """Train the network of a fold on patches and write it to `folder`.

    files: image and mask of each patch, no mask for an OoD patch. val_files: the patches that
    choose the epoch, for select = "val". A network that was trained with the same settings and
    patches is kept.
    """
    record, run = network_made_from(cfg, fold, files + val_files), read_run(folder)
    if (folder / RUN).exists() and not run:
        raise UserError(f"{folder / RUN} cannot be read: remove {folder} to have it trained")
    if record_of(folder).is_yours:
        raise UserError(
            f"{folder} was put there by you: remove it to have it trained, or test it as it is with"
            " `python test.py --checkpoint`"
        )
    if not is_kept(folder, record):
        with timed(cfg.workspace, f"training {folder.name}"):
            fit(cfg, fold, files, val_files, folder, record)
        return
    # what training does not depend on, and predict.py does
    described = {name: plain_settings(cfg)[name] for name in ("classes", "mpp")}
    if is_main() and run["settings"] | described != run["settings"]:
        run["settings"] |= described
        write_json(folder / RUN, run)
        write_card(folder, run)


def fit(
    cfg: Config, fold: int, files: list[Pair], val_files: list[Pair], folder: Path, record: dict
) -> None:
    """Train the network of cfg on patches and write it to `folder`.

    val_files: the weights of the epoch with the highest `miou` on them are kept; without any, the
    last. record: what the network is made from. A run that was interrupted goes on after its last
    whole epoch and ends with the same weights, to the bit on the CPU, as if it had not been.
    Raises UserError if no nucleus is in the ID patches or in those of `val_files`, if loss or
    gradient stop being finite, and if the device has no memory for a batch.
    """
    with agreed():
        patches = load_patches(cfg, files)
        val = load_patches(cfg, val_files) if val_files else None
        said = without_classes(cfg, patches)
    device = pick_device(cfg)
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(cfg.deterministic)
    torch.manual_seed(stream_seed(cfg, fold, INITIALISATION))
    learner = Learner(cfg, device)
    model, optimiser = learner.model, learner.optimiser
    resume_path = folder / "resume.pt"
    begun = record | {"processes": world_size()}  # which batch normalisation depends on
    log, best = _resume(resume_path, begun, model, optimiser)

    home = home_of(patches, device)
    weight = torch.where(patches.is_ood, cfg.ood_weight, 1.0)
    with memory_needed(cfg, device):
        held = [part.to(home) for part in (patches.images, patches.masks, weight)]
    n_ood = int(patches.is_ood.sum())
    print(
        f"fold {fold}: {cfg.architecture} on {cfg.encoder}, {len(patches) - n_ood} ID +"
        f" {n_ood} OoD patches, {device.type}"
        + (f" in {world_size()} processes" if world_size() > 1 else "")
        + (f", from epoch {len(log) + 1}" if log else "")
    )
    if said:
        print(f"fold {fold}: {said}")
    board = None
    if cfg.tensorboard and is_main():
        board = Board(cfg, folder.name, patches, len(log))
    print("  epoch    loss       lr  seconds")
    for epoch in range(len(log), cfg.epochs):
        started = time.perf_counter()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(cfg, epoch)
        torch.manual_seed(stream_seed(cfg, fold, DROPOUT, epoch) + rank())
        draw = draw_views(len(patches), stream_seed(cfg, fold, VIEWS, epoch)).to(home)
        parts = batches(cfg, fold, epoch, len(patches))
        with memory_needed(cfg, device):
            data = *held, draw
            losses, norms = train_epoch(learner, data, parts, device, f"  epoch {epoch + 1}")
        refuse_not_finite(cfg, f"fold {fold}, epoch {epoch + 1}", losses, norms, parts, patches)
        mean_loss = losses.mean().item()
        average_statistics(model)
        row = {"epoch": epoch + 1, "loss": round(mean_loss, 6), "lr": learning_rate(cfg, epoch)}
        if val is not None:
            row["val_miou"] = validate(cfg, model, val, device)
            if best is None or row["val_miou"] > best["val_miou"]:
                best = {**row, "model": copy.deepcopy(model.state_dict())}
        log.append(row)
        if board is not None:
            board.add(row, model)
        if is_main():
            _save_resume(resume_path, begun, model, optimiser, log, best)
        seconds = time.perf_counter() - started
        scored = f"  val_miou {row['val_miou']:.4f}" if val is not None else ""
        line = f"  {epoch + 1:5d}  {mean_loss:6.4f}  {row['lr']:.1e}  {seconds:7.1f}{scored}"
        print(line, flush=True)

    if board is not None:
        board.close()
    if best is not None:
        model.load_state_dict(best["model"])
    if not is_main():
        return
    # an OoD patch is called like the training patch that it was cut from, unless it is external
    names = {name for name in patches.names if not name.startswith(SOURCE_PREFIX)}
    names |= set(val.names if val else [])
    run = {
        "fold": fold,
        "data": data_name(cfg.workspace),
        "settings": plain_settings(cfg),
        "epoch": best["epoch"] if best else cfg.epochs,
        "id_patches": len(patches) - n_ood,
        "ood_patches": n_ood,
        "processes": world_size(),
        "versions": versions(),
        "made_from": record,
    }
    with whole_folder(folder) as finished:
        save_network(model, finished)
        write_text(finished / "log.csv", csv_text(list(log[0]), (row.values() for row in log)))
        write_text(finished / TRAINED_ON, "".join(f"{name}\n" for name in sorted(names)))
        write_json(finished / "run.json", run)
        write_card(finished, run)


def home_of(patches: Patches, device: torch.device) -> torch.device:
    """Return where the patches of a training lie: on its device if there is room for them.

    A batch at a time goes there from the CPU if they are more than half of what is free on a GPU,
    whose other half networks need, or lie in a file, beyond max_memory.
    """
    size = patches.images.nbytes + patches.masks.nbytes
    crowded = device.type == "cuda" and 2 * size > torch.cuda.mem_get_info(device)[0]
    return torch.device("cpu") if patches.mapped or crowded else device


def train_epoch(
    learner: Learner,
    data: tuple[Tensor, ...],
    parts: list[Tensor],
    device: torch.device,
    task: str,
) -> tuple[Tensor, Tensor]:
    """Take a step on each batch; return the losses and the norms of the gradient, (S,) each.

    data: images, masks, weight and draw of all patches, as Learner.step takes them, together on
    `device` or on the CPU. parts: the indices of each batch; of several processes, each takes its
    own share of a batch. task: what the progress bar says.
    """
    own = [own_share(part) for part in parts]
    # all indices at once: to copy those of a batch would wait for the device at every step
    indices = torch.cat([index for index, _ in own]).to(data[0].device)
    indices = indices.split([len(index) for index, _ in own])
    losses, norms = torch.empty(2, len(parts), device=device)
    for step, index in enumerate(tqdm(indices, desc=task, leave=False, disable=None)):
        images, masks, weight, draw = (part[index].to(device) for part in data)
        # no .item() here: it would wait too
        losses[step], norms[step] = learner.step(images, masks, own[step][1] * weight, draw)
    return losses, norms


def own_share(part: Tensor) -> tuple[Tensor, float]:
    """Return which patches of a batch are this process's, and how much each of them counts.

    Of a last batch too small to give each process the two that batch normalisation needs, every
    process takes all, and counts them in part.
    """
    if len(part) < 2 * world_size():
        return part, 1 / world_size()
    return part[rank() :: world_size()], 1.0


def refuse_not_finite(
    cfg: Config, when: str, losses: Tensor, norms: Tensor, parts: list[Tensor], patches: Patches
) -> None:
    """Raise UserError that names the first step of an epoch whose loss or gradient is not finite.

    losses, norms: of each step, (S,). parts: the indices of each step's patches. The epochs before
    are kept in resume.pt: the epoch is not.
    """
    wrong = ~(losses.isfinite() & norms.isfinite())
    if not wrong.any():
        return
    step = int(wrong.nonzero()[0])
    names = ", ".join(patches.names[index] for index in parts[step].tolist())
    what, value = ("gradient", norms) if losses[step].isfinite() else ("loss", losses)
    raise UserError(
        f"{when}, step {step + 1}: the {what} is {value[step].item()} on the patches {names}: lower"
        f" lr (now {cfg.lr:g}) or set precision to float32, and train again; with the same settings"
        " it goes on after the epochs before"
    )


def without_classes(cfg: Config, patches: Patches) -> str:
    """Return which classes have no pixel in the ID patches, in words, or "".

    Raises UserError if none has. Some studies train on OoD patches alone: those have none to miss.
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


def save_network(model: nn.Module, folder: Path) -> None:
    """Write a network as smp's save_pretrained does, all of it on the disk when this returns."""
    try:
        model.eval().save_pretrained(folder)
    except SafetensorError as error:  # what the disk says comes as text
        raise UserError(
            f"the weights cannot be written to {folder.parent} ({error}): free some space and run"
            " the same command again, nothing that was done is lost"
        ) from None
    mode = (folder / "config.json").stat().st_mode  # safetensors hides its file from others
    for path in folder.iterdir():
        path.chmod(mode)
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def validate(cfg: Config, model: nn.Module, val: Patches, device: torch.device) -> float:
    """Return `miou` of a network in training on held-out patches, and leave it in training."""
    tally, _ = tally_patches(cfg, model.eval(), val, device, "  validation")
    model.train()
    miou = tally.scores()["miou"]
    if miou is None:
        raise UserError(
            f"select = val: no nucleus in the {len(val)} patches held out of the training side:"
            " set select to last, or another seed"
        )
    return miou


def _save_resume(
    path: Path,
    record: dict,
    model: nn.Module,
    optimiser: torch.optim.Adam,
    log: list[dict],
    best: dict | None,
) -> None:
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    buffer = io.BytesIO()  # not to the file: of a full disk torch makes an error of its own kind
    torch.save({"record": record, "log": log, "best": best, **state}, buffer)
    with whole(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def _resume(path: Path, record: dict, model: nn.Module, optimiser: torch.optim.Adam) -> tuple:
    """Load what an interrupted run of the same record left.

    Returns its log and its best epoch so far, [] and None if there is nothing to go on from.
    """
    if not path.exists():
        return [], None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file has many kinds; it costs the epochs, not the run
        print(f"{path}: not continued, it cannot be read ({type(error).__name__})")
        return [], None
    if not isinstance(saved, dict) or saved.get("record") != record:
        print(f"{path}: not continued, it was begun with other settings or patches")
        return [], None
    try:
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        return saved["log"], saved["best"]
    except Exception as error:  # half of it may be loaded by now
        raise UserError(
            f"{path} is damaged ({type(error).__name__}): remove it to begin this training anew"
        ) from None
