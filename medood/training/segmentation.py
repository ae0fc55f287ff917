"""How a segmentation network is trained: baseline and Med-OoD differ only in their patches."""

import os
import statistics
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from config import Config, UserError
from medood.data.dataset import CHUNK, Patches, load_patches
from medood.data.files import timed, write_json
from medood.data.records import RUN, is_kept, record_of
from medood.data.workspace import SOURCE_PREFIX, Pair, data_name
from medood.evaluation.model_card import write_card
from medood.evaluation.testing import tally_patches
from medood.models import network
from medood.models.checkpoints import read_run, versions
from medood.models.inference import Predictor
from medood.processes import all_reduce, is_main, rank, world_size
from medood.runs.products import network_made_from, plain_settings
from medood.training.augmentation import augment
from medood.training.batches import DROPOUT, INITIALISATION, Loader, stream_seed
from medood.training.loop import explain_errors, fit, write_trained
from medood.training.losses import segmentation_loss
from medood.training.protocol import Losses, Training

SLOW_SHARE = 10 / 36  # of the epochs, the last ones, run at a tenth of the learning rate
TIMED_STEPS = 3  # of which step_seconds takes the median


def learning_rate(cfg: Config, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0."""
    slow = round(cfg.epochs * SLOW_SHARE)
    return cfg.lr if epoch < cfg.epochs - slow else cfg.lr / 10


class Trainer(Training):
    """A segmentation network in training, with its optimiser and its patches, on a device.

    Of several processes, each takes its shard of a batch. DistributedDataParallel starts all of
    them with the weights of rank 0 and averages their gradients during the backward pass.
    """

    def __init__(
        self,
        cfg: Config,
        fold: int,
        patches: Patches,
        device: torch.device,
        val: Patches | None = None,
    ) -> None:
        """Build the network of cfg; UserError if a batch has too few patches for all processes.

        val: the patches that score each epoch, for select = "val".
        """
        if 1 < world_size() > cfg.batch_size // 2:
            raise UserError(
                f"batch_size = {cfg.batch_size} leaves {world_size()} processes fewer than two"
                f" patches each: set it to {2 * world_size()} or more, or start fewer processes"
            )
        torch.manual_seed(stream_seed(cfg, fold, INITIALISATION))
        model = network.build_model(cfg)
        model = network.for_training(model, device)
        super().__init__(cfg, f"fold {fold}", model, cfg.epochs, device)
        self.fold, self.val = fold, val
        self.loader = Loader(cfg, fold, patches, device)
        self.distributed = self.model
        if world_size() > 1:
            # static_graph: some encoders do not use all of their weights
            self.distributed = DistributedDataParallel(self.model, static_graph=True)
            # end_epoch counts all processes; a broadcast would leave only rank 0's. Set here,
            # because the argument has another name from torch 2.14 on
            self.distributed.broadcast_buffers = False
        self.normalise = network.Normalise(cfg.encoder).to(device)
        # on a CPU, torch's fused Adam is correct only if a gradient has the memory layout of its
        # weight: autograd ensures it
        self.optimiser = torch.optim.Adam(self.model.parameters(), cfg.lr, fused=True)
        self.parts["optimiser"] = self.optimiser
        self.precision = network.autocast(cfg.precision, device)
        self.full = 0  # patches of a whole batch; 0 before the first step
        self.compiled_loss = None
        if cfg.compile:
            # the launches of a small batch take a GPU's host longer than the GPU takes for the rest
            mode = "reduce-overhead" if device.type == "cuda" and world_size() == 1 else None
            self.compiled_loss = torch.compile(self.loss, mode=mode, dynamic=False)

    def begin_epoch(self, epoch: int) -> Loader:
        """Shuffle the patches, set the learning rate and return the batches: see `step`."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.cfg, epoch)
        torch.manual_seed(stream_seed(self.cfg, self.fold, DROPOUT, epoch) + rank())
        self.loader.set_epoch(epoch)
        return self.loader

    def step(self, images: Tensor, masks: Tensor, weight: Tensor, augmentation: Tensor) -> Losses:
        """Take one optimiser step on a batch; return its loss and the norm of the gradient.

        Both are over the patches of all processes. A gradient that is not finite ruins the weights:
        see refuse_not_finite.

        images: RGB uint8 (N, P, P, 3). masks: uint8 (N, P, P). weight: (N,), see segmentation_loss.
        augmentation: (N, PARAMETERS), as draw_augmentation returns it.
        """
        self.full = self.full or len(images)
        # a shorter last batch would be compiled again, for a single step of an epoch
        compiled = self.compiled_loss is not None and len(images) == self.full
        compute = self.compiled_loss if compiled else self.loss
        loss = compute(images, masks, weight, augmentation)
        loss.backward()
        gradients = [w.grad for w in self.model.parameters() if w.grad is not None]
        norm = get_total_norm(gradients, foreach=True)  # all weights in one launch
        self.optimiser.step()
        self.optimiser.zero_grad()  # the next forward pass can use their memory
        return {"loss": loss.detach(), "gradient": norm}

    def loss(self, images: Tensor, masks: Tensor, weight: Tensor, augmentation: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar; the arguments are those of `step`."""
        augmented, target = augment(images, masks, augmentation)
        with self.precision:
            logits = self.distributed(self.normalise(augmented))
        return segmentation_loss(logits, target, weight, self.cfg.loss)

    def end_epoch(self, losses: dict[str, float]) -> dict:
        """Return the row of the log, with the score of the patches that are held out, if any.

        Every process takes the mean of all running means and variances.
        """
        for values in self.model.buffers():
            if world_size() > 1 and values.is_floating_point():
                all_reduce(values).div_(world_size())
        (group,) = self.optimiser.param_groups
        row = {"epoch": len(self.log) + 1, "loss": losses["loss"], "lr": group["lr"]}
        if self.val is None:
            return row
        return row | {"val_miou": validate(self.cfg, self.model, self.val)}

    def seen_in(self, step: int) -> str:
        """Name the patches of a step."""
        names = [self.loader.patches.names[i] for i in self.loader.batches[step].tolist()]
        return f" on the patches {', '.join(names)}"


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
    choose the epoch, for select = "val". kind: of the training. made_from: what decides the
    network; None: the settings and these patches. An existing network made from the same is kept.
    Raises UserError as `fit` does, and if the ID patches or those of `val_files` contain no
    nucleus.
    """
    made_from = made_from or network_made_from(cfg, fold, files + val_files)
    if not is_there(cfg, folder, made_from):
        with timed(cfg.workspace, f"training {folder.name}"):
            trainer = begin(cfg, fold, files, val_files, kind)
            epoch = fit(trainer, folder, made_from)
            if is_main():
                write_network(trainer, epoch, folder, made_from)


def is_there(cfg: Config, folder: Path, made_from: dict) -> bool:
    """Say whether a network is kept. Its settings for predict.py may differ: they are updated.

    Raises UserError for a user-supplied network.
    """
    run = read_run(folder)
    if record_of(folder).is_yours:
        raise UserError(
            f"{folder} is user-supplied: remove it to have it trained, or test it with the option"
            " --checkpoint of test.py"
        )
    if not is_kept(folder, made_from):
        return False
    described = {name: plain_settings(cfg)[name] for name in ("classes", "mpp")}
    if is_main() and run["settings"] | described != run["settings"]:
        run["settings"] |= described
        write_json(folder / RUN, run)
        write_card(folder, run)
    return True


def begin(
    cfg: Config, fold: int, files: list[Pair], val_files: list[Pair], kind: type[Trainer]
) -> Trainer:
    """Return the training of a fold at its beginning, and print what it is."""
    sizes = cfg.patch_size, len(cfg.class_names)
    patches = load_patches(files, *sizes)
    val = load_patches(val_files, *sizes) if val_files else None
    warning = without_classes(cfg, patches)
    device = network.pick_device(cfg.device)
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(cfg.deterministic)
    with explain_errors(cfg, device):
        trainer = kind(cfg, fold, patches, device, val)
    n_ood = int(patches.is_ood.sum())
    print(
        f"fold {fold}: {cfg.architecture} on {cfg.encoder}, {len(patches) - n_ood} ID +"
        f" {n_ood} OoD patches, {device.type}"
        + (f" in {world_size()} processes" if world_size() > 1 else "")
    )
    if warning:
        print(f"fold {fold}: {warning}")
    return trainer


def without_classes(cfg: Config, patches: Patches) -> str:
    """Return a warning that names the classes without a pixel in the ID patches, or "".

    Raises UserError if no class has any. Some studies train on OoD patches alone: no warning then.
    """
    if patches.is_ood.all():
        return ""
    present = {value for part in patches.masks.split(CHUNK) for value in part.unique().tolist()}
    absent = [name for value, name in enumerate(cfg.class_names) if value and value not in present]
    if len(absent) == len(cfg.classes):
        raise UserError("no training mask contains a nucleus: check Mask_Patchs")
    if not absent:
        return ""
    return f"no training patch contains {' or '.join(absent)}: the network cannot learn it"


def validate(cfg: Config, model: nn.Module, val: Patches) -> float:
    """Return `miou` of a network in training on held-out patches.

    Without mirrors: the later use of a network does not decide which epoch's weights are kept.
    """
    predictor = Predictor(replace(cfg, mirrors=False), model.eval())
    tally, _ = tally_patches(predictor, val, "  validation")
    model.train()
    miou = tally.scores()["miou"]
    if miou is None:
        raise UserError(
            f"select = val: no nucleus in the {len(val)} patches held out of the training side:"
            " set select to last, or another seed"
        )
    return miou


def write_network(trainer: Trainer, epoch: int, folder: Path, made_from: dict) -> None:
    """Write a network as smp's save_pretrained does, with its run.json, log and card.

    epoch: that of its weights.
    """
    patches, val = trainer.loader.patches, trainer.val
    n_ood = int(patches.is_ood.sum())
    run = {
        "fold": trainer.fold,
        "data": data_name(trainer.cfg.workspace),
        "settings": plain_settings(trainer.cfg),
        "epoch": epoch,
        "id_patches": len(patches) - n_ood,
        "ood_patches": n_ood,
        "processes": world_size(),
        "versions": versions(),
        "made_from": made_from,
    }

    def save(finished: Path) -> None:
        try:
            trainer.model.eval().save_pretrained(finished)
        except SafetensorError as error:  # safetensors turns an error of the disk into text
            raise UserError(
                f"the weights cannot be written to {folder.parent} ({error}): free some space and"
                " run the same command again: finished work is kept"
            ) from None
        mode = (finished / "config.json").stat().st_mode  # safetensors hides its file from others
        for path in finished.iterdir():
            path.chmod(mode)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        write_card(finished, run)

    # an OoD patch, unless external, has the name of the training patch that it was cut from
    names = {name for name in patches.names if not name.startswith(SOURCE_PREFIX)}
    write_trained(folder, trainer, run, names | set(val.names if val else []), save)


@cache
def step_seconds(cfg: Config) -> float:
    """Return the time of an optimiser step of a network on this machine, in seconds."""
    cfg, device = replace(cfg, encoder_weights="none"), network.pick_device(cfg.device)
    shape = (cfg.batch_size, cfg.patch_size, cfg.patch_size)
    images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)
    masks = torch.randint(0, len(cfg.class_names), shape, dtype=torch.uint8)
    patches = Patches([""] * len(masks), images, masks, torch.zeros(len(masks), dtype=torch.bool))
    times = []
    with explain_errors(cfg, device):
        trainer = Trainer(cfg, 0, patches, device)
        (batch,) = trainer.begin_epoch(0)
        for _ in range(1 + TIMED_STEPS):  # the first one warms up
            started = time.perf_counter()
            trainer.step(*batch)["loss"].item()
            times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
