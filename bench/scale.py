"""Time and memory of the steps on 1, 10 and 50 times Lizard: `python bench/scale.py`.

The script prepares synthetic regions, mines, estimates pct, and reads and augments the patches of
one epoch of fold 79. Each step runs in a process of its own. Its memory is the peak of the
anonymous memory, read from Linux's /proc every 50 ms: it includes the libraries (about 0.45 GB),
but not the pages of mapped files, which the system can drop. A 1x1 convolution takes the place of
the network, and nothing is trained: bench/train.py measures networks.

All files lie in a temporary folder in --workspace; a step is left out where the disk has no room
for it. Only the regions are drawn at every factor: mining, pct and loading read hard links to the
patches of 1x.
"""

import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import Figures, link, synthetic_lizard
from bench.lizard import REGIONS, SIZES
from config import LIZARD, Config, UserError, settings
from estimate_pct import estimate_pct
from generate_patches import generate_patches, write_folds
from generate_semantic_labels import generate_semantic_labels
from generate_unfiltered_oods import generate_unfiltered_oods
from medood.data.dataset import load_patches
from medood.data.files import csv_text, pngs, write_text
from medood.data.folds import read_fold
from medood.data.ood_set import columns
from medood.data.workspace import id_files, ood_files, ranking_path
from medood.runs.command_line import run
from medood.training.augmentation import augment, draw_augmentation
from medood.training.batches import batches
from rank_prune_ood import count_seen, rank_and_prune

FOLD = 79
MADE = ("Image_Patchs", "Mask_Patchs", "OoD_Patchs")
PREPARED = 80_000  # bytes that a patch takes in these folders, rounded up
EVERY = 0.05  # seconds between two looks at the memory


@settings
class BenchConfig(Config):
    """The settings, and how much to measure."""

    factors: tuple[int, ...] = (1, 10, 50)
    """Sizes of the data, in multiples of Lizard."""
    regions: int = REGIONS
    """How many regions one Lizard has."""
    sizes: tuple[tuple[int, int], ...] = SIZES
    """Heights and widths of the regions, in turn, in pixels."""
    json: Path | None = None
    """File to write the figures to."""


class Pixelwise(nn.Module):
    """A network that costs almost nothing: a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"classes": 1 + len(LIZARD), "encoder_name": "vgg11_bn"}
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, self.config["classes"], 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images)


def preparation(cfg: Config) -> None:
    """Make class masks, patches and OoD patches."""
    for step in (generate_semantic_labels, generate_patches, generate_unfiltered_oods):
        step(cfg)


def mining(cfg: Config) -> None:
    """Read the OoD patches and rank them with a network that costs almost nothing."""
    files = ood_files(cfg, read_fold(cfg, FOLD).train)
    counts = count_seen(cfg, Pixelwise().eval(), files, "mining")
    rows = rank_and_prune([image.name for image, _ in files], counts)
    write_text(ranking_path(cfg, FOLD), csv_text(columns(cfg), rows))


def pct(cfg: Config) -> None:
    """Estimate pct for that ranking."""
    estimate_pct(cfg)


def loading(cfg: Config) -> None:
    """Read the training patches, and augment them batch by batch for an epoch."""
    started = time.perf_counter()
    patches = load_patches(cfg, id_files(cfg, read_fold(cfg, FOLD).train))
    read = time.perf_counter()
    augmentation = draw_augmentation(len(patches), 0)
    for index in batches(cfg, FOLD, 0, len(patches)):
        augment(patches.images[index], patches.masks[index], augmentation[index])
    print(f"reading {read - started:.1f} s, batches {time.perf_counter() - read:.1f} s")


def measure(step: Callable[[Config], None], cfg: Config) -> tuple[float, float]:
    """Return the seconds that a step takes in its own process, and its peak memory in MB."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_timed, args=(step, cfg, sender), daemon=True)
    child.start()
    most = 0.0
    while child.is_alive():
        most = max(most, _anonymous_mb(child.pid))
        time.sleep(EVERY)
    if child.exitcode:
        raise UserError(f"{step.__name__} ended with exit code {child.exitcode}: see above")
    return receiver.recv(), most


def _timed(step: Callable[[Config], None], cfg: Config, sender: Connection) -> None:
    started = time.perf_counter()
    step(cfg)
    sender.send(time.perf_counter() - started)


def _anonymous_mb(process: int) -> float:
    """Return the anonymous memory of a process now; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("RssAnon"))


def multiply(source: Config, cfg: Config, factor: int) -> None:
    """Link the prepared patches of one workspace `factor` times in another, under new names."""
    names = [path.name for path in pngs(source.workspace / MADE[0])]
    for folder in MADE:
        (cfg.workspace / folder).mkdir(parents=True)
        for number in range(factor):
            for name in names:
                path = cfg.workspace / folder / f"{number}-{name}"
                link(source.workspace / folder / name, path)
    write_folds(cfg, [path.name for path in pngs(cfg.workspace / MADE[0])])


def has_room(cfg: Config, what: str, needed: float) -> bool:
    """Return whether the disk has twice the bytes that are needed; print it if it has not."""
    free = shutil.disk_usage(cfg.workspace.parent).free
    if free < 2 * needed:
        space = f"{free / 1e9:.0f} GB are free, {2 * needed / 1e9:.0f} are needed"
        print(f"{what} is left out: {space}", flush=True)
    return free >= 2 * needed


def bench(cfg: BenchConfig) -> None:
    """Measure every step at every factor, and print a row of each."""
    if not Path("/proc/self/status").exists():
        raise UserError(
            "/proc: not found: run this on Linux, where the memory of a process is read there"
        )
    figures = Figures("scale", "the steps as the data grow")
    rows = figures.content["rows"]
    with tempfile.TemporaryDirectory(dir=cfg.workspace) as name:
        cfg = replace(cfg, folds=(FOLD,), patch_size=128, classes=LIZARD, device="cpu")
        cfg = replace(cfg, images=None, masks=None, ood_source=None, split="patch", select="last")

        def add(factor: int, step: Callable[[Config], None], of: Config) -> None:
            seconds, memory = measure(step, of)
            row = {"factor": factor, "step": step.__name__, "patches": 0}
            row["patches"] = len(pngs(of.workspace / MADE[0]))
            if step is not preparation:
                row["patches"] = len(read_fold(of, FOLD).train)
            rows.append({**row, "seconds": round(seconds, 2), "anonymous_mb": round(memory)})
            print(rows[-1], flush=True)

        source = replace(cfg, workspace=Path(name) / "source")
        for factor in sorted({1, *cfg.factors}):
            one = len(pngs(source.workspace / MADE[0])) or cfg.regions * 78
            prepared = replace(cfg, workspace=Path(name) / f"prepared_{factor}")
            if has_room(prepared, f"preparation at {factor}x", PREPARED * factor * one):
                synthetic_lizard(prepared.workspace, factor * cfg.regions, cfg.sizes)
                add(factor, preparation, prepared)
                if factor == 1:
                    prepared.workspace.rename(source.workspace)
                else:
                    shutil.rmtree(prepared.workspace)
            elif factor == 1:
                raise UserError(f"{cfg.workspace}: no room for the data at 1x: name another folder")
            many = replace(cfg, workspace=Path(name) / f"many_{factor}")
            if has_room(many, f"the other steps at {factor}x", 4 * factor * one * 128**2):
                multiply(source, many, factor)
                for step in (mining, pct, loading):
                    add(factor, step, many)
                shutil.rmtree(many.workspace)
    print(f"\n{'':>6}  {'step':<12} {'patches':>8}  {'s':>7}  {'ms a patch':>10}  {'MB':>5}")
    for row in rows:
        each = 1000 * row["seconds"] / row["patches"]
        print(
            f"{row['factor']:>5}x  {row['step']:<12} {row['patches']:>8}  {row['seconds']:>7.1f} "
            f" {each:>10.2f}  {row['anonymous_mb']:>5}"
        )
    figures.write(cfg.json)


if __name__ == "__main__":
    run(bench, BenchConfig())
