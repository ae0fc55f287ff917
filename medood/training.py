"""The one training loop: what it trains on is the only difference between baseline and Med-OoD."""

import copy
import functools
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from config import Config, UserError
from medood.augment import augment
from medood.board import Board
from medood.card import write_card
from medood.checkpoints import TRAINED_ON, made_from, plain_settings, read_run, versions
from medood.data import Pair, Patches, id_files, load_patches, ood_files
from medood.files import (
    SOURCE_PREFIX,
    csv_text,
    data_name,
    require_network,
    timed,
    whole,
    whole_folder,
    write_json,
    write_text,
)
from medood.folds import read_fold
from medood.hard_ood import chosen_oods
from medood.inference import tally_patches
from medood.losses import segmentation_loss
from medood.models import Normalise, autocast, build_model, for_training, pick_device
from medood.records import changes

TIMED_STEPS = 3  # of which step_seconds takes the median
SLOW_SHARE = 10 / 36  # of the epochs, the last ones, run at a tenth of the learning rate
# each stream of random numbers depends on seed and fold alone, so no fold changes another
INITIALISATION, ORDER, VIEWS = range(3)


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
    record = made_from(cfg, fold, files + val_files)
    run = read_run(folder)
    if (folder / "run.json").exists() and not run:
        raise UserError(f"{folder / 'run.json'} cannot be read: remove {folder} to have it trained")
    if (folder / "config.json").exists() and "made_from" not in run:
        raise UserError(
            f"{folder} was put there by you: remove it to have it trained, or test it as it is with"
            " `python test.py --checkpoint`"
        )
    if run.get("made_from") == record:
        print(f"fold {fold}: {folder} kept, trained with the same settings and patches")
        # what training does not depend on, and predict.py does
        described = {name: plain_settings(cfg)[name] for name in ("classes", "mpp")}
        if run["settings"] | described != run["settings"]:
            run["settings"] |= described
            write_json(folder / "run.json", run)
            write_card(folder, run)
    else:
        if "made_from" in run:
            print(f"fold {fold}: {folder} trained again, {changes(run['made_from'], record)}")
        val = load_patches(cfg, val_files) if val_files else None
        with timed(cfg.workspace, f"training {folder.name}"):
            fit(cfg, fold, load_patches(cfg, files), val, folder, record)


def require_current(cfg: Config, fold: int, folder: Path, ood: bool) -> None:
    """Raise UserError if a network is not the one that the settings and patches give now.

    One that comes from elsewhere does not say what it was made from, and is taken as it is.
    """
    require_network(folder)
    run = read_run(folder)
    if "made_from" not in run:
        return
    train, val, _ = read_fold(cfg, fold)
    files = id_files(cfg, train + val)
    if ood:
        files += ood_files(cfg, chosen_oods(cfg, fold))
    if why := changes(run["made_from"], made_from(cfg, fold, files)):
        script = "train_ood.py" if ood else "train.py"
        raise UserError(
            f"{folder} is out of date ({why}): set back what changed, or run `python {script}`"
            " first (test.py takes it as it is with --checkpoint)"
        )


def fit(
    cfg: Config, fold: int, patches: Patches, val: Patches | None, folder: Path, record: dict
) -> None:
    """Train the network of cfg on `patches` and write it to `folder`.

    val: the weights of the epoch with the highest `miou` on them are kept; None keeps the last.
    record: what the network is made from. A run that was interrupted goes on after its last whole
    epoch and ends with the same weights, to the bit on the CPU, as if it had not been.
    Raises UserError if no nucleus is in the ID patches or in `val`, if loss or gradient stop being
    finite, and if the device has no memory for a batch.
    """
    said = without_classes(cfg, patches)
    device = pick_device(cfg)
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(cfg.deterministic)
    torch.manual_seed(stream_seed(cfg, fold, INITIALISATION))
    with memory_needed(cfg, device):
        model = for_training(build_model(cfg), device)
    normalise = Normalise(cfg.encoder).to(device)
    optimiser = torch.optim.Adam(model.parameters(), cfg.lr, fused=True)
    resume_path = folder / "resume.pt"
    log, best = _resume(resume_path, record, model, optimiser)

    with memory_needed(cfg, device):
        images, masks = patches.images.to(device), patches.masks.to(device)
    weight = torch.where(patches.is_ood, cfg.ood_weight, 1.0).to(device)
    n_ood = int(patches.is_ood.sum())
    print(
        f"fold {fold}: {cfg.architecture} on {cfg.encoder}, {len(patches) - n_ood} ID +"
        f" {n_ood} OoD patches, {device.type}" + (f", from epoch {len(log) + 1}" if log else "")
    )
    if said:
        print(f"fold {fold}: {said}")
    board = Board(cfg, folder.name, patches, len(log)) if cfg.tensorboard else None
    print("  epoch    loss       lr  seconds")
    for epoch in range(len(log), cfg.epochs):
        started = time.perf_counter()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(cfg, epoch)
        torch.manual_seed(stream_seed(cfg, fold, VIEWS, epoch))  # augmentation and dropout
        parts = batches(cfg, fold, epoch, len(patches))
        losses, norms = torch.empty(2, len(parts), device=device)
        bar = tqdm(parts, desc=f"  epoch {epoch + 1}", leave=False, disable=None)
        with memory_needed(cfg, device):
            for step, part in enumerate(bar):
                index = part.to(device)
                batch = images[index], masks[index], weight[index]
                # no .item() here: it would wait for the device at every step
                losses[step], norms[step] = training_step(cfg, model, normalise, optimiser, *batch)
        refuse_not_finite(cfg, f"fold {fold}, epoch {epoch + 1}", losses, norms, parts, patches)
        mean_loss = losses.mean().item()
        row = {"epoch": epoch + 1, "loss": round(mean_loss, 6), "lr": learning_rate(cfg, epoch)}
        if val is not None:
            row["val_miou"] = validate(cfg, model, val, device)
            if best is None or row["val_miou"] > best["val_miou"]:
                best = {**row, "model": copy.deepcopy(model.state_dict())}
        log.append(row)
        if board is not None:
            board.add(row, model)
        _save_resume(resume_path, record, model, optimiser, log, best)
        seconds = time.perf_counter() - started
        scored = f"  val_miou {row['val_miou']:.4f}" if val is not None else ""
        line = f"  {epoch + 1:5d}  {mean_loss:6.4f}  {row['lr']:.1e}  {seconds:7.1f}{scored}"
        print(line, flush=True)

    if board is not None:
        board.close()
    if best is not None:
        model.load_state_dict(best["model"])
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
        "versions": versions(),
        "made_from": record,
    }
    with whole_folder(folder) as finished:
        save_network(model, finished)
        write_text(finished / "log.csv", csv_text(list(log[0]), (row.values() for row in log)))
        write_text(finished / TRAINED_ON, "".join(f"{name}\n" for name in sorted(names)))
        write_json(finished / "run.json", run)
        write_card(finished, run)


def training_step(
    cfg: Config,
    model: nn.Module,
    normalise: Normalise,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    masks: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """Take one optimiser step on a batch; return its loss and the norm of the gradient.

    Both are scalars on the device. A gradient that is not finite spoils the weights: see
    refuse_not_finite.

    images: RGB uint8 (N, P, P, 3). masks: uint8 (N, P, P). weight: (N,), see segmentation_loss.
    """
    views, target = augment(images, masks)
    with autocast(cfg, images.device):
        logits = model(normalise(views))
    loss = segmentation_loss(logits, target, weight, cfg.loss)
    optimiser.zero_grad()
    loss.backward()
    norm = get_total_norm([part.grad for part in model.parameters() if part.grad is not None])
    optimiser.step()
    return loss.detach(), norm


@functools.cache
def step_seconds(cfg: Config) -> float:
    """Return the time of an optimiser step of a network on this machine, in seconds."""
    device = pick_device(cfg)
    with memory_needed(cfg, device):
        return _step_seconds(cfg, device)


def _step_seconds(cfg: Config, device: torch.device) -> float:
    model = for_training(build_model(replace(cfg, encoder_weights="none")), device)
    normalise = Normalise(cfg.encoder).to(device)
    optimiser = torch.optim.Adam(model.parameters(), cfg.lr, fused=True)
    shape = (cfg.batch_size, cfg.patch_size, cfg.patch_size)
    images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, device=device)
    masks = torch.randint(0, len(cfg.class_names), shape, dtype=torch.uint8, device=device)
    weight = torch.ones(cfg.batch_size, device=device)
    times = []
    for _ in range(1 + TIMED_STEPS):  # the first one warms up
        started = time.perf_counter()
        training_step(cfg, model, normalise, optimiser, images, masks, weight)[0].item()
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))


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
    present = set(patches.masks[~patches.is_ood].unique().tolist())
    absent = [name for value, name in enumerate(cfg.class_names) if value and value not in present]
    if len(absent) == len(cfg.classes):
        raise UserError("no training mask holds a nucleus: look at Mask_Patchs")
    if not absent:
        return ""
    return f"no training patch holds {' or '.join(absent)}: the network will not know it"


@contextmanager
def memory_needed(cfg: Config, device: torch.device) -> Iterator[None]:
    """Turn a lack of memory on the device into a UserError with the setting that cures it."""
    try:
        yield
    except torch.OutOfMemoryError:
        half = cfg.batch_size // 2
        raise UserError(
            f"{device} has no memory for batches of {cfg.batch_size} patches of {cfg.patch_size}"
            f" pixels: set {f'batch_size to {half}' if half else 'device to cpu'}"
        ) from None


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
