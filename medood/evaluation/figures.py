"""Pictures of what networks see."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no window system is needed
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from medood.data.dataset import CHUNK, Patches
from medood.data.files import whole
from medood.data.labels import BACKGROUND_COLOUR, palette

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"  # told apart also by colour-blind readers
# of networks, and of where only one of two is right: told apart from the colours of the classes
GAINED, LOST, BOTH_WRONG = (93, 58, 155), (225, 190, 106), (120, 120, 120)  # RGB
COLOURS = ("#e1be6a", "#5d3a9b", "#787878", "#1b1b1b", "#a6611a")
matplotlib.rcParams["svg.hashsalt"] = "medood"  # the same picture: the same bytes

Classes = tuple[tuple[str, str], ...]  # name and colour of the foreground classes, as in config.py


def share_right(patches: Patches, predictions: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the share of pixels that each network calls right in each patch, (N,)."""

    def share(predicted: Tensor) -> Tensor:
        pairs = zip(predicted.split(CHUNK), patches.masks.split(CHUNK), strict=True)
        return torch.cat([(part == truth).float().mean((1, 2)) for part, truth in pairs])

    return {name: share(predicted) for name, predicted in predictions.items()}


def choose_examples(right: dict[str, Tensor]) -> dict[str, int]:
    """Return patches to show, chosen by rule: what is said of each, and its index.

    right: for each network, the share of pixels that it calls right in each patch, (N,).
    """
    first, *others = right.values()
    if others:
        change = others[0] - first
        best, middle, worst = "best change", "median change", "worst change"
    else:
        change = first
        best, middle, worst = "most pixels right", "median", "fewest pixels right"
    order = change.argsort(stable=True).tolist()
    return {best: order[-1], middle: order[len(order) // 2], worst: order[0]}


def draw_examples(
    path: Path, title: str, patches: Patches, predictions: dict[str, Tensor], classes: Classes
) -> None:
    """Draw image, truth and predictions of three test patches in rows, with the class colours.

    predictions: for each network, the class of each pixel, (N, P, P), in the order of `patches`.
    Of two networks, a last column shows where only one of them is right.
    """
    right = share_right(patches, predictions)
    rows = choose_examples(right)
    columns, colours = ["image", "truth", *predictions], palette(classes)
    if len(predictions) == 2:
        columns.append("where they differ")
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=(2.4 * len(columns), 2.7 * len(rows) + 1), squeeze=False
    )
    for line, (said, index) in zip(axes, rows.items(), strict=True):
        masks = [patches.masks[index], *(predicted[index] for predicted in predictions.values())]
        line[0].imshow(patches.images[index].numpy())
        if len(predictions) == 2:
            before, after = (100 * float(shares[index]) for shares in right.values())
            said = f"{said}: {after - before:+.1f} points"
        line[0].set_ylabel(f"{said}\n{patches.names[index]}", fontsize=7)
        for ax, mask in zip(line[1:], masks, strict=False):
            ax.imshow(colours[mask.numpy()])
        if len(predictions) == 2:
            line[-1].imshow(difference(*masks))
        for ax, name in zip(line[2:], predictions, strict=False):
            ax.set_xlabel(f"{100 * right[name][index]:.1f} % of pixels right", fontsize=7)
        for ax in line:
            ax.set_xticks([])
            ax.set_yticks([])
    for ax, name in zip(axes[0], columns, strict=True):
        ax.set_title(name, fontsize=10)
    shown = []
    if len(predictions) == 2:
        first, second = predictions
        of_difference = {f"only {second} right": GAINED, f"only {first} right": LOST}
        of_difference["both wrong"] = BOTH_WRONG
        shown = [(name, np.array(colour) / 255) for name, colour in of_difference.items()]
    _legend_of_classes(figure, classes, shown)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    save(figure, path)


def difference(truth: Tensor, first: Tensor, second: Tensor) -> np.ndarray:
    """Return where only one of two networks is right, RGB uint8 (P, P, 3), white where both are."""
    right = (first == truth).numpy(), (second == truth).numpy()
    picture = np.full((*truth.shape, 3), 255, np.uint8)
    picture[~right[0] & right[1]] = GAINED
    picture[right[0] & ~right[1]] = LOST
    picture[~right[0] & ~right[1]] = BOTH_WRONG
    return picture


def draw_confusion(path: Path, matrices: dict[str, np.ndarray], names: tuple[str, ...]) -> None:
    """Draw the confusion matrix of each network, pixels (C, C), in percent of each true class."""
    figure, axes = plt.subplots(1, len(matrices), figsize=(4.7 * len(matrices), 4.7), squeeze=False)
    for ax, (network, matrix) in zip(axes[0], matrices.items(), strict=True):
        true = matrix.sum(1, keepdims=True)
        share = 100 * np.divide(matrix, true, out=np.zeros(matrix.shape), where=true > 0)
        ax.imshow(share, cmap="Blues", vmin=0, vmax=100)
        for (row, column), value in np.ndenumerate(share):
            if true[row, 0]:
                ink = "white" if value > 55 else "black"
                text = f"{value:.0f}" if value >= 1 or value == 0 else "<1"
                ax.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
        absent = [
            name if total else f"{name} (absent)"
            for name, total in zip(names, true[:, 0], strict=True)
        ]
        ax.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
        ax.set_yticks(range(len(names)), absent, fontsize=8)
        ax.set(xlabel="called", ylabel="truth")
        ax.set_title(network, fontsize=10)
    figure.tight_layout()
    save(figure, path)


def draw_curves(path: Path, curves: dict[str, list[dict[str, list[float]]]]) -> None:
    """Draw the logs of trainings over their epochs: for each network, the columns of each fold."""
    every = [log for logs in curves.values() for log in logs]
    shown = ["loss", *(["val_miou"] if any("val_miou" in log for log in every) else [])]
    figure, axes = plt.subplots(len(shown), figsize=(6.4, 3.4 * len(shown)), squeeze=False)
    for ax, column in zip(axes[:, 0], shown, strict=True):
        for colour, (network, logs) in zip(COLOURS, curves.items(), strict=False):
            for number, log in enumerate(logs):
                if column not in log:
                    continue
                label = network if not number else None  # once in the legend
                ax.plot(log["epoch"], log[column], color=colour, marker=".", ms=4, label=label)
        ax.set(xlabel="epoch", ylabel=column)
        ax.legend(fontsize=8)
    figure.tight_layout()
    save(figure, path)


def draw_contact_sheet(
    path: Path, title: str, patches: Patches, predicted: Tensor, classes: Classes
) -> None:
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
        painted = np.where((mask > 0)[..., None], palette(classes)[mask], image)
        line, column = divmod(index, pairs)
        for ax, picture in zip(axes[line, 2 * column :], (image, painted), strict=False):
            ax.imshow(picture)
        axes[line, 2 * column].set_title(
            f"{index + 1}. {patches.names[index]}: {(mask > 0).sum()} px", fontsize=6, loc="left"
        )
    _legend_of_classes(figure, classes)
    figure.suptitle(f"{title}\nhardest OoD patches, and the nuclei seen in them", fontsize=9)
    figure.tight_layout(rect=(0, 0.5 / (1.5 * lines + 1), 1, 1))
    save(figure, path)


def draw_false_pixels(path: Path, title: str, false: np.ndarray, classes: Classes) -> None:
    """Draw how many OoD patches show how many false pixels of each class.

    false: integers (N, C - 1), the pixels of each patch that are called each foreground class.
    """
    figure, ax = plt.subplots(figsize=(6.4, 4.6))
    edges = np.geomspace(1, max(false.sum(1).max(initial=0), 1) + 1, 16)
    for (name, colour), pixels in zip(classes, false.T, strict=True):
        seen = pixels[pixels > 0]
        label = f"{name}: false pixels {seen.sum()}, patches {len(seen)}"
        if len(seen):
            ax.hist(seen, edges, histtype="step", lw=1.8, color=colour, label=label)
        else:
            ax.plot([], [], lw=1.8, color=colour, label=f"{name}: not seen")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xscale="log", xlabel="false pixels of the class in a patch", ylabel="OoD patches")
    ax.set_title(
        f"{title}\nno false pixel: {(false.sum(1) == 0).sum()} of {len(false)}", fontsize=9
    )
    ax.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    figure.tight_layout()
    save(figure, path)


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
    save(figure, path)


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
    save(figure, path)


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
    save(figure, path)


def _legend_of_classes(figure: Figure, classes: Classes, others: Sequence[tuple] = ()) -> None:
    """Name the colours of the classes, and of `others` (name, colour), below a figure."""
    shown = [("background", BACKGROUND_COLOUR), *classes, *others]
    handles = [Patch(facecolor=colour, ec="grey", label=name) for name, colour in shown]
    figure.legend(handles=handles, loc="lower center", ncols=5, fontsize=8, frameon=False)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, as its name says, whole or not at all."""
    dated = {"Date": None} if path.suffix == ".svg" else None  # SVG would hold the time
    with whole(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=110, metadata=dated)
    plt.close(figure)
