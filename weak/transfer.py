"""Two generators and their discriminators in training, and a trained generator at work."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from config import UserError
from medood.data.files import csv_text, digest, reading, whole, write_text
from medood.models.inference import batch_size
from medood.models.network import autocast, exact, for_training
from medood.training.augmentation import augment, draw_augmentation
from medood.training.batches import AUGMENTATION, INITIALISATION, ORDER, stream_seed, to_device
from medood.training.state import TrainingState
from medood.training.step import explain_errors
from medood.training.tensorboard import open_writer, remove_log
from weak.generator import Generator, InstanceLayerNorm, Judges, refuse_size
from weak.pictures import draw_rows
from weak.transfer_losses import area, attention_loss, difference, least_squares
from weak.transfer_products import DECIDING
from weak.transfer_settings import TransferConfig

WEIGHTS, RESUME = "generator.safetensors", "resume.pt"
BETAS, DECAY = (0.5, 0.999), 2e-5  # of Adam
JUDGES_PACE = 2.0  # learning rate of the discriminators, in those of the generators
TOLD_APART = 3.0  # loss of discriminators that tell the domains apart; 4 is chance
MOST_ALONE = 20  # rounds in which they learn alone to do so
AREA_RISE = 300  # steps of the generators in which the weight of the masks' area rises
RECONSTRUCTION = ATTENTION = 10.0  # weights in the sum of the losses
LEAST_AREA = 0.02  # of an image to change, that its mask is to take: it costs what differs
ROUND = 100  # steps between two lines of the log, and two states to go on from
DRAWN = 3  # rounds from one picture to the next
SHOWN = 3, 1  # images with the lesion, and without, in a picture
LOSSES = ("adversarial", "cycle", "identity", "attention", "reconstruction", "area", "judges")

Losses = dict[str, Tensor]  # a scalar each


class Trainer:
    """Both generators and the discriminators of both domains, with their optimiser, on a device.

    heal makes diseased images healthy, harm healthy ones diseased.
    """

    def __init__(self, cfg: TransferConfig, device: torch.device) -> None:
        self.cfg, self.precision = cfg, autocast(cfg, device)
        generators = {name: Generator(cfg.channels) for name in ("heal", "harm")}
        judges = {name: Judges(cfg.channels) for name in ("healthy", "diseased")}
        self.model = for_training(nn.ModuleDict(generators | judges), device)
        self.generators, self.judges = (
            nn.ModuleList(parts.values()) for parts in (generators, judges)
        )
        paces = (self.generators, 1.0), (self.judges, JUDGES_PACE)
        groups = [
            {"params": part.parameters(), "lr": pace * cfg.transfer_lr} for part, pace in paces
        ]
        self.optimiser = torch.optim.Adam(groups, betas=BETAS, weight_decay=DECAY)

    def step(self, diseased: Tensor, healthy: Tensor, area_share: float = 1.0) -> Losses:
        """Teach the generators, then the discriminators, on images (N, 3, P, P) in -1..1 each.

        area_share: how much of the weight of the masks' area counts.
        """
        self.judges.requires_grad_(False)
        with self.precision, exact(self.cfg):
            healing, healed = self._one_way("heal", "harm", "healthy", diseased, healthy)
            harming, harmed = self._one_way("harm", "heal", "diseased", healthy, diseased)
        losses = {name: healing[name] + harming[name] for name in healing}
        self._descend(self._total(losses, area_share))
        for part in self.generators.modules():
            if isinstance(part, InstanceLayerNorm):
                part.clip()
        found = {name: loss.detach() for name, loss in losses.items()}
        return found | self.judge(diseased, harmed, healthy, healed)

    def judge(self, diseased: Tensor, harmed: Tensor, healthy: Tensor, healed: Tensor) -> Losses:
        """Teach the discriminators real images from made ones, (N, 3, P, P), any N each."""
        self.judges.requires_grad_(True)
        with self.precision, exact(self.cfg):
            loss = self._told_apart("diseased", diseased, harmed)
            loss = loss + self._told_apart("healthy", healthy, healed)
        self._descend(loss)
        return {"judges": loss.detach()}

    def _one_way(
        self, there: str, back: str, judges: str, source: Tensor, target: Tensor
    ) -> tuple[Losses, Tensor]:
        """Return the losses of a generator, and what it made for its discriminators to learn from.

        source: images to bring to the domain of `target`.
        """
        count, inputs = len(source), torch.cat([source, target])
        out = self.model[there](inputs)  # at once: no image changes another's normalisation
        made = torch.cat([out.fake[:count], out.composite[:count]])
        returned = self.model[back](out.composite[:count]).composite
        losses = {
            "adversarial": least_squares(self.model[judges](made), 1),
            "cycle": difference(returned, source),
            "identity": difference(out.fake[count:], target),
            "attention": attention_loss(out.logits[:count], out.logits[count:]),
            "reconstruction": difference(out.reconstruction, inputs),
            "area": area(out.mask[count:]) + area(out.mask[:count], LEAST_AREA),
        }
        return losses, made.detach()

    def _total(self, losses: Losses, area_share: float) -> Tensor:
        weights = {
            "adversarial": 1.0,
            "cycle": self.cfg.cycle_weight,
            "identity": self.cfg.identity_weight,
            "attention": ATTENTION,
            "reconstruction": RECONSTRUCTION,
            "area": area_share * self.cfg.area_weight,
        }
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()

    def _told_apart(self, judges: str, real: Tensor, made: Tensor) -> Tensor:
        said = self.model[judges](torch.cat([real, made]))
        of_real, of_made = zip(*(part.split([len(real), len(made)]) for part in said), strict=True)
        return least_squares(of_real, 1) + least_squares(of_made, 0)

    def _descend(self, loss: Tensor) -> None:
        with exact(self.cfg):
            loss.backward()
        self.optimiser.step()  # passes over what has no gradient: the other side
        self.optimiser.zero_grad()


def train_transfer(
    cfg: TransferConfig,
    fold: int,
    diseased: Tensor,
    healthy: Tensor,
    folder: Path,
    device: torch.device,
) -> None:
    """Train a generator to make images with the lesion look like images without any.

    `folder` comes to hold generator.safetensors, log.csv and pictures/. A training that was
    interrupted goes on from resume.pt in it, and ends with the same weights, to the bit on the CPU.
    Raises UserError if there is no image of a kind, if the networks cannot take their size, and if
    a loss stops being finite.

    The discriminators learn alone at first, from the images as they are, and the area of the masks
    comes to count little by little: while nothing tells a lesion from what is healthy, a mask is
    nothing but cost, and one that has vanished hardly comes back.

    diseased, healthy: RGB uint8 (N, P, P, 3), any N each.
    """
    for images, kind in ((diseased, "with the lesion"), (healthy, "without any class")):
        if not len(images):
            raise UserError(f"fold {fold} has no training image {kind}: add some, or another fold")
        refuse_size(*images.shape[1:3])
    torch.manual_seed(stream_seed(cfg, fold, INITIALISATION))
    trainer = Trainer(cfg, device)
    state = TrainingState(folder / RESUME, _made_from(cfg, fold, diseased, healthy), trainer)
    print(
        f"fold {fold}: {len(diseased)} images with the lesion, {len(healthy)} without any class,"
        f" {device.type}" + (f", from step {state.log[-1]['step'] + 1}" if state.log else "")
    )
    report = Report(cfg, folder, diseased, healthy, device, len(state.log))
    while areas := next_round(cfg, state.log):
        state.add(train_round(trainer, fold, state.log, areas, diseased, healthy, device))
        report.add(state.log, trainer.model["heal"])
    weights = trainer.model["heal"].state_dict()
    with whole(folder / WEIGHTS) as partial:
        save_file({name: values.contiguous() for name, values in weights.items()}, partial)
    (folder / RESUME).unlink()


def next_round(cfg: TransferConfig, log: list[dict]) -> list[float]:
    """Return, for each step to come, how much of the masks' area counts; [] after the last one.

    It is 0 where the discriminators learn alone: in rounds until they tell the domains apart. log:
    of the rounds so far.
    """
    alone = [row for row in log if row["adversarial"] is None]
    if len(alone) == len(log) < MOST_ALONE and (not log or log[-1]["judges"] > TOLD_APART):
        return [0.0] * ROUND
    done = log[-1]["step"] - ROUND * len(alone)
    last = min(done + ROUND, cfg.iterations)
    return [min(1.0, (step + 1) / AREA_RISE) for step in range(done, last)]


def train_round(
    trainer: Trainer,
    fold: int,
    log: list[dict],
    areas: list[float],
    diseased: Tensor,
    healthy: Tensor,
    device: torch.device,
) -> dict[str, float | int | None]:
    """Take the steps of a round; return its row of the log: its last step and its mean losses.

    log: of the rounds before. areas: of each step, as next_round returns them.
    """
    cfg, number = trainer.cfg, len(log)
    batches = draw(cfg, fold, number, len(areas), diseased, healthy, device)
    found: dict[str, list[Tensor]] = {name: [] for name in LOSSES}
    progress = tqdm(batches, f"  round {number + 1}", len(areas), leave=False, disable=None)
    with explain_errors(cfg, device):
        for area_share, (ill, well) in zip(areas, progress, strict=True):
            if area_share:
                losses = trainer.step(ill, well, area_share)
            else:
                losses = trainer.judge(ill, well, well, ill)
            for name, loss in losses.items():
                found[name].append(loss)  # no .item(): the host would wait for the device
    row = {name: torch.stack(part).mean().item() if part else None for name, part in found.items()}
    last = (log[-1]["step"] if log else 0) + len(areas)
    for name, value in row.items():
        if value is not None and not math.isfinite(value):
            raise UserError(
                f"fold {fold}, steps up to {last}: the {name} loss is {value}: lower transfer_lr"
                f" (now {cfg.transfer_lr:g}) or set precision to float32"
            )
    return {"step": last, **{k: v if v is None else round(v, 6) for k, v in row.items()}}


def draw(
    cfg: TransferConfig,
    fold: int,
    number: int,
    steps: int,
    diseased: Tensor,
    healthy: Tensor,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a round: images of both kinds, float (batch_size, 3, P, P) in -1..1."""
    generator = torch.Generator().manual_seed(stream_seed(cfg, fold, ORDER, number))
    seed = stream_seed(cfg, fold, AUGMENTATION, number)
    augmentation = draw_augmentation(2 * steps * cfg.batch_size, seed)
    for parameters in augmentation.split(2 * cfg.batch_size):
        chosen = [
            images[torch.randint(len(images), (cfg.batch_size,), generator=generator)]
            for images in (diseased, healthy)
        ]
        images = to_device(torch.cat(chosen), device)
        unused = torch.zeros(images.shape[:3], dtype=torch.uint8, device=device)
        augmented, _ = augment(images, unused, to_device(parameters, device))
        yield scaled(augmented).chunk(2)


def scaled(images: Tensor) -> Tensor:
    """Return images of 0..255 in -1..1."""
    return images / 127.5 - 1


def _made_from(cfg: TransferConfig, fold: int, *images: Tensor) -> dict:
    settings = {name: getattr(cfg, name) for name in DECIDING}
    inputs = [digest(part.numpy().tobytes()) for part in images]
    return {"settings": settings, "fold": fold, "inputs": inputs}


class Report:
    """What a training says of itself: lines, log.csv, pictures and, if asked, TensorBoard."""

    def __init__(
        self,
        cfg: TransferConfig,
        folder: Path,
        diseased: Tensor,
        healthy: Tensor,
        device: torch.device,
        rounds_done: int,
    ) -> None:
        self.cfg, self.folder, self.device = cfg, folder, device
        self.images = torch.cat([diseased[: SHOWN[0]], healthy[: SHOWN[1]]])
        self.names = ["lesion"] * len(diseased[: SHOWN[0]]) + ["none"] * len(healthy[: SHOWN[1]])
        name = f"transfer_{folder.name}"
        self.writer = open_writer(cfg, name, rounds_done * ROUND) if cfg.tensorboard else None
        if self.writer is None and not rounds_done:
            remove_log(cfg, name)
        print("   step  " + "  ".join(f"{name[:9]:>9}" for name in LOSSES), flush=True)

    def add(self, log: list[dict], generator: Generator) -> None:
        """Tell of the last round of a log; the generator stays in training mode."""
        row = log[-1]
        numbers = ["-" if row[name] is None else f"{row[name]:.4f}" for name in LOSSES]
        print(f"{row['step']:7d}  " + "  ".join(f"{text:>9}" for text in numbers), flush=True)
        write_text(self.folder / "log.csv", csv_text(list(row), (part.values() for part in log)))
        if len(log) % DRAWN == 0 or not next_round(self.cfg, log):
            self._draw(row["step"], generator)
        if self.writer is not None:
            for name in LOSSES:
                if row[name] is not None:
                    self.writer.add_scalar(name, row[name], row["step"])
            self.writer.flush()

    def _draw(self, step: int, generator: Generator) -> None:
        healthy, mask, heat = transfer(generator.eval(), self.images, self.device)
        generator.train()
        columns = {"heat": heat, "mask": mask, "made healthy": healthy}
        path = self.folder / "pictures" / f"{step:06}.png"
        draw_rows(path, self.cfg, f"step {step}", self.names, self.images, columns)


# ---------------------------------------------------------------- a trained generator


def load_generator(cfg: TransferConfig, folder: Path, device: torch.device) -> Generator:
    """Return the generator of a folder, in eval mode."""
    generator = Generator(cfg.channels)
    with reading(folder / WEIGHTS):
        generator.load_state_dict(load_file(folder / WEIGHTS))
    return generator.eval().to(device, memory_format=torch.channels_last)


@torch.no_grad()
def transfer(
    generator: Generator, images: Tensor, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images made healthy, the masks of what changed, and heat maps, all on the CPU.

    images: RGB uint8 (N, P, P, 3). Returns RGB uint8 (N, P, P, 3), float32 (N, P, P) in 0..1, and
    the same again: heat in parts of the image's hottest pixel, 0 where the lesion is less likely
    than not.
    """
    parts = tqdm(images.split(batch_size(device)), "  making healthy", leave=False, disable=None)
    found = [_transferred(generator, part.to(device)) for part in parts]
    healthy, mask, heat = (torch.cat(part) for part in zip(*found, strict=True))
    return healthy, mask, heat


def _transferred(generator: Generator, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out = generator(scaled(images.permute(0, 3, 1, 2).float()))
    healthy = ((out.composite + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    heat = F.interpolate(out.heat, images.shape[1:3], mode="bilinear").relu()
    heat = heat / heat.amax((2, 3), keepdim=True).clamp_min(1e-6)
    return healthy.permute(0, 2, 3, 1).cpu(), out.mask[:, 0].cpu(), heat[:, 0].cpu()
