"""Pictures of what networks see."""

import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no window system is needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from medood.classes import CLASSES
from medood.data import Patches

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"  # told apart also by colour-blind readers
COLOURS = (BLUE, ORANGE, GREEN, "#cc79a7", "#56b4e9")
PALETTE = np.array([nucleus.colour for nucleus in CLASSES], np.uint8)  # (C, 3) RGB


def share_right(patches: Patches, predictions: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the share of pixels that each network calls right in each patch, (N,)."""
    return {
        name: (predicted == patches.masks).float().mean((1, 2))
        for name, predicted in predictions.items()
    }


def choose_examples(right: dict[str, Tensor]) -> dict[str, int]:
    """Return patches to show, chosen by rule: what is said of each, and its index.

    right: for each network, the share of pixels that it calls right in each patch, (N,).
    """
    if "Med-OoD" in right:
        change = right["Med-OoD"] - right["baseline"]
        best, middle, worst = "Med-OoD helps most", "median change", "Med-OoD hurts most"
    else:
        change = next(iter(right.values()))
        best, middle, worst = "most pixels right", "median", "fewest pixels right"
    order = change.argsort(stable=True).tolist()
    return {best: order[-1], middle: order[len(order) // 2], worst: order[0]}


def draw_examples(path: Path, title: str, patches: Patches, predictions: dict[str, Tensor]) -> None:
    """Draw image, truth and predictions of three test patches in rows, with the class colours.

    predictions: for each network, the class of each pixel, (N, P, P), in the order of `patches`.
    """
    right = share_right(patches, predictions)
    rows = choose_examples(right)
    columns = ["image", "truth", *predictions]
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=(2.4 * len(columns), 2.7 * len(rows) + 1), squeeze=False
    )
    for line, (said, index) in zip(axes, rows.items(), strict=True):
        masks = [patches.masks[index], *(predicted[index] for predicted in predictions.values())]
        line[0].imshow(patches.images[index].numpy())
        line[0].set_ylabel(f"{said}\n{patches.names[index]}", fontsize=7)
        for ax, mask in zip(line[1:], masks, strict=True):
            ax.imshow(PALETTE[mask.numpy()])
        for ax, name in zip(line[2:], predictions, strict=True):
            ax.set_xlabel(f"{100 * right[name][index]:.1f} % of pixels right", fontsize=7)
        for ax in line:
            ax.set_xticks([])
            ax.set_yticks([])
    for ax, name in zip(axes[0], columns, strict=True):
        ax.set_title(name)
    _legend_of_classes(figure)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    _save(figure, path)


def draw_contact_sheet(path: Path, title: str, patches: Patches, predicted: Tensor) -> None:
    """Draw OoD patches, each beside itself with what the network sees in it painted over.

    predicted: the class of each pixel, (N, P, P).
    """
    pairs = 4  # patches per row
    lines = -(-len(patches) // pairs)
    figure, axes = plt.subplots(
        lines, 2 * pairs, figsize=(2.5 * pairs, 1.5 * lines + 1), squeeze=False
    )
    for ax in axes.flat:
        ax.axis("off")
    for index, mask in enumerate(predicted.numpy()):
        image = patches.images[index].numpy()
        painted = np.where((mask > 0)[..., None], PALETTE[mask], image)
        line, column = divmod(index, pairs)
        for ax, picture in zip(axes[line, 2 * column :], (image, painted), strict=False):
            ax.imshow(picture)
        axes[line, 2 * column].set_title(
            f"{index + 1}. {patches.names[index]}: {(mask > 0).sum()} px", fontsize=6, loc="left"
        )
    _legend_of_classes(figure)
    figure.suptitle(f"{title}\nhardest OoD patches, and the nuclei seen in them", fontsize=9)
    figure.tight_layout(rect=(0, 0.5 / (1.5 * lines + 1), 1, 1))
    _save(figure, path)


def draw_false_pixels(path: Path, title: str, false: np.ndarray) -> None:
    """Draw how many OoD patches show how many false pixels of each class.

    false: integers (N, C - 1), the pixels of each patch that are called each foreground class.
    """
    figure, ax = plt.subplots(figsize=(6.4, 4.6))
    edges = np.geomspace(1, max(false.sum(1).max(initial=0), 1) + 1, 16)
    for kind, pixels, total in zip(CLASSES[1:], false.T, false.sum(0), strict=True):
        ax.hist(
            pixels[pixels > 0],
            edges,
            histtype="step",
            lw=1.8,
            color=np.array(kind.colour) / 255,
            label=f"{kind.name}: {total} pixels in {(pixels > 0).sum()} patches",
        )
    ax.set(xscale="log", xlabel="false pixels of the class in a patch", ylabel="OoD patches")
    ax.set_title(
        f"{title}\nno false pixel: {(false.sum(1) == 0).sum()} of {len(false)}", fontsize=9
    )
    ax.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.tight_layout()
    _save(figure, path)


def draw_pct_search(path: Path, title: str, grid: list[dict], best: dict, pnr_opt: float) -> None:
    """Draw pnr and its distance to the optimum over the grid, with the chosen point."""
    figure, ax = plt.subplots(figsize=(6.4, 4))
    pct = [row["pct"] for row in grid]
    ax.plot(pct, [row["pnr"] for row in grid], "o-", ms=4, color=BLUE, label="pnr")
    ax.plot(pct, [row["distance"] for row in grid], "s--", ms=4, color=ORANGE, label="distance")
    ax.axhline(pnr_opt, lw=1, color="grey", label=f"pnr_opt = {pnr_opt:g}")
    chosen = f"chosen: pct {best['pct']:g}, {best['ood_patches']} patches, pnr {best['pnr']:.3f}"
    ax.plot(best["pct"], best["pnr"], "*", ms=16, color=GREEN, label=chosen)
    ax.set(xlabel="pct, share of the ranked OoD patches", ylabel="pnr", ylim=(0, None))
    ax.set_title(title, fontsize=9)
    ax.legend(fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def draw_bars(path: Path, title: str, ylabel: str, bars: dict[str, dict[str, list[float]]]) -> None:
    """Draw groups of bars: bars[series][group] holds the single values, shown as dots, in percent.

    A group that a series lacks, or of which no value is known, has no bar.
    """
    groups = list(dict.fromkeys(group for of_series in bars.values() for group in of_series))
    width = 0.8 / len(bars)
    figure, ax = plt.subplots(figsize=(max(6.4, 0.9 + 0.45 * len(groups) * len(bars)), 4.4))
    for number, (series, of_group) in enumerate(bars.items()):
        colour = COLOURS[number % len(COLOURS)]
        label = series
        for place, group in enumerate(groups):
            known = [100 * value for value in of_group.get(group, []) if value is not None]
            if not known:
                continue
            x = place + (number - (len(bars) - 1) / 2) * width
            ax.bar(x, np.mean(known), 0.9 * width, color=colour, alpha=0.75, label=label)
            label = None  # once in the legend
            ax.plot([x] * len(known), known, ".", ms=4, color="black", alpha=0.6)
    ax.set_xticks(range(len(groups)), groups, rotation=25, ha="right", fontsize=8)
    ax.set_ylabel(ylabel)
    ax.set_title(title, fontsize=9)
    if len(bars) > 1:
        ax.legend(fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def draw_intervals(
    path: Path, title: str, xlabel: str, rows: dict[str, tuple[float, float, float]]
) -> None:
    """Draw differences with their intervals (mean, low, high), one below the other."""
    figure, ax = plt.subplots(figsize=(6.4, 1.2 + 0.35 * len(rows)))
    for place, (mean, low, high) in enumerate(rows.values()):
        clear = low > 0 or high < 0
        ax.plot([100 * low, 100 * high], [place, place], color=BLUE if clear else "grey", lw=2)
        ax.plot(100 * mean, place, "o", ms=6, color=BLUE if clear else "grey")
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(range(len(rows)), rows, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    ax.set_title(title, fontsize=9)
    figure.tight_layout()
    _save(figure, path)


def draw_pct_curve(
    path: Path, title: str, ylabel: str, curves: dict[str, list[tuple[float, float, list[float]]]]
) -> None:
    """Draw a score over the pnr: for each curve, points of (pct, pnr, single values)."""
    figure, ax = plt.subplots(figsize=(6.4, 4.4))
    for colour, (name, points) in zip(COLOURS, curves.items(), strict=False):
        points = sorted(points, key=lambda point: point[1])
        means = [100 * np.mean(values) for _, _, values in points]
        ax.plot([ratio for _, ratio, _ in points], means, "o-", ms=5, color=colour, label=name)
        for (pct, ratio, values), mean in zip(points, means, strict=True):
            ax.plot([ratio] * len(values), [100 * value for value in values], ".", ms=3, c=colour)
            note = f"{100 * pct:.0f} %"
            ax.annotate(note, (ratio, mean), xytext=(3, 5), textcoords="offset points", fontsize=7)
    ax.set(xlabel="pnr of the training set (at each point: pct)", ylabel=ylabel)
    ax.set_title(title, fontsize=9)
    ax.legend(fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def _legend_of_classes(figure: Figure) -> None:
    handles = [Patch(facecolor=np.array(c.colour) / 255, ec="grey", label=c.name) for c in CLASSES]
    figure.legend(handles=handles, loc="lower center", ncols=4, fontsize=8, frameon=False)


def _save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    figure.savefig(aside, format="png", dpi=110)
    plt.close(figure)
    os.replace(aside, path)
