"""One optimiser step: all that the training loop does again and again, and what it takes."""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from config import Config, UserError
from medood.models.network import (
    Normalise,
    autocast,
    build_model,
    for_training,
    pick_device,
    synchronise,
)
from medood.processes import add_up, agreed, world_size
from medood.training.augmentation import DRAWN, augment
from medood.training.losses import segmentation_loss

TIMED_STEPS = 3  # of which step_seconds takes the median


class Stored:
    """A weight for the optimiser: the same numbers, with the axes in the order of the memory.

    On a CPU torch's fused Adam copies tensors that lie otherwise, as channels last does, and where
    a weight and its gradient differ in layout, it mixes up their elements.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        self.weight = weight
        self.axes = sorted(range(weight.dim()), key=weight.stride, reverse=True)
        self.stored = weight.detach().permute(self.axes)

    def take_gradient(self) -> Tensor | None:
        """Move the gradient over from the weight, and return it; None if there is none."""
        gradient, self.weight.grad = self.weight.grad, None
        self.stored.grad = None if gradient is None else gradient.permute(self.axes).contiguous()
        return self.stored.grad


class Learner:
    """A network in training, with its optimiser, on a device.

    With several processes, each takes its patches of a batch, and DistributedDataParallel starts
    all from the weights of the main one and adds up their gradients during the backward pass.
    """

    def __init__(self, cfg: Config, device: torch.device) -> None:
        """Build the network of cfg.

        Raises UserError if the device has no memory for it, or a batch too few patches for all.
        """
        if 1 < world_size() > cfg.batch_size // 2:
            raise UserError(
                f"batch_size = {cfg.batch_size} leaves {world_size()} processes fewer than two"
                f" patches each: set it to {2 * world_size()} or more, or start fewer processes"
            )
        self.cfg = cfg
        with agreed(), memory_needed(cfg, device):
            model = synchronise(cfg, build_model(cfg), device)
            self.model: nn.Module = for_training(model, device)
        self.network = self.model
        if world_size() > 1:
            # static: not every encoder uses all of its weights
            self.network = DistributedDataParallel(self.model, static_graph=True)
        self.normalise = Normalise(cfg.encoder).to(device)
        self.weights = [Stored(weight) for weight in self.model.parameters()]
        stored = [weight.stored for weight in self.weights]
        self.optimiser = torch.optim.Adam(stored, cfg.lr, fused=True)
        self.precision = autocast(cfg, device)
        self.loss = self._loss
        if cfg.compile:
            # on a GPU recorded too: a small batch costs more in launches than in arithmetic
            mode = "reduce-overhead" if device.type == "cuda" else None
            self.loss = torch.compile(self._loss, mode=mode, dynamic=False)

    def step(
        self, images: Tensor, masks: Tensor, weight: Tensor, draw: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take one optimiser step on a batch; return its loss and the norm of the gradient.

        Both are scalars on the device, of the patches of all processes, and the host waits for
        nothing. A gradient that is not finite spoils the weights: see refuse_not_finite.

        images: RGB uint8 (N, P, P, 3). masks: uint8 (N, P, P). weight: (N,), see segmentation_loss.
        draw: (N, DRAWN), see augment.
        """
        if self.cfg.compile:
            # what is recorded may write over the last step's gradients now
            torch.compiler.cudagraph_mark_step_begin()
        loss = self.loss(images, masks, weight, draw)
        loss.backward()
        gradients = [weight.take_gradient() for weight in self.weights]
        norm = get_total_norm([part for part in gradients if part is not None])
        self.optimiser.step()
        self.optimiser.zero_grad()  # their memory is of use to the next forward pass
        return loss.detach(), norm

    def _loss(self, images: Tensor, masks: Tensor, weight: Tensor, draw: Tensor) -> Tensor:
        views, target = augment(images, masks, draw)
        with self.precision:
            logits = self.network(self.normalise(views))
        return segmentation_loss(logits, target, weight, self.cfg.loss)


@contextmanager
def memory_needed(cfg: Config, device: torch.device) -> Iterator[None]:
    """Turn a lack of memory, or of a compiler, into a UserError with the setting that cures it."""
    try:
        yield
    except torch.OutOfMemoryError:
        half = cfg.batch_size // 2
        raise UserError(
            f"{device} has no memory for batches of {cfg.batch_size} patches of {cfg.patch_size}"
            f" pixels: set {f'batch_size to {half}' if half else 'device to cpu'}"
        ) from None
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"compile = True: {cfg.model_name} cannot be compiled here ({reason}): set it to False"
        ) from None


def average_statistics(model: nn.Module) -> None:
    """Give all processes the mean of their running means and variances, to be tested alike."""
    if world_size() > 1:
        for values in model.buffers():
            if values.is_floating_point():
                add_up(values).div_(world_size())


@functools.cache
def step_seconds(cfg: Config) -> float:
    """Return the time of an optimiser step of a network on this machine, in seconds."""
    device = pick_device(cfg)
    with memory_needed(cfg, device):
        learner = Learner(replace(cfg, encoder_weights="none"), device)
        shape = (cfg.batch_size, cfg.patch_size, cfg.patch_size)
        images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, device=device)
        masks = torch.randint(0, len(cfg.class_names), shape, dtype=torch.uint8, device=device)
        weight, draw = torch.ones(len(images), device=device), torch.zeros(len(images), DRAWN)
        times = []
        for _ in range(1 + TIMED_STEPS):  # the first one warms up
            started = time.perf_counter()
            learner.step(images, masks, weight, draw.to(device))[0].item()
            times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))
