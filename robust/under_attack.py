"""A trained network under every attack that the settings name."""

from functools import partial

import torch
from torch import Tensor, nn

from medood.attacks import Attack, by_name
from medood.models.network import Normalise, folded
from robust.settings import AttackConfig

TENTH = "apgd_ce_tenth"  # APGD on cross-entropy with a tenth of its steps: see robust/report.py
LAYOUT = torch.channels_last
WORST = "worst_case"  # of all attacks, image by image: see under_attacks
CLEAN = (0.0, "clean")

Pair = tuple[float, str]  # eps, in 255ths, and the name of an attack


class Victim(nn.Module):
    """A trained network as attacks want it: RGB in 0..1, (n, 3, P, P) -> logits (n, C, P, P).

    The change of an attack acts on the image itself; the normalisation belongs to the network. It
    computes in float32: bfloat16 would hide gradients.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """model: as load_model returns it, in eval mode."""
        super().__init__()
        self.normalise = Normalise(model.config["encoder_name"])
        self.model = folded(model).requires_grad_(False)
        self.to(device, memory_format=LAYOUT).eval()

    def forward(self, images: Tensor) -> Tensor:
        # channels last takes three quarters of the time on a CPU
        return self.model(self.normalise(255 * images.contiguous(memory_format=LAYOUT)))


def attacks_of(cfg: AttackConfig) -> dict[str, Attack]:
    """Return the attacks to try, by name, as functions of model, images, target and eps."""
    found = by_name(cfg.attacks, len(cfg.class_names), cfg.steps, cfg.queries)
    if "apgd_ce" in found:
        found[TENTH] = partial(found["apgd_ce"], steps=max(1, cfg.steps // 10))
    return found


def pairs_of(cfg: AttackConfig) -> list[Pair]:
    """Return the pairs of eps and attack: the clean images, then as under_attacks has them."""
    names = [*attacks_of(cfg), WORST]
    return [CLEAN, *((eps, name) for eps in sorted(cfg.eps) for name in names)]
