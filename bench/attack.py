"""The time of a step of each attack, against a pass of the network: `python bench/attack.py`.

The reference of a step is the forward and backward pass that every gradient-based attack needs:
cross-entropy, and its gradient with respect to the patches. That of a query of Square is the
forward pass. What an attack does once, such as scoring the patches themselves, counts too. The
network computes in float32, as in robust/attack.py.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import Figures, MeasureConfig, interleave
from config import settings
from medood.attacks import apgd, fab, segpgd, square
from medood.models.network import build_model, pick_device
from medood.runs.command_line import run
from robust.attacked import Victim

EPS = 1e-5  # too small to break a patch, which would leave the batch


@settings
class BenchConfig(MeasureConfig):
    """The settings, and how much to measure; the network's weights are random."""

    steps: int = 10
    """Steps of an attack, and queries of Square, in each round."""


def forward_and_backward(model: nn.Module, patches: Tensor, target: Tensor) -> Tensor:
    """Return the gradient of the cross-entropy with respect to the patches."""
    patches = patches.clone().requires_grad_()
    loss = F.cross_entropy(model(patches).float(), target)
    return torch.autograd.grad(loss, patches)[0]


def bench(cfg: BenchConfig) -> None:
    """Compare a step of each attack with a pass of the network."""
    torch.manual_seed(0)
    cfg, device = replace(cfg, encoder_weights="none"), pick_device(cfg.device)
    figures = Figures("attack", f"attacks on {cfg.architecture} on {cfg.encoder}")
    model = Victim(build_model(cfg).eval(), device)
    patches = torch.rand(cfg.batch_size, 3, cfg.patch_size, cfg.patch_size).to(
        device, memory_format=torch.channels_last
    )
    with torch.no_grad():
        target = model(patches).argmax(1)

    passes = {
        "pass": partial(forward_and_backward, model, patches, target),
        "forward": partial(torch.no_grad()(model), patches),
    }
    attacked, goals = (model, patches, target, EPS), len(cfg.class_names) - 1
    attacks = {
        "APGD": (partial(apgd, *attacked, steps=cfg.steps), cfg.steps),
        "SEA": (partial(apgd, *attacked, steps=cfg.steps, loss="masked_ce_balanced"), cfg.steps),
        "SegPGD": (partial(segpgd, *attacked, steps=cfg.steps), cfg.steps),
        "FAB": (partial(fab, *attacked, steps=cfg.steps), cfg.steps * goals),
        "Square": (partial(square, *attacked, queries=cfg.steps), cfg.steps),
    }
    times = interleave(
        cfg.rounds, **passes, **{name: attack for name, (attack, _) in attacks.items()}
    )
    for name, (_, steps) in attacks.items():
        reference = times["forward" if name == "Square" else "pass"]
        figures.compare(name, len(patches), "patch", reference, [t / steps for t in times[name]])
    figures.write(cfg.json)


if __name__ == "__main__":
    run(bench, BenchConfig())
