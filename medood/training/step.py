"""One optimiser step, which the training loop repeats, and the time that it takes."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from config import Config, UserError
from medood.models import network
from medood.processes import all_reduce, world_size
from medood.training.augmentation import RANDOM, augment, parameters_of
from medood.training.losses import segmentation_loss

TIMED_STEPS = 3  # of which step_seconds takes the median


class Trainer:
    """A network in training, with its optimiser, on a device.

    Of several processes, each takes its shard of a batch. DistributedDataParallel starts all of
    them with the weights of rank 0 and averages their gradients during the backward pass.
    """

    def __init__(self, cfg: Config, device: torch.device) -> None:
        """Build the network of cfg; UserError if a batch has too few patches for all processes."""
        if 1 < world_size() > cfg.batch_size // 2:
            raise UserError(
                f"batch_size = {cfg.batch_size} leaves {world_size()} processes fewer than two"
                f" patches each: set it to {2 * world_size()} or more, or start fewer processes"
            )
        self.cfg = cfg
        model = network.synchronise(cfg, network.build_model(cfg), device)
        self.model = network.for_training(model, device)
        self.distributed = self.model
        if world_size() > 1:
            # static_graph: some encoders do not use all of their weights
            self.distributed = DistributedDataParallel(self.model, static_graph=True)
            # average_buffers counts all processes; a broadcast would leave only rank 0's. Set here,
            # because the argument has another name from torch 2.14 on
            self.distributed.broadcast_buffers = False
        self.normalise = network.Normalise(cfg.encoder).to(device)
        # on a CPU, torch's fused Adam is right only where a gradient lies in memory as its weight
        # does: autograd sees to it
        self.optimiser = torch.optim.Adam(self.model.parameters(), cfg.lr, fused=True)
        self.beside: dict[str, nn.Module] = {}  # what an interrupted training needs too, to go on
        self.precision = network.autocast(cfg, device)
        self.full = 0  # patches of a whole batch; 0 before the first step
        self.compiled_loss = None
        if cfg.compile:
            # the launches of a small batch take a GPU's host longer than the GPU takes for the rest
            mode = "reduce-overhead" if device.type == "cuda" and world_size() == 1 else None
            self.compiled_loss = torch.compile(self._loss, mode=mode, dynamic=False)

    @staticmethod
    def made_from(cfg: Config) -> dict:
        """Return what decides a network beside its patches and the settings of config.py."""
        return {}

    def begin_epoch(self, lr: float) -> None:
        """Take the steps from here on at a learning rate."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr

    def step(
        self, images: Tensor, masks: Tensor, weight: Tensor, augmentation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take one optimiser step on a batch; return its loss and the norm of the gradient.

        Both are scalars on the device, over the patches of all processes. The host waits for
        nothing. They hold until the next step. A gradient that is not finite spoils the weights:
        see refuse_not_finite.

        images: RGB uint8 (N, P, P, 3). masks: uint8 (N, P, P). weight: (N,), see segmentation_loss.
        augmentation: (N, PARAMETERS), as draw_augmentation returns it.
        """
        self.full = self.full or len(images)
        # a shorter last batch would be compiled anew, for a single step of an epoch
        compiled = self.compiled_loss is not None and len(images) == self.full
        compute = self.compiled_loss if compiled else self._loss
        with network.exact(self.cfg):
            loss = compute(images, masks, weight, augmentation)
            loss.backward()
        gradients = [w.grad for w in self.model.parameters() if w.grad is not None]
        norm = get_total_norm(gradients, foreach=True)  # all weights in one launch
        self.optimiser.step()
        self.optimiser.zero_grad()  # the next forward pass can use their memory
        return loss.detach(), norm

    def _loss(self, images: Tensor, masks: Tensor, weight: Tensor, augmentation: Tensor) -> Tensor:
        augmented, target = augment(images, masks, augmentation)
        with self.precision:
            logits = self.distributed(self.normalise(augmented))
        return self.cost(logits, target, weight)

    def cost(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar; the arguments are those of segmentation_loss."""
        return segmentation_loss(logits, target, weight, self.cfg.loss)

    def average_buffers(self) -> None:
        """Give every process the mean of all running means and variances."""
        for values in self.model.buffers():
            if world_size() > 1 and values.is_floating_point():
                all_reduce(values).div_(world_size())


@contextmanager
def explain_errors(cfg: Config, device: torch.device) -> Iterator[None]:
    """Turn a lack of memory, compiler or deterministic operation into a UserError with the cure."""
    try:
        yield
    except torch.OutOfMemoryError:
        half = cfg.batch_size // 2
        raise UserError(
            f"{device} has no memory for batches of {cfg.batch_size} patches of {cfg.patch_size}"
            f" pixels: set {f'batch_size to {half}' if half else 'device to cpu'}"
        ) from None
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"batch_size = {cfg.batch_size}: {cfg.model_name} makes a patch of {cfg.patch_size}"
            " pixels a single value, which cannot be normalised: set batch_size to 2 or more"
        ) from None
    except RuntimeError as error:
        if "does not have a deterministic implementation" in str(error):
            operation = str(error).split()[0]
            raise UserError(
                f"deterministic = True: {cfg.model_name} needs {operation}, which has no"
                f" deterministic form on {device}: set it to False, or choose another architecture"
            ) from None
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"compile = True: {cfg.model_name} cannot be compiled here ({reason}): set it to False"
        ) from None


@cache
def step_seconds(cfg: Config) -> float:
    """Return the time of an optimiser step of a network on this machine, in seconds."""
    device = network.pick_device(cfg)
    with explain_errors(cfg, device):
        trainer = Trainer(replace(cfg, encoder_weights="none"), device)
        shape = (cfg.batch_size, cfg.patch_size, cfg.patch_size)
        images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, device=device)
        masks = torch.randint(0, len(cfg.class_names), shape, dtype=torch.uint8, device=device)
        weight = torch.ones(cfg.batch_size, device=device)
        augmentation = parameters_of(torch.zeros(cfg.batch_size, RANDOM)).to(device)
        times = []
        for _ in range(1 + TIMED_STEPS):  # the first one warms up
            started = time.perf_counter()
            trainer.step(images, masks, weight, augmentation)[0].item()
            times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
