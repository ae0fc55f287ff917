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
from medood.training.augmentation import PARAMETERS, augment
from medood.training.losses import segmentation_loss

TIMED_STEPS = 3  # of which step_seconds takes the median


class ContiguousWeight:
    """A weight as the optimiser takes it: the same memory, its axes in the order of that memory.

    On a CPU, torch's fused Adam copies tensors in any other layout, channels last for example, and
    it mixes up the elements of a weight and a gradient whose layouts differ.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        self.weight = weight
        self.axes = sorted(range(weight.dim()), key=weight.stride, reverse=True)
        self.contiguous = weight.detach().permute(self.axes)

    def take_gradient(self) -> Tensor | None:
        """Move the gradient here from the weight, and return it; None if there is none."""
        gradient, self.weight.grad = self.weight.grad, None
        if gradient is not None:
            gradient = gradient.permute(self.axes).contiguous()
        self.contiguous.grad = gradient
        return gradient


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
        self.weights = [ContiguousWeight(weight) for weight in self.model.parameters()]
        contiguous = [weight.contiguous for weight in self.weights]
        self.optimiser = torch.optim.Adam(contiguous, cfg.lr, fused=True)
        self.precision = network.autocast(cfg, device)
        self.loss = self._loss
        if cfg.compile:
            # a GPU also records the step: launches take longer than the arithmetic of a small batch
            mode = "reduce-overhead" if device.type == "cuda" else None
            self.loss = torch.compile(self._loss, mode=mode, dynamic=False)

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
        nothing. A gradient that is not finite spoils the weights: see refuse_not_finite.

        images: RGB uint8 (N, P, P, 3). masks: uint8 (N, P, P). weight: (N,), see segmentation_loss.
        augmentation: (N, PARAMETERS), see augment.
        """
        if self.cfg.compile:
            # the recorded step may now overwrite the gradients of the last one
            torch.compiler.cudagraph_mark_step_begin()
        loss = self.loss(images, masks, weight, augmentation)
        loss.backward()
        gradients = [weight.take_gradient() for weight in self.weights]
        norm = get_total_norm([gradient for gradient in gradients if gradient is not None])
        self.optimiser.step()
        self.optimiser.zero_grad()  # the next forward pass can use their memory
        return loss.detach(), norm

    def _loss(self, images: Tensor, masks: Tensor, weight: Tensor, augmentation: Tensor) -> Tensor:
        augmented, target = augment(images, masks, augmentation)
        with self.precision:
            logits = self.distributed(self.normalise(augmented))
        return segmentation_loss(logits, target, weight, self.cfg.loss)

    def average_buffers(self) -> None:
        """Give every process the mean of all running means and variances."""
        for values in self.model.buffers():
            if world_size() > 1 and values.is_floating_point():
                all_reduce(values).div_(world_size())


@contextmanager
def explain_errors(cfg: Config, device: torch.device) -> Iterator[None]:
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
        augmentation = torch.zeros(cfg.batch_size, PARAMETERS, device=device)
        times = []
        for _ in range(1 + TIMED_STEPS):  # the first one warms up
            started = time.perf_counter()
            trainer.step(images, masks, weight, augmentation)[0].item()
            times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
