"""What was tried to make training and inference faster, one change at a time against the defaults.

`python bench/variants.py` runs a training step, and the inference on some patches, in every variant
in turn. A ratio above 1 is slower than the default. A variant without something that is on by
default shows what that saves. "Once more" shows the noise.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import Figures, MeasureConfig, interleave
from config import Config
from medood.models.inference import Predictor, batch_size
from medood.models.network import pick_device
from medood.runs.command_line import run
from medood.training.augmentation import draw_augmentation
from medood.training.step import Trainer

PATCHES = 32  # of each variant of inference


def step_of(cfg: Config, change: Callable[[Trainer], object] = lambda trainer: None) -> Callable:
    """Return a function that takes a training step, with something changed."""
    torch.manual_seed(0)
    device = pick_device(cfg)
    trainer = Trainer(cfg, device)
    change(trainer)
    shape = (cfg.batch_size, cfg.patch_size, cfg.patch_size)
    images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, device=device)
    masks = torch.randint(0, len(cfg.class_names), shape, dtype=torch.uint8, device=device)
    weight = torch.ones(cfg.batch_size, device=device)
    augmentation = draw_augmentation(cfg.batch_size, 0).to(device)
    return lambda: trainer.step(images, masks, weight, augmentation)


def channels_first(trainer: Trainer) -> None:
    """Set the memory format back to channels first, the default of torch."""
    trainer.model.to(memory_format=torch.contiguous_format)
    trainer.normalise.register_forward_hook(lambda *found: found[-1].contiguous())
    use_adam(trainer, fused=True)


def use_adam(trainer: Trainer, **how: bool) -> None:
    """Let Adam work on the weights in the layout they have, with options of torch."""
    trainer.weights = [AsItIs(weight) for weight in trainer.model.parameters()]
    weights = [weight.contiguous for weight in trainer.weights]
    trainer.optimiser = torch.optim.Adam(weights, trainer.cfg.lr, **how)


class AsItIs:
    """A weight for the optimiser, in the layout it has: compare ContiguousWeight."""

    def __init__(self, weight: nn.Parameter) -> None:
        self.weight, self.contiguous = weight, weight.detach()

    def take_gradient(self) -> torch.Tensor | None:
        self.contiguous.grad, self.weight.grad = self.weight.grad, None
        return self.contiguous.grad


def depthwise_as_the_rest(trainer: Trainer) -> None:
    """Compute strided depthwise convolutions in bfloat16 too: see for_training."""
    for module in trainer.model.modules():
        if isinstance(module, nn.Conv2d):
            vars(module).pop("forward", None)


def on_one_thread(function: Callable) -> Callable:
    """Return a function that runs the given one with one thread."""

    def call() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        function()
        torch.set_num_threads(threads)

    return call


def inference_of(cfg: Config, model: nn.Module, size: int = 0, fold: bool = True) -> Callable:
    """Return a function that predicts PATCHES patches in batches; size 0 is the default size."""
    device = pick_device(cfg)
    predictor = Predictor(cfg, model, device)
    if not fold:
        predictor.model = model
    images = torch.randint(0, 256, (PATCHES, cfg.patch_size, cfg.patch_size, 3), dtype=torch.uint8)
    return lambda: [predictor(part).argmax(1) for part in images.split(size or batch_size(device))]


def compare(cfg: MeasureConfig, figures: Figures, what: str, of: dict[str, Callable]) -> None:
    """Add the medians of the variants and their ratios to the first."""
    times = interleave(cfg.rounds, **of)
    default, *_ = times.values()
    rows = []
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, default, strict=True)]
        row = {"variant": name, "ms": 1000 * statistics.median(seconds)}
        row["ratio"], row["low"], row["high"] = statistics.median(ratios), min(ratios), max(ratios)
        rows.append(row)
        print(
            f"  {name:<52} {row['ms']:8.1f} ms   {row['ratio']:.2f}"
            f" ({row['low']:.2f} to {row['high']:.2f})",
            flush=True,
        )
    figures.content.setdefault("variants", {})[what] = rows


def bench(cfg: MeasureConfig) -> None:
    """Print what each change costs or saves."""
    cfg = replace(cfg, encoder_weights="none")
    figures = Figures("variants", f"variants of {cfg.architecture} on {cfg.encoder}")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty  # what was compiled before does not count
        compiled = step_of(replace(cfg, compile=True))
        compiled()
    seconds = time.perf_counter() - started
    figures.note("compile_seconds", seconds, f"torch.compile takes {seconds:.0f} s")
    plain = step_of(cfg)
    training = {
        "as it is": plain,
        "float32": step_of(replace(cfg, precision="float32")),
        "channels first in memory": step_of(cfg, channels_first),
        "strided depthwise convolutions in bfloat16": step_of(cfg, depthwise_as_the_rest),
        "fused Adam on weights as torch has them": step_of(
            cfg, lambda trainer: use_adam(trainer, fused=True)
        ),
        "Adam in torch's default way": step_of(cfg, use_adam),
        "torch.compile": compiled,
        "one thread": on_one_thread(plain),
        "as it is, once more": step_of(cfg),
    }
    print(f"a step of {cfg.batch_size} patches")
    compare(cfg, figures, f"a training step of {cfg.batch_size} patches", training)

    model = Trainer(cfg, pick_device(cfg)).model.eval()
    inference = {"as it is": inference_of(cfg, model)}
    inference["float32"] = inference_of(replace(cfg, precision="float32"), model)
    for size in (1, 4, 16, 32):
        inference[f"batches of {size}"] = inference_of(cfg, model, size)
    inference["batch normalisation by itself"] = inference_of(cfg, model, fold=False)
    inference["one thread"] = on_one_thread(inference["as it is"])
    inference["as it is, once more"] = inference_of(cfg, model)
    print(f"inference on {PATCHES} patches, batches of {batch_size(pick_device(cfg))}")
    compare(cfg, figures, f"{PATCHES} patches predicted", inference)
    figures.write(cfg.json)


if __name__ == "__main__":
    run(bench, MeasureConfig())
