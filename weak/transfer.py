"""Two generators and their discriminators in training, and a trained generator in use."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from config import UserError
from medood.data.files import reading, whole
from medood.models.inference import batch_size
from medood.models.network import autocast, exact, for_training, pick_device
from medood.training.augmentation import augment, draw_augmentation
from medood.training.batches import AUGMENTATION, INITIALISATION, ORDER, stream_seed, to_device
from medood.training.loop import fit, write_log
from medood.training.protocol import Losses, Training
from weak.generator import Generator, InstanceLayerNorm, Judges
from weak.pictures import draw_rows
from weak.settings import TransferConfig

WEIGHTS, RESUME = "generator.safetensors", "resume.pt"
BETAS, DECAY = (0.5, 0.999), 2e-5  # of Adam
JUDGES_PACE = 2.0  # learning rate of the discriminators, in those of the generators
SEPARATED = 3.0  # loss of discriminators that distinguish the domains; 4 is chance
MOST_ALONE = 20  # rounds in which only they learn, until they do
AREA_RISE = 300  # steps of the generators in which the weight of the masks' area rises
RECONSTRUCTION = ATTENTION = 10.0  # weights in the sum of the losses
LEAST_AREA = 0.02  # target area of the mask in an image to change: the distance is the loss
ROUND = 100  # steps between two lines of the log, and two states to continue from
DRAWN = 3  # rounds from one picture to the next
SHOWN = 3, 1  # images with the lesion, and without, in a picture
LOSSES = ("adversarial", "cycle", "identity", "attention", "reconstruction", "area", "judges")


class Trainer(Training):
    """Both generators and the discriminators of both domains, with their optimiser, on a device.

    heal makes diseased images healthy, harm healthy ones diseased. An epoch is a round of steps.

    At first only the discriminators learn, from the images as they are, and the weight of the
    masks' area rises slowly: while lesion and healthy tissue are not yet distinguished, a mask only
    costs, and a vanished one hardly comes back.
    """

    rate = "transfer_lr"

    def __init__(
        self,
        cfg: TransferConfig,
        fold: int,
        diseased: Tensor,
        healthy: Tensor,
        folder: Path,
        device: torch.device,
    ) -> None:
        """diseased, healthy: RGB uint8 (N, P, P, 3), any N each. folder: for pictures."""
        torch.manual_seed(stream_seed(cfg, fold, INITIALISATION))
        generators = {name: Generator(cfg.channels) for name in ("heal", "harm")}
        judges = {name: Judges(cfg.channels) for name in ("healthy", "diseased")}
        model = for_training(nn.ModuleDict(generators | judges), device)
        super().__init__(cfg, f"fold {fold}", model, 0, device)  # is_over counts the steps
        self.fold, self.folder, self.precision = fold, folder, autocast(cfg.precision, device)
        self.images = diseased, healthy
        self.generators, self.judges = (
            nn.ModuleList(parts.values()) for parts in (generators, judges)
        )
        paces = (self.generators, 1.0), (self.judges, JUDGES_PACE)
        groups = [
            {"params": part.parameters(), "lr": pace * cfg.transfer_lr} for part, pace in paces
        ]
        self.optimiser = torch.optim.Adam(groups, betas=BETAS, weight_decay=DECAY)
        self.parts["optimiser"] = self.optimiser

    def is_over(self) -> bool:
        """Say whether the last round of the log is the last of all."""
        return not next_round(self.cfg, self.log)

    def begin_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Return the batches of a round, each with the share of the weight of the masks' area."""
        self.areas = next_round(self.cfg, self.log)
        batches = batches_of(self.cfg, self.fold, epoch, len(self.areas), *self.images, self.device)
        return ((*batch, share) for batch, share in zip(batches, self.areas, strict=True))

    def end_epoch(self, losses: dict[str, float]) -> dict:
        """Return the row of the log, its last step and the mean losses; draw some pictures."""
        step = (self.log[-1]["step"] if self.log else 0) + len(self.areas)
        row = {"step": step} | {name: losses.get(name) for name in LOSSES}
        log = [*self.log, row]
        if len(log) % DRAWN == 0 or not next_round(self.cfg, log):
            self._draw(step)
        return row

    def _draw(self, step: int) -> None:
        shown = [part[:most] for part, most in zip(self.images, SHOWN, strict=True)]
        names = ["lesion"] * len(shown[0]) + ["none"] * len(shown[1])
        images, generator = torch.cat(shown), self.model["heal"].eval()
        healthy, mask, heat = transfer(generator, images, self.device)
        generator.train()
        columns = {"heat": heat, "mask": mask, "made healthy": healthy}
        path = self.folder / "pictures" / f"{step:06}.png"
        draw_rows(path, self.cfg, f"step {step}", names, images, columns)

    def step(self, diseased: Tensor, healthy: Tensor, area_share: float = 1.0) -> Losses:
        """Teach the generators, then the discriminators, on images (N, 3, P, P) in -1..1 each.

        area_share: share of the weight of the masks' area; 0 if only the discriminators learn.
        """
        if not area_share:
            return self.judge(diseased, healthy, healthy, diseased)
        self.judges.requires_grad_(False)
        with self.precision, exact(self.cfg.precision):
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
        """Teach the discriminators real against generated images, (N, 3, P, P), any N each."""
        self.judges.requires_grad_(True)
        with self.precision, exact(self.cfg.precision):
            loss = self._judged("diseased", diseased, harmed)
            loss = loss + self._judged("healthy", healthy, healed)
        self._descend(loss)
        return {"judges": loss.detach()}

    def _one_way(
        self, there: str, back: str, judges: str, source: Tensor, target: Tensor
    ) -> tuple[Losses, Tensor]:
        """Return the losses of a generator, and its images, for its discriminators to learn from.

        source: images to transfer to the domain of `target`.
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

    def _judged(self, judges: str, real: Tensor, made: Tensor) -> Tensor:
        said = self.model[judges](torch.cat([real, made]))
        of_real, of_made = zip(*(part.split([len(real), len(made)]) for part in said), strict=True)
        return least_squares(of_real, 1) + least_squares(of_made, 0)

    def _descend(self, loss: Tensor) -> None:
        with exact(self.cfg.precision):
            loss.backward()
        self.optimiser.step()  # skips weights without a gradient: the other side
        self.optimiser.zero_grad()


# ---------------------------------------------------------------- losses


def least_squares(said: Iterable[Tensor], truth: float) -> Tensor:
    """Return the sum over discriminators of the mean of (said - truth)^2 (Mao et al. 2017).

    said: the output of each. truth: 1 if images are, or should look, real, else 0.
    """
    return torch.stack([(part - truth).square().mean() for part in said]).sum()


def attention_loss(leaving: Tensor, staying: Tensor) -> Tensor:
    """Return the binary cross-entropy of the logits of images to change, and of those not to."""
    return F.softplus(-leaving).mean() + F.softplus(staying).mean()


def difference(images: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference: of a cycle, an identity, a reconstruction."""
    return (images - target).abs().mean()


def area(masks: Tensor, aim: float = 0.0) -> Tensor:
    """Return the mean distance of the mean of each mask, (N, 1, H, W), from a target.

    Without it, a mask of ones is as good as any other. A target of 0 on images to change would let
    masks vanish if a lesion is hard to see, although the label says that there is one.
    """
    return (masks.mean((1, 2, 3)) - aim).abs().mean()


# ---------------------------------------------------------------- the training


def train_transfer(
    cfg: TransferConfig,
    fold: int,
    diseased: Tensor,
    healthy: Tensor,
    folder: Path,
    made_from: dict,
) -> None:
    """Train a generator to make images with the lesion look like images without any.

    `folder` gets generator.safetensors, log.csv and pictures/, and resume.pt until the end: see
    `fit`, for made_from too. Raises UserError also if there is no image of a kind.

    diseased, healthy: RGB uint8 (N, P, P, 3), any N each.
    """
    for images, kind in ((diseased, "with the lesion"), (healthy, "without any class")):
        if not len(images):
            raise UserError(f"fold {fold} has no training image {kind}: add some, or another fold")
    device = pick_device(cfg.device)
    print(
        f"fold {fold}: {len(diseased)} images with the lesion, {len(healthy)} without any class,"
        f" {device.type}"
    )
    trainer = Trainer(cfg, fold, diseased, healthy, folder, device)
    fit(trainer, folder, made_from)
    weights = trainer.model["heal"].state_dict()
    with whole(folder / WEIGHTS) as partial:
        save_file({name: values.contiguous() for name, values in weights.items()}, partial)
    write_log(folder, trainer.log)
    (folder / RESUME).unlink()


def next_round(cfg: TransferConfig, log: list[dict]) -> list[float]:
    """Return, for each step of the next round, the share of the weight of the masks' area.

    It is 0 if only the discriminators learn: in rounds until they distinguish the domains. [] after
    the last round. log: of the rounds so far.
    """
    alone = [row for row in log if row["adversarial"] is None]
    if len(alone) == len(log) < MOST_ALONE and (not log or log[-1]["judges"] > SEPARATED):
        return [0.0] * ROUND
    done = log[-1]["step"] - ROUND * len(alone)
    last = min(done + ROUND, cfg.iterations)
    return [min(1.0, (step + 1) / AREA_RISE) for step in range(done, last)]


def batches_of(
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
    the same again: heat relative to the image's maximum, 0 where the lesion is less likely than
    not.
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
