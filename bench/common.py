"""What the benchmarks share: interleaved timing and a synthetic Lizard."""

import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from medood.images import write_png
from medood.sample import draw_region, mat_bytes

LIZARD = (1016, 917)  # pixels of a typical region


def interleave(rounds: int, **versions: Callable[[], object]) -> dict[str, list[float]]:
    """Time each version once per round, in turn, after one round that is not counted: seconds."""
    times: dict[str, list[float]] = {name: [] for name in versions}
    for count in range(rounds + 1):
        for name, version in versions.items():
            started = time.perf_counter()
            version()
            if count:
                times[name].append(time.perf_counter() - started)
    return times


def report(what: str, per: int, unit: str, reference: list[float], ours: list[float]) -> None:
    """Print medians in milliseconds per unit, and the ratio's median and range over the rounds."""
    ratios = [a / b for a, b in zip(reference, ours, strict=True)]
    a, b = (1000 * statistics.median(times) / per for times in (reference, ours))
    print(
        f"{what:<24} reference {a:9.2f}   ours {b:8.2f}   ms per {unit:<6}"
        f"   ratio {statistics.median(ratios):6.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
    )


def machine() -> str:
    """Return what the figures were measured on, in one line."""
    return (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads,"
        f" Python {platform.python_version()}, torch {torch.__version__}"
    )


def synthetic_lizard(
    workspace: Path, regions: int, sizes: tuple[tuple[int, int], ...] = (LIZARD,) * 4
) -> None:
    """Write synthetic regions of these heights and widths in turn; each size is drawn once.

    A region that is drawn already is a second name of its files, where the disk knows such names.
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
    """Give a file a second name, or copy it where the disk knows no such thing."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)
