"""What the benchmarks share: interleaved timing, the limits of the machine, a synthetic Lizard."""

import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import torch

from config import Config, settings
from medood.data.files import write_json
from medood.data.images import write_png
from medood.models.checkpoints import versions
from medood.sample import draw_region, mat_bytes

LIZARD = (1016, 917)  # pixels of a typical region


@settings
class MeasureConfig(Config):
    """What every benchmark takes in addition to the settings."""

    rounds: int = 7
    """How many times each pair of versions is compared."""
    sizes: tuple[tuple[int, int], ...] = (LIZARD,) * 4
    """Heights and widths of the synthetic regions, in turn, in pixels."""
    json: Path | None = None
    """File to write the figures to."""


def interleave(rounds: int, **versions: Callable[[], object]) -> dict[str, list[float]]:
    """Time each version once per round, in turn, after one round that is not counted: seconds."""
    times: dict[str, list[float]] = {name: [] for name in versions}
    for count in range(rounds + 1):
        for name, version in versions.items():
            started = time.perf_counter()
            version()
            finish()
            if count:
                times[name].append(time.perf_counter() - started)
    return times


def finish() -> None:
    """Wait until the GPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass
class Figures:
    """The figures of a benchmark: each is printed at once, and all are written as JSON."""

    bench: str
    about: str
    content: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.content |= {"bench": self.bench, "about": self.about, "machine": machine()}
        self.content |= {"rows": [], "date": date.today().isoformat()}
        print(f"{self.about}\n{self.content['machine']['summary']}", flush=True)

    def compare(
        self, what: str, per: int, unit: str, reference: list[float], ours: list[float]
    ) -> None:
        """Add medians in milliseconds per unit, and the median and range of the rounds' ratios."""
        ratios = [a / b for a, b in zip(reference, ours, strict=True)]
        row = {"what": what, "unit": unit, "rounds": len(ratios)}
        row["reference_ms"], row["ours_ms"] = (
            1000 * statistics.median(times) / per for times in (reference, ours)
        )
        row["ratio"], row["low"], row["high"] = statistics.median(ratios), min(ratios), max(ratios)
        self.content["rows"].append(row)
        print(
            f"{what:<34} reference {row['reference_ms']:10.3f}   ours {row['ours_ms']:9.4f}"
            f"   ms per {unit:<6}   ratio {row['ratio']:8.1f} ({row['low']:.1f} to"
            f" {row['high']:.1f})",
            flush=True,
        )

    def note(self, name: str, value: object, message: str) -> None:
        """Add any other figure, and print it in words."""
        self.content[name] = value
        print(message, flush=True)

    def write(self, path: Path | None) -> None:
        """Write all figures to a file; do nothing if no file is named."""
        if path is not None:
            write_json(path, self.content)


def machine() -> dict:
    """Return the device, the threads and the versions of the libraries."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    known = {"device": device, "threads": torch.get_num_threads(), **versions()}
    summary = (
        f"{device}, {known['threads']} threads, Python {known['python']}, torch {known['torch']}"
    )
    return {**known, "summary": summary}


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def matrix_rate(device: torch.device, precision: torch.dtype, rounds: int) -> float:
    """Return the FLOP/s of a large matrix product, the best of some rounds.

    A multiplication with its addition counts as 2.
    """
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=precision) for _ in range(2))
    seconds = interleave(rounds, product=lambda: a @ b)["product"]
    return 2 * side**3 / min(seconds)


def rate_reached(flop: float, seconds: float, device: torch.device, precision: torch.dtype) -> str:
    """Return in words a computation's share of the rate of a large matrix product."""
    rate = matrix_rate(device, precision, rounds=3)
    return (
        f"{flop / 1e9:.1f} GFLOP: {flop / seconds / rate:.0%} of the {rate / 1e9:.0f} GFLOP/s of a"
        f" {str(precision).removeprefix('torch.')} matrix product"
    )


def synthetic_lizard(workspace: Path, regions: int, sizes: tuple[tuple[int, int], ...]) -> None:
    """Write synthetic regions in Lizard's layout.

    sizes: height and width of the regions, in turn. Only one region is drawn for each entry; the
    others are hard links to its files, or copies where the disk has no hard links.
    """
    for folder in ("Lizard_Images", "Labels"):
        (workspace / folder).mkdir(parents=True)
    for number in range(regions):
        paths, drawn = (
            (
                workspace / "Lizard_Images" / f"synthetic_{seed}.png",
                workspace / "Labels" / f"synthetic_{seed}.mat",
            )
            for seed in (number, number % len(sizes))
        )
        if number < len(sizes):
            region = draw_region(np.random.default_rng(number), *sizes[number])
            write_png(paths[0], region[0])
            paths[1].write_bytes(mat_bytes(*region[1:]))
        else:
            for source, path in zip(drawn, paths, strict=True):
                link(source, path)


def link(source: Path, path: Path) -> None:
    """Make `path` a hard link to a file, or a copy where the disk has no hard links."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)
