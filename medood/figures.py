"""Pictures of what networks see."""

import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no window system is needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch
from torch import Tensor

from medood.classes import CLASSES
from medood.data import Patches

PALETTE = np.array([nucleus.colour for nucleus in CLASSES], np.uint8)  # (C, 3) RGB


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
    right = {
        name: (predicted == patches.masks).float().mean((1, 2))
        for name, predicted in predictions.items()
    }
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
    handles = [Patch(facecolor=np.array(c.colour) / 255, ec="grey", label=c.name) for c in CLASSES]
    figure.legend(handles=handles, loc="lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    aside = path.with_name(path.name + ".partial")
    figure.savefig(aside, format="png", dpi=110)
    plt.close(figure)
    os.replace(aside, path)
