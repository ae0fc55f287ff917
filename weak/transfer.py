"""A generator in training against a classifier and a judge, and a trained generator at work.

Diseased to healthy, one direction, as COIN (Shvetsov et al., arXiv 2404.12832). What it learns by:

    flip              the classifier, which is frozen, sees no lesion in the healed image
    adversarial       the judge takes the healed image for a healthy one
    stay              a healthy image stays, and its mask is empty
    reconstruction    the healed image is near to the diseased one
    variation         of the mask, between neighbouring pixels
    size              the mask of a diseased image covers about the share that is set

The judge sees a diseased image and healthy ones of the same place in a body: what distinguishes
them is the lesion then, and not the anatomy.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from medood.data.files import reading
from medood.models.inference import batch_size
from medood.models.network import Normalise, autocast, exact, for_training
from medood.training.augmentation import augment, draw_augmentation
from medood.training.batches import AUGMENTATION, INITIALISATION, ORDER, stream_seed, to_device
from medood.training.protocol import Losses, Training
from weak.generator import Generator, Healed, Judge, least_squares, total_variation
from weak.pooled import maps_by, pooled, size_loss
from weak.settings import TransferConfig

WEIGHTS = "generator.safetensors"
BETAS = (0.5, 0.999)  # of Adam
PACE = 2  # the generator learns in every step of this number, the judge in each
WEIGHT = {
    **{"flip": 1.0, "adversarial": 1.0, "stay": 10.0, "reconstruction": 1.0},
    **{"variation": 0.5, "size": 1.0},
}
ROUND = 100  # steps between two lines of the log, and two states to go on from
NEAREST_OF = 4  # healthy images, drawn at random: the one of the nearest place is taken


class Images(NamedTuple):
    """Images of one kind, N."""

    pixels: Tensor  # RGB uint8 (N, P, P, 3)
    places: Tensor  # float (N,), 0..1 along the body; NaN where it is not known


class Sees(nn.Module):
    """Frozen classifiers: images (N, 3, H, W) in -1..1 -> the logit of the lesion, (N,)."""

    def __init__(self, cfg: TransferConfig, networks: list[nn.Module], channel: int) -> None:
        """channel: of the lesion, among the classes."""
        super().__init__()
        self.networks, self.normalise = nn.ModuleList(networks), Normalise(cfg.encoder)
        self.channel, self.pooling = channel, cfg.pooling
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        batch = self.normalise((images + 1) * 127.5)
        found = [pooled(maps_by(network, batch), self.pooling) for network in self.networks]
        return torch.stack(found).mean(0)[:, self.channel]


class Trainer(Training):
    """A generator and its judge, with their optimisers, on a device; an epoch is a round."""

    rate = "transfer_lr"

    def __init__(
        self,
        cfg: TransferConfig,
        fold: int,
        diseased: Images,
        healthy: Images,
        sees: Sees,
        device: torch.device,
    ) -> None:
        torch.manual_seed(stream_seed(cfg, fold, INITIALISATION))
        model = nn.ModuleDict({"generator": Generator(with_four_channels(cfg)), "judge": Judge()})
        rounds = -(-cfg.iterations // ROUND)
        model = for_training(model, device)
        super().__init__(cfg, f"fold {fold}", model, rounds, device)
        self.fold, self.precision = fold, autocast(cfg.precision, device)
        self.diseased, self.healthy, self.sees = diseased, healthy, sees.to(device)
        self.optimisers = {}
        for name, part in model.items():
            self.optimisers[name] = torch.optim.Adam(part.parameters(), cfg.transfer_lr, BETAS)
            self.parts[f"optimiser of the {name}"] = self.optimisers[name]

    def begin_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Return the batches of a round, and whether the generator learns from each."""
        steps = min(ROUND, self.cfg.iterations - epoch * ROUND)
        batches = batches_of(
            self.cfg, self.fold, epoch, steps, self.diseased, self.healthy, self.device
        )
        return ((*batch, number % PACE == 0) for number, batch in enumerate(batches))

    def end_epoch(self, losses: dict[str, float]) -> dict:
        """Return the row of the log: its last step and the mean losses."""
        step = min((len(self.log) + 1) * ROUND, self.cfg.iterations)
        # the generator's are 0 in the steps that it leaves out
        scale = dict.fromkeys(WEIGHT, PACE)
        return {"step": step} | {name: scale.get(name, 1) * loss for name, loss in losses.items()}

    def step(self, diseased: Tensor, healthy: Tensor, generates: bool = True) -> Losses:
        """Teach the judge and, if it generates, the generator: images (N, 3, P, P) in -1..1."""
        losses = dict.fromkeys(WEIGHT, torch.zeros((), device=self.device))
        generator, judge = self.model["generator"], self.model["judge"]
        with torch.set_grad_enabled(generates), self.precision, exact(self.cfg.precision):
            healed = generator(torch.cat([diseased, healthy]))
        made = healed.image[: len(diseased)].detach()
        if generates:
            judge.requires_grad_(False)
            with self.precision, exact(self.cfg.precision):
                found = self.losses(healed, diseased, healthy)
            self._descend("generator", sum(WEIGHT[name] * loss for name, loss in found.items()))
            losses = {name: loss.detach() for name, loss in found.items()}
            judge.requires_grad_(True)
        with self.precision, exact(self.cfg.precision):
            said = judge(torch.cat([healthy, made])).float()
        loss = least_squares(said[: len(healthy)], 1) + least_squares(said[len(healthy) :], 0)
        self._descend("judge", loss)
        return losses | {"judge": loss.detach()}

    def losses(self, healed: Healed, diseased: Tensor, healthy: Tensor) -> Losses:
        """Return what the generator learns by, see the head of this file."""
        count = len(diseased)
        made, mask = healed.image[:count], healed.mask
        share = torch.full((count, 1), self.cfg.size, device=self.device)
        stay = (healed.image[count:] - healthy).abs().mean() + mask[count:].mean()
        return {
            "flip": F.softplus(self.sees(made)).mean(),
            "adversarial": least_squares(self.model["judge"](made).float(), 1),
            "stay": stay,
            "reconstruction": (made - diseased).abs().mean(),
            "variation": total_variation(mask),
            "size": size_loss(mask[:count].logit(1e-6), share).mean(),
        }

    def _descend(self, name: str, loss: Tensor) -> None:
        with exact(self.cfg.precision):
            loss.backward()
        self.optimisers[name].step()
        self.optimisers[name].zero_grad()


def with_four_channels(cfg: TransferConfig) -> TransferConfig:
    """Return settings of a network for a mask and a change of three colours."""
    return replace(cfg, classes=tuple((name, "#000000") for name in ("red", "green", "blue")))


def batches_of(
    cfg: TransferConfig,
    fold: int,
    number: int,
    steps: int,
    diseased: Images,
    healthy: Images,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a round: images of both kinds, float (batch_size, 3, P, P) in -1..1."""
    generator = torch.Generator().manual_seed(stream_seed(cfg, fold, ORDER, number))
    seed = stream_seed(cfg, fold, AUGMENTATION, number)
    augmentation = draw_augmentation(2 * steps * cfg.batch_size, seed)
    for parameters in augmentation.split(2 * cfg.batch_size):
        size = (cfg.batch_size,)
        chosen = torch.randint(len(diseased.pixels), size, generator=generator)
        others = torch.randint(len(healthy.pixels), (*size, NEAREST_OF), generator=generator)
        like = nearest(diseased.places[chosen], healthy.places[others], others)
        images = to_device(torch.cat([diseased.pixels[chosen], healthy.pixels[like]]), device)
        unused = torch.zeros(images.shape[:3], dtype=torch.uint8, device=device)
        augmented, _ = augment(images, unused, to_device(parameters, device))
        yield scaled(augmented).chunk(2)


def nearest(places: Tensor, of_others: Tensor, others: Tensor) -> Tensor:
    """Return of others, (N, K), the one nearest to each place, (N,); the first where none is known.

    places: (N,). of_others: (N, K).
    """
    distance = (of_others - places[:, None]).abs().nan_to_num(nan=2.0)
    return others.gather(1, distance.argmin(1, keepdim=True))[:, 0]


def scaled(images: Tensor) -> Tensor:
    """Return images of 0..255 in -1..1."""
    return images / 127.5 - 1


# ---------------------------------------------------------------- a trained generator


def load_generator(cfg: TransferConfig, folder: Path, device: torch.device) -> Generator:
    """Return the generator of a folder, in eval mode."""
    generator = Generator(replace(with_four_channels(cfg), encoder_weights="none"))
    with reading(folder / WEIGHTS):
        generator.load_state_dict(load_file(folder / WEIGHTS))
    return generator.eval().to(device, memory_format=torch.channels_last)


@torch.no_grad()
def heal(generator: Generator, images: Tensor, device: torch.device) -> Healed:
    """Return images made healthy, RGB uint8 (N, P, P, 3), all on the CPU.

    The mask is float32 (N, P, P) in 0..1. images: RGB uint8 (N, P, P, 3).
    """
    parts = tqdm(images.split(batch_size(device)), "  making healthy", leave=False, disable=None)
    found = []
    for part in parts:
        healed = generator(scaled(part.to(device).permute(0, 3, 1, 2).float()))
        after = ((healed.image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        found.append((after.permute(0, 2, 3, 1).cpu(), healed.mask[:, 0].cpu()))
    return Healed(*(torch.cat(part) for part in zip(*found, strict=True)))


@torch.no_grad()
def flipped(generator: Generator, sees: Sees, images: Tensor, device: torch.device) -> float:
    """Return the share of the images seen to hold the lesion that are not once they are healed."""
    before, after = [], []
    for part in images.split(batch_size(device)):
        batch = scaled(part.to(device).permute(0, 3, 1, 2).float())
        before.append(sees(batch).cpu() > 0)
        after.append(sees(generator(batch).image).cpu() > 0)
    seen, still = torch.cat(before).numpy(), torch.cat(after).numpy()
    return float(np.mean(~still[seen])) if seen.any() else 0.0
