"""The time of training per patch, against a plain loop: `python bench/train.py`.

The script draws patches in a temporary folder, which it removes. `--encoder` and `--architecture`
name the network; `--compile` compiles the training step.
"""

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import Figures, MeasureConfig, finish, interleave, matrix_rate, synthetic_lizard
from bench.plain import Plain
from config import Config, settings
from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels
from medood.data.dataset import load_patches
from medood.data.workspace import id_files
from medood.models.network import pick_device
from medood.runs.command_line import run
from medood.training import step
from medood.training.batches import Loader
from medood.training.loop import train_epoch
from medood.training.step import Trainer

# the kinds of operation, with parts of the names that torch's profile gives them
KINDS = {
    "convolution": ("conv", "cudnn", "implicit_gemm"),
    "batch normalisation": ("batch_norm", "bn_"),
    "optimiser": ("adam", "Optimizer"),
    "copies between types and layouts": ("copy_", "cat", "contiguous", "fill_", "zero_"),
    "activations": ("threshold", "clamp", "hardtanh", "relu", "silu", "sigmoid", "hardswish"),
    "pooling and upsampling": ("pool", "upsample"),
    "norm of the gradient": ("norm",),
    "augmentation": ("grid_sampler", "bmm", "lerp"),
}
PROFILED = 5  # steps


@settings
class BenchConfig(MeasureConfig):
    """The settings, and how much to measure; encoder weights are random."""

    patches: int = 48
    """How many patches an epoch has."""


class Ours:
    """The training of train.py, with the patches read beforehand."""

    def __init__(self, cfg: Config, files: list, device: torch.device) -> None:
        started = time.perf_counter()
        patches = load_patches(cfg, files)
        self.read = time.perf_counter() - started
        self.trainer = Trainer(cfg, device)
        self.loader = Loader(cfg, 0, patches, device)

    def train(self) -> None:
        """Train for an epoch."""
        self.trainer.model.train()
        self.loader.set_epoch(0)
        losses, _ = train_epoch(self.trainer, self.loader, self.trainer.cfg.lr)
        losses.mean().item()

    def batch(self) -> tuple[Tensor, ...]:
        """Return what a step takes."""
        return next(iter(self.loader))


def parts_of_step(ours: Ours) -> dict[str, float]:
    """Return the share of each part in the time of a step; the parts run one after the other."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            finish()
            started = time.perf_counter()
            result = function(*args, **kwargs)
            finish()
            spent[name] += time.perf_counter() - started
            return result

        return call

    trainer, batch = ours.trainer, ours.batch()
    trainer.step(*batch)
    with (
        mock.patch.object(step, "augment", timed("augmentation", step.augment)),
        mock.patch.object(trainer.model, "forward", timed("forward", trainer.model.forward)),
        mock.patch.object(step, "segmentation_loss", timed("loss", step.segmentation_loss)),
        mock.patch.object(Tensor, "backward", timed("backward", Tensor.backward)),
        mock.patch.object(trainer.optimiser, "step", timed("optimiser", trainer.optimiser.step)),
    ):
        started = time.perf_counter()
        for _ in range(PROFILED):
            trainer.step(*batch)
        finish()
        whole = time.perf_counter() - started
    spent["else"] = whole - sum(spent.values())
    return {name: seconds / whole for name, seconds in spent.items()}


def kinds_of_step(ours: Ours) -> dict[str, float]:
    """Return the share of a step's computing time in each kind of operation."""
    batch, on_gpu = ours.batch(), ours.loader.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as found:
        for _ in range(PROFILED):
            ours.trainer.step(*batch)
        finish()
    spent: dict[str, float] = defaultdict(float)
    for event in found.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel: it counts with the operation that launched it
        seconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        names = (kind for kind, marks in KINDS.items() if any(mark in event.key for mark in marks))
        spent[next(names, "all else")] += seconds
    return {name: seconds / sum(spent.values()) for name, seconds in spent.items()}


def flop_of_step(ours: Ours) -> int:
    """Return the floating-point operations of a step, 2 for a multiplication with its addition."""
    with FlopCounterMode(display=False) as counter:
        ours.trainer.step(*ours.batch())
    return counter.get_total_flops()


def bench(cfg: BenchConfig) -> None:
    """Compare an epoch with the plain loop's, and say where its time goes."""
    torch.manual_seed(0)
    cfg, device = replace(cfg, encoder_weights="none"), pick_device(cfg)
    figures = Figures(
        "train", f"training {cfg.architecture} on {cfg.encoder}, batches of {cfg.batch_size}"
    )
    with tempfile.TemporaryDirectory() as name:
        cfg = replace(cfg, workspace=Path(name) / "lizard")
        synthetic_lizard(cfg.workspace, 1, cfg.sizes)
        generate_semantic_labels(cfg)
        generate_patches(cfg)
        names = sorted(path.name for path in (cfg.workspace / "Image_Patchs").glob("*.png"))
        files = id_files(cfg, names[: cfg.patches])
        plain, ours = Plain(cfg, files, device), Ours(cfg, files, device)
        times = interleave(cfg.rounds, reference=plain.train, ours=ours.train)
        figures.compare("training", len(files), "patch", **times)

        # the plain loop tests the fold after every epoch: half as many patches as it trains on
        evaluation = interleave(cfg.rounds, plain=plain.test)["plain"]
        with_tests = [
            train + test / 2 for train, test in zip(times["reference"], evaluation, strict=True)
        ]
        what = "training, plain loop tests each epoch"
        figures.compare(what, len(files), "patch", with_tests, times["ours"])
        read = 1000 * ours.read / len(files)
        figures.note("read_ms", read, f"reading, once in a training: {read:.2f} ms a patch")
        flop = flop_of_step(Ours(replace(cfg, compile=False), files, device))
    if not cfg.compile:  # what is compiled has no parts that could be told from each other
        figures.share("parts of a step", parts_of_step(ours))
        figures.share("kinds of operation", kinds_of_step(ours))
    step_seconds = statistics.median(times["ours"]) / len(files) * cfg.batch_size
    precision = torch.bfloat16 if ours.trainer.precision._enabled else torch.float32
    rate = matrix_rate(device, precision, cfg.rounds)
    reached = flop / step_seconds / rate
    figures.note(
        "limit",
        {"flop_per_step": flop, "matrix_rate": rate, "reached": reached},
        f"{flop / 1e9:.1f} GFLOP a step: {reached:.0%} of the {rate / 1e9:.0f} GFLOP/s of a"
        f" {str(precision).removeprefix('torch.')} matrix product",
    )
    figures.write(cfg.json)


if __name__ == "__main__":
    run(bench, BenchConfig())
