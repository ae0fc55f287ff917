"""A trained network under every attack that the settings name."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from medood import attacks
from medood.models.network import Normalise, folded
from robust.settings import AttackConfig

TENTH = "apgd_ce_tenth"  # APGD on cross-entropy with a tenth of its steps: see robust/report.py
LAYOUT = torch.channels_last
WORST = "worst_case"  # of all attacks, image by image
CLEAN = (0.0, "clean")

Attack = Callable[..., Tensor]  # see medood/attacks
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
    found = attacks.by_name(cfg.attacks, len(cfg.class_names), cfg.steps, cfg.queries)
    if "apgd_ce" in found:
        found[TENTH] = partial(found["apgd_ce"], steps=max(1, cfg.steps // 10))
    return found


def pairs_of(cfg: AttackConfig) -> list[Pair]:
    """Return the pairs of eps and attack that attack_batch tries, the clean images first."""
    names = [*attacks_of(cfg), WORST]
    return [CLEAN, *((eps, name) for eps in sorted(cfg.eps) for name in names)]


def attack_batch(
    cfg: AttackConfig, model: nn.Module, images: Tensor, target: Tensor, seed: int
) -> Iterator[Tensor]:
    """Yield the images (n, 3, P, P) of each pair of pairs_of.

    images: floats (n, 3, P, P) in 0..1. target: int64 (n, P, P). What is worst at a smaller eps
    stays, unless a larger one finds worse: an image that is broken already, of which no pixel of
    the foreground is right, is not attacked again.
    """
    yield images
    found = dict.fromkeys(attacks_of(cfg), images)
    for eps in sorted(cfg.eps):
        for name, attack in attacks_of(cfg).items():
            generator = torch.Generator().manual_seed(seed)
            of_eps = partial(attacks.in_batches(attack, len(images)), eps=eps / 255)
            if name == "noise":  # the control: whatever it does
                found[name] = of_eps(model, images, target, generator=generator)
            else:
                found[name] = _worse(of_eps, model, images, target, found[name], generator)
            yield found[name]
        of_attacks = [adversarial for name, adversarial in found.items() if name != "noise"]
        yield attacks.worst_case(model, images, target, of_attacks)


def _worse(
    attack: Attack,
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    before: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Return of each image the worst of what an attack finds and of `before`, a smaller eps's."""
    with torch.inference_mode():
        logits = model(before)
    left = attacks.image_dice(logits.argmax(1), target, logits.shape[1]) > 0
    if not left.any():
        return before
    found = before.clone()
    found[left] = attack(model, images[left], target[left], generator=generator)
    return attacks.worst_case(model, images, target, [before, found])
