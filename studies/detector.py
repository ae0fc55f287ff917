"""A detector's view: can a network tell what stands where a nucleus stood from real tissue?

Writes  reports/studies/detector.json, .md

For each fill, a small network learns to tell windows whose nuclei were replaced from windows that
never held one, on the training patches of a fold, and is tested on as many of each kind from the
patches that the fold tests. 50 % right is a fill that nobody tells from tissue; black holes give
100 %. But where nuclei stand, tissue looks different anyway: `holes in both` cuts holes of the same
shapes into real windows too, so that only what is around them tells. No fill can be expected to do
better than that.

    zero, mean, inpaint    the fills of generate_unfiltered_oods.py
    transfer               the learned fill, if transfer/train_fill.py made it
    holes in both          black holes in the windows with nuclei and in those without
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config, UserError
from medood.data.dataset import Patches, load_patches
from medood.data.files import write_json, write_text
from medood.data.folds import read_fold
from medood.data.patients import patients_of
from medood.data.workspace import data_name, id_files
from medood.evaluation.statistics import LEVEL, RESAMPLES
from medood.evaluation.tables import markdown
from medood.models.checkpoints import versions
from medood.models.inference import batch_size
from medood.models.network import pick_device
from medood.runs.command_line import run
from medood.runs.provenance import plain_settings, require
from medood.training.batches import INITIALISATION, stream_seed
from studies.common import has_learned_fill
from transfer.fill import (
    PLAIN,
    Looks,
    cut,
    draw,
    fill_holes,
    find_windows,
    holes_of,
    load_fill,
    looks_of,
    replace_nuclei,
)

IN_BOTH = "holes in both"
PAIRS = 4000  # windows of each kind, of a side of a fold, at most
FEWEST = 20  # windows of each kind, on each side: fewer show nothing
STEPS, BATCH, LR = 400, 64, 3e-3  # of a detector's training
WIDTHS = (16, 32, 64)  # channels of its three convolutions


class Side(NamedTuple):
    """A side of a fold: K windows with nuclei and as many without."""

    patches: Patches
    holes: Tensor  # bool (N, P, P), of the patches
    nuclei: Tensor  # int64 (K, 3), places of windows: see transfer/fill.py
    tissue: Tensor  # int64 (K, 3)

    @property
    def names(self) -> list[str]:
        """The patch of each window with nuclei, then of each without."""
        numbers = torch.cat([self.nuclei, self.tissue])[:, 0].tolist()
        return [self.patches.names[number] for number in numbers]


def side_of(cfg: Config, names: list[str], looks: Looks | None = None) -> tuple[Side, Looks]:
    """Return the windows of some patches, and what tissue looks like.

    looks: of the training side; None finds them. Raises UserError if there are too few windows.
    """
    patches = load_patches(cfg, id_files(cfg, names))
    holes = holes_of(patches.masks)
    nuclei, tissue = find_windows(patches, holes, cfg.seed)
    if len(nuclei):
        looks = looks or looks_of(patches, holes, nuclei)
        tissue = looks.of(patches, tissue)
    count = min(len(nuclei), len(tissue), PAIRS)
    if count < FEWEST:
        raise UserError(
            f"{len(names)} patches have {len(nuclei)} windows with nuclei and {len(tissue)} of"
            f" tissue without, but a detector takes at least {FEWEST} of each on both sides of a"
            " fold: add regions"
        )
    nuclei, tissue = (draw(places, count, cfg.seed) for places in (nuclei, tissue))
    return Side(patches, holes, nuclei, tissue), looks


def windows_of(side: Side, fill: str, generator: nn.Module | None, device: torch.device) -> Tensor:
    """Return the windows, RGB uint8 (2 K, S, S, 3), with a fill, then those without a nucleus."""
    images, holes = side.patches.images, side.holes
    real = cut(images, side.tissue)
    if fill == IN_BOTH:
        shapes = cut(holes, side.nuclei).repeat(2, 1, 1)
        return torch.cat([cut(images, side.nuclei), real]).masked_fill(shapes[..., None], 0)
    if fill == "transfer":
        filled = fill_holes(generator, images, holes, device)
    else:
        filled = replace_nuclei(images, side.patches.masks, fill)
    return torch.cat([cut(filled, side.nuclei), real])


# ---------------------------------------------------------------- the detector


def build_detector() -> nn.Sequential:
    """Return three convolutions and a mean: float (N, 3, S, S) in -1..1 -> logits (N, 1)."""
    layers: list[nn.Module] = []
    for ins, outs in zip((3, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Conv2d(ins, outs, 3, padding=1), nn.BatchNorm2d(outs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 1))


def is_filled(windows: Tensor) -> Tensor:
    """Return the truth of N windows, the first half of which is filled: float (N,), 1 there."""
    return (torch.arange(len(windows)) < len(windows) // 2).float()


def train_detector(windows: Tensor, seed: int, device: torch.device) -> nn.Module:
    """Return a detector trained on windows, RGB uint8 (N, S, S, 3), of which half are filled."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    detector, truth = build_detector().to(device).train(), is_filled(windows)
    optimiser = torch.optim.AdamW(detector.parameters(), LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=STEPS)
    for _ in range(STEPS):
        index = torch.randint(len(windows), (BATCH,), generator=generator)
        logits = detector(as_input(turned(windows[index], generator), device))[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, truth[index].to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return detector.eval()


def turned(windows: Tensor, generator: torch.Generator) -> Tensor:
    """Return windows (N, S, S, 3), mirrored or turned by one of the eight ways that there are."""
    rows, columns, both = torch.rand(3, generator=generator).round().bool().tolist()
    windows = windows.flip([1] * rows + [2] * columns)
    return windows.transpose(1, 2) if both else windows


def as_input(windows: Tensor, device: torch.device) -> Tensor:
    """Return RGB uint8 (N, S, S, 3) as float (N, 3, S, S) in -1..1 on a device."""
    return windows.to(device).permute(0, 3, 1, 2) / 127.5 - 1


# ---------------------------------------------------------------- the answers


class Answers(NamedTuple):
    """What detectors say about windows of test patches."""

    right: np.ndarray  # bool (N,)
    filled: np.ndarray  # bool (N,)
    patients: np.ndarray  # the patient of each window, or its region


class Share(NamedTuple):
    """A share with its 95 % interval."""

    mean: float
    low: float
    high: float

    def text(self) -> str:
        """Return it in percent."""
        mean, low, high = (f"{100 * value:.1f}" for value in self)
        return f"{mean} [{low}, {high}]"


@torch.inference_mode()
def ask(detector: nn.Module, windows: Tensor, patients: list[str], device: torch.device) -> Answers:
    """Return what a detector says about windows, RGB uint8 (N, S, S, 3), of these patients."""
    parts = windows.split(batch_size(device))
    logits = torch.cat([detector(as_input(part, device))[:, 0].cpu() for part in parts])
    filled = is_filled(windows).numpy() > 0
    return Answers((logits.numpy() > 0) == filled, filled, np.array(patients))


def pool(parts: list[Answers]) -> Answers:
    """Return the answers of all folds as one."""
    return Answers(*map(np.concatenate, zip(*parts, strict=True)))


def share_right(answers: Answers) -> Share:
    """Return how many answers are right, both kinds of windows weighing the same.

    The interval is a bootstrap that draws patients, with all their windows.
    """
    names, number = np.unique(answers.patients, return_inverse=True)
    rng = np.random.default_rng(0)
    weight = rng.multinomial(len(names), [1 / len(names)] * len(names), size=RESAMPLES)
    weight = np.vstack([np.ones(len(names)), weight])  # row 0 is the data as it is
    shares = []
    for kind in (answers.filled, ~answers.filled):
        right, count = (
            weight @ np.bincount(number[kind], each[kind], len(names))
            for each in (answers.right, np.ones(len(number)))
        )
        # no patient that was drawn may have windows of a kind
        shares.append(np.divide(right, count, out=np.full_like(count, np.nan), where=count > 0))
    mean, *resampled = np.mean(shares, 0)
    tail = (100 - LEVEL) / 2
    return Share(float(mean), *map(float, np.nanpercentile(resampled, [tail, 100 - tail])))


# ---------------------------------------------------------------- the study


def judge(cfg: Config, fold: int, fills: list[str]) -> dict[str, Answers]:
    """Return what the detector of each fill says about the patches that a fold tests."""
    device = pick_device(cfg)
    train, val, test = read_fold(cfg, fold)
    learned, looks = side_of(cfg, train + val)
    tested, _ = side_of(cfg, test, looks)
    patients = patients_of(cfg, tested.names)
    print(
        f"fold {fold}: detectors learn from {2 * len(learned.nuclei)} windows and are tested on"
        f" {2 * len(tested.nuclei)}; of each, half are filled"
    )
    generator = load_fill(cfg, fold, device) if "transfer" in fills else None
    found = {}
    for fill in fills:
        seen, unseen = (windows_of(side, fill, generator, device) for side in (learned, tested))
        network = train_detector(seen, stream_seed(cfg, fold, INITIALISATION), device)
        found[fill] = ask(network, unseen, patients, device)
    return found


def detector(cfg: Config) -> None:
    """Write what share of windows detectors get right, for each fill, over all folds."""
    require(cfg, "patches", "patch masks", "fold")
    fills = [*PLAIN, *["transfer"] * has_learned_fill(cfg), IN_BOTH]
    folds = [judge(cfg, fold, fills) for fold in cfg.folds]
    content, rows = {}, []
    for fill in fills:
        parts = [of_fill[fill] for of_fill in folds]
        share, of_fold = share_right(pool(parts)), [share_right(part).mean for part in parts]
        content[fill] = {**share._asdict(), "folds": of_fold}
        rows.append([fill, share.text(), *(f"{100 * mean:.1f}" for mean in of_fold)])
    write(cfg, content, markdown(["", "right", *map("fold {}".format, cfg.folds)], rows))


def write(cfg: Config, content: dict[str, dict], table: str) -> None:
    """Print the table, and write it and its figures to reports/studies."""
    out = cfg.workspace / "reports" / "studies" / "detector"
    title = (
        f"{data_name(cfg.workspace)}. detector: windows told from real tissue without nuclei,"
        f" folds {', '.join(map(str, cfg.folds))}, split {cfg.split}; percent right, both kinds"
        f" weighing the same, with the 95 % interval of a bootstrap over {cfg.unit}s"
    )
    print(f"\n{title}\n\n{table}")
    settings = {"settings": plain_settings(cfg), "versions": versions()}
    write_json(Path(f"{out}.json"), {"data": data_name(cfg.workspace), **settings, **content})
    write_text(Path(f"{out}.md"), f"{title}\n\n{table}")
    print(f"{out}.json, .md")


if __name__ == "__main__":
    run(detector)
