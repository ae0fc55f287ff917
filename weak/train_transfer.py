"""Train a generator to make images with a lesion healthy, inside of a mask that it has to find.

Reads   weak/Images, weak/classifier                (train_classifier.py), and the image labels
Writes  weak/generator/<fold>_transfer_<lesion>/    generator, log of the losses
        weak/generator/<fold>_.../flipped.json      how often the classifier flipped

An interrupted training continues. One after which the classifier still sees most of the lesions has
failed; that is told by image labels alone.

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

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import UserError
from medood.data.files import write_json
from medood.models.network import autocast, for_training, pick_device
from medood.runs.command_line import run
from medood.training.augmentation import augment, draw_augmentation
from medood.training.batches import AUGMENTATION, INITIALISATION, ORDER, stream_seed, to_device
from medood.training.loop import fit, write_log
from medood.training.protocol import Losses, Training
from weak.arrays import load_images, save_weights
from weak.check_labels import check_labels, places_of
from weak.classifier import load_classifiers
from weak.generator import (
    WEIGHTS,
    Generator,
    Healed,
    Judge,
    Sees,
    heal,
    least_squares,
    scaled,
    seen_in,
    total_variation,
)
from weak.image_labels import with_classes, with_lesion
from weak.pooled import size_loss
from weak.products import (
    GENERATOR,
    classifier_folder,
    domains,
    generator_folder,
    image_paths,
    labels_there,
    make_folds,
    unfinished,
)
from weak.settings import TransferConfig

FLIPPED = "flipped.json"
ENOUGH = 0.5  # of the lesions that the classifier sees, which a generator is to take out
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


def train_generators(cfg: TransferConfig) -> None:
    """Train the generator of every fold on the images of its training side."""
    cfg = with_lesion(cfg)
    check_labels(cfg)
    make_folds(cfg, GENERATOR, train_fold)


def train_fold(cfg: TransferConfig, fold: int, folder: Path) -> None:
    """Write the generator of a fold into a folder."""
    paths = domains(cfg, fold)
    if not paths[1]:
        raise UserError(
            f"fold {fold} has no training image without any class: add some, or another fold"
        )
    diseased, healthy = (with_places(cfg, of_kind) for of_kind in paths)
    of_all, device = with_classes(cfg), pick_device(cfg.device)
    networks = load_classifiers(of_all, classifier_folder(cfg, fold), "pooled", device)
    sees = Sees(cfg, networks, of_all.class_names.index(cfg.lesion) - 1)
    print(
        f"fold {fold}: {len(diseased.pixels)} images with the lesion, {len(healthy.pixels)} without"
        f" any class, {device.type}"
    )
    where = generator_folder(cfg, fold)
    trainer = Trainer(cfg, fold, diseased, healthy, sees, device)
    fit(trainer, unfinished(where), GENERATOR.made_from(cfg, fold))
    generator = trainer.model["generator"].eval()
    save_weights(generator, folder / WEIGHTS)
    write_log(folder, trainer.log)
    healed = heal(generator, diseased.pixels, device).image
    share = flipped(*(seen_in(cfg, fold, images) for images in (diseased.pixels, healed)))
    write_json(folder / FLIPPED, {"flipped": [share]})
    cure = f": raise iterations (now {cfg.iterations})" if share < ENOUGH else ""
    print(f"{where}: the classifier flips on {100 * share:.0f} % of what it sees{cure}")


def flipped(before: Tensor, after: Tensor) -> float:
    """Return the share of the images seen to have the lesion that are not once they are healed.

    before, after: bool (N,), in which images it is seen.
    """
    return float((before & ~after).sum() / before.sum().clamp_min(1))


def with_places(cfg: TransferConfig, paths: list[Path]) -> Images:
    """Return images and where each lies in the body, as far as it is known."""
    labels = labels_there(cfg)
    place = dict(zip(image_paths(cfg, labels), places_of(labels).tolist(), strict=True))
    return Images(load_images(cfg, paths), torch.tensor([place[path] for path in paths]))


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
        model = nn.ModuleDict({"generator": Generator(cfg), "judge": Judge()})
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
        """Yield the batches of a round, and whether the generator learns from each.

        They are as many images of either kind, float (batch_size, 3, P, P) in -1..1.
        """
        steps, size = min(ROUND, self.cfg.iterations - epoch * ROUND), self.cfg.batch_size
        order = stream_seed(self.cfg, self.fold, ORDER, epoch)
        generator = torch.Generator().manual_seed(order)
        seed = stream_seed(self.cfg, self.fold, AUGMENTATION, epoch)
        augmentation = draw_augmentation(2 * steps * size, seed).split(2 * size)
        for number, parameters in enumerate(augmentation):
            chosen = torch.randint(len(self.diseased.pixels), (size,), generator=generator)
            count = len(self.healthy.pixels)
            others = torch.randint(count, (size, NEAREST_OF), generator=generator)
            places = self.diseased.places[chosen], self.healthy.places[others]
            like = nearest(*places, others)
            both = torch.cat([self.diseased.pixels[chosen], self.healthy.pixels[like]])
            images = to_device(both, self.device)
            unused = torch.zeros(images.shape[:3], dtype=torch.uint8, device=self.device)
            augmented, _ = augment(images, unused, to_device(parameters, self.device))
            yield *scaled(augmented).chunk(2), number % PACE == 0

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
        with torch.set_grad_enabled(generates), self.precision:
            healed = generator(torch.cat([diseased, healthy]))
        made = healed.image[: len(diseased)].detach()
        if generates:
            judge.requires_grad_(False)
            with self.precision:
                found = self.losses(healed, diseased, healthy)
            self._descend("generator", sum(WEIGHT[name] * loss for name, loss in found.items()))
            losses = {name: loss.detach() for name, loss in found.items()}
            judge.requires_grad_(True)
        with self.precision:
            said = judge(torch.cat([healthy, made])).float()
        loss = least_squares(said[: len(healthy)], 1) + least_squares(said[len(healthy) :], 0)
        self._descend("judge", loss)
        return losses | {"judge": loss.detach()}

    def losses(self, healed: Healed, diseased: Tensor, healthy: Tensor) -> Losses:
        """Return what the generator learns by, see the head of this file."""
        count = len(diseased)
        made, mask = healed.image[:count], healed.mask
        stay = (healed.image[count:] - healthy).abs().mean() + mask[count:].mean()
        return {
            "flip": F.softplus(self.sees(made)).mean(),
            "adversarial": least_squares(self.model["judge"](made).float(), 1),
            "stay": stay,
            "reconstruction": (made - diseased).abs().mean(),
            "variation": total_variation(mask),
            "size": size_loss(mask[:count].logit(1e-6), self.cfg.size).mean(),
        }

    def _descend(self, name: str, loss: Tensor) -> None:
        loss.backward()
        self.optimisers[name].step()
        self.optimisers[name].zero_grad()


def nearest(places: Tensor, of_others: Tensor, others: Tensor) -> Tensor:
    """Return of others, (N, K), the one nearest to each place, (N,); the first where none is known.

    places: (N,). of_others: (N, K).
    """
    distance = (of_others - places[:, None]).abs().nan_to_num(nan=2.0)
    return others.gather(1, distance.argmin(1, keepdim=True))[:, 0]


if __name__ == "__main__":
    run(train_generators, TransferConfig())
