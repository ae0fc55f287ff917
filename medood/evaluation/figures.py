"""Pictures of predictions, and plots of counts and scores."""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor

from medood.data.dataset import CHUNK, Patches
from medood.data.files import whole
from medood.data.labels import BACKGROUND_COLOUR, UNSURE, UNSURE_COLOUR

# colour-blind readers can distinguish the colours
BLUE = "#0072b2"
COLOURS = ("#e1be6a", "#5d3a9b", "#787878", "#1b1b1b", "#a6611a")  # of networks; no class has them
TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]  # of rates, in percent
QUALITY = 85  # of embedded pictures, in WebP's percent: small text is as readable as in the PNG
STYLE = {
    **{"font.size": 8, "axes.labelsize": 9, "figure.titlesize": 9, "xtick.labelsize": 8},
    "savefig.dpi": 110,
    "svg.hashsalt": "medood",  # the same picture: the same bytes
}

Classes = tuple[tuple[str, str], ...]  # name and colour of the foreground classes, as in config.py


@contextmanager
def canvas(path: Path, title: str, size: tuple[float, float] = (6.4, 4.4)) -> Iterator[Figure]:
    """Give an empty figure to draw on; it is written when the block ends, completely or not at all.

    path: its ending is .png or .svg. size: width and height in inches.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(size, layout="constrained")
        if title:
            figure.suptitle(title)
        yield figure
        dated = {"Date": None} if path.suffix == ".svg" else None  # SVG would contain the time
        with whole(path) as partial:
            figure.savefig(partial, format=path.suffix[1:], metadata=dated)


def share_right(patches: Patches, predicted: Tensor) -> Tensor:
    """Return the share of the sure pixels that are predicted correctly in each patch, (N,).

    It is NaN for a patch without a sure pixel. predicted: the class of each pixel, (N, P, P).
    """
    pairs = zip(predicted.split(CHUNK), patches.masks.split(CHUNK), strict=True)
    shares = [
        (called == truth).sum((1, 2)) / (truth != UNSURE).sum((1, 2)) for called, truth in pairs
    ]
    return torch.cat(shares)


def choose_examples(right: dict[str, Tensor]) -> dict[str, int]:
    """Return the index of three patches to show, by the rule that chooses each.

    right: for each network, the share of correct pixels in each patch, (N,). A patch of NaN is not
    shown.
    """
    first, *others = right.values()
    if others:
        change = others[0] - first
        best, middle, worst = "best change", "median change", "worst change"
    else:
        change = first
        best, middle, worst = "most pixels right", "median", "fewest pixels right"
    order = [i for i in change.argsort(stable=True).tolist() if not change[i].isnan()]
    return {best: order[-1], middle: order[len(order) // 2], worst: order[0]}


def draw_examples(
    path: Path,
    title: str,
    patches: Patches,
    predictions: dict[str, Tensor],
    classes: Classes,
    one: bool = False,
) -> None:
    """Draw image, ground truth and predictions of three test patches, with the class colours.

    predictions: for each network, the class of each pixel, (N, P, P), in the order of `patches`.
    Of two networks, a last column shows where only one of them is right. one: only the median.
    """
    right = {name: share_right(patches, called) for name, called in predictions.items()}
    rows = choose_examples(right)
    if one:
        rows = dict([[*rows.items()][1]])
    index = [*rows.values()]
    truth, called = patches.masks[index], {name: of[index] for name, of in predictions.items()}
    columns = {"image": patches.images[index], "ground truth": truth, **called}
    shares = {name: 100 * share[index] for name, share in right.items()}
    below = {name: [f"{x:.1f} % of pixels right" for x in of] for name, of in shares.items()}
    names, outcomes = [f"{rule}\n{patches.names[i]}" for rule, i in rows.items()], {}
    if len(predictions) == 2:
        first, second = predictions
        kinds = f"only {first} right", f"only {second} right", "both wrong"
        outcomes = dict(zip(kinds, COLOURS, strict=False))
        columns["where they differ"] = _outcome(truth, *called.values(), [*outcomes.values()])
        change = shares[second] - shares[first]
        below["where they differ"] = [f"{points:+.1f} points" for points in change]
    draw_rows(path, title, names, columns, classes, below, outcomes)


def _outcome(truth: Tensor, first: Tensor, second: Tensor, colours: list[str]) -> np.ndarray:
    """Return which of two networks is right, as RGB, floats (n, P, P, 3).

    colours: where only the first is, only the second, and neither; both: white.
    """
    of_first, of_second = first == truth, second == truth
    outcome = torch.where(of_first == of_second, 2 + of_first.int(), of_second.int())
    shades = to_rgba_array([*colours, "white", UNSURE_COLOUR])[:, :3]
    return shades[outcome.where(truth != UNSURE, len(shades) - 1)]


def draw_rows(
    path: Path,
    title: str,
    names: Sequence[str],
    columns: dict[str, Sequence],
    classes: Classes,
    below: dict[str, list[str]] | None = None,
    more_colours: dict[str, str] | None = None,
) -> None:
    """Draw pictures in columns, by the title of each, and in rows with names.

    columns: RGB (h, w, 3), or shades, floats (h, w) in 0..1, or the class of each pixel, integers.
    below: texts under the pictures of a column. more_colours: for the legend, by their meaning.
    """
    colours = [BACKGROUND_COLOUR, *(colour for _, colour in classes)]
    masks = []
    with canvas(path, title, (2.1 * len(columns), 2.4 * len(names) + 1)) as figure:
        axes = figure.subplots(len(names), len(columns), squeeze=False)
        for line, of_column, pictures in zip(axes.T, columns, columns.values(), strict=True):
            line[0].set_title(of_column)
            texts = (below or {}).get(of_column, [""] * len(names))
            for ax, picture, text in zip(line, map(np.asarray, pictures), texts, strict=True):
                ax.set(xticks=[], yticks=[], xlabel=text)
                if picture.ndim == 3 or picture.dtype.kind == "f":
                    ax.imshow(picture, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
                else:
                    show_classes(ax, picture, colours)
                    masks.append(torch.from_numpy(picture.ravel()))
        for ax, name in zip(axes[:, 0], names, strict=True):
            ax.set_ylabel(name)
        if masks:
            name_colours(figure, [*classes, *(more_colours or {}).items()], torch.cat(masks))


def draw_confusion(path: Path, matrices: dict[str, np.ndarray], names: tuple[str, ...]) -> None:
    """Draw the confusion matrix of each network, pixels (C, C), in percent of each true class."""
    with canvas(path, "", (4.7 * len(matrices), 4.7)) as figure:
        axes = figure.subplots(1, len(matrices), squeeze=False)[0]
        for ax, (network, matrix) in zip(axes, matrices.items(), strict=True):
            true = matrix.sum(1)
            absent = [" (absent)" if total == 0 else "" for total in true]
            share = 100 * matrix / true.clip(1)[:, None]
            ax.imshow(share, cmap="Blues", vmin=0, vmax=100)
            for (row, column), value in np.ndenumerate(share):
                if true[row]:
                    ink = "white" if value > 55 else "black"
                    text = f"{value:.0f}" if value >= 1 or value == 0 else "<1"
                    ax.text(column, row, text, ha="center", va="center", color=ink)
            ax.set_xticks(range(len(names)), names, rotation=40, ha="right")
            ax.set_yticks(range(len(names)), map(str.__add__, names, absent))
            ax.set(xlabel="predicted", ylabel="ground truth", title=network)


def draw_curves(path: Path, curves: dict[str, list[dict[str, list[float]]]]) -> None:
    """Draw the logs of trainings over their epochs: for each network, the columns of each fold."""
    logged = {column for logs in curves.values() for log in logs for column in log}
    shown = [column for column in ("loss", "val_miou") if column in logged]
    with canvas(path, "", (6.4, 3.4 * len(shown))) as figure:
        for ax, column in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
            for colour, (network, logs) in zip(COLOURS, curves.items(), strict=False):
                for log in logs:
                    if column in log:  # trainings of different networks may differ in it
                        ax.plot(log["epoch"], log[column], c=colour, marker=".", ms=4)
                ax.plot([], [], c=colour, marker=".", ms=4, label=network)  # once in the legend
            ax.set(xlabel="epoch", ylabel=column)
            ax.legend()


def draw_pct_search(path: Path, estimates: dict[int, dict], pnr_opt: float) -> None:
    """Draw the pnr over the grid of shares, a line per fold, with the chosen points.

    estimates: by fold, the content of HardOoD/<fold>_<model>_pct.json.
    """
    with canvas(path, "", (6.4, 4)) as figure:
        ax = figure.subplots()
        for colour, (fold, estimate) in zip(cycle(COLOURS), estimates.items(), strict=False):
            pct, ratios = zip(*((row["pct"], row["pnr"]) for row in estimate["grid"]), strict=True)
            ax.plot(pct, ratios, "o-", ms=4, c=colour, label=f"fold {fold}")
            ax.plot(estimate["pct"], estimate["pnr"], "*", ms=16, c=colour)
        ax.axhline(pnr_opt, lw=1, c="grey", label=f"pnr_opt = {pnr_opt:g}")
        ax.set(xlabel="pct, share of the ranked OoD patches", ylabel="pnr", ylim=(0, None))
        ax.legend()


def draw_calibration(path: Path, said: dict[str, np.ndarray]) -> None:
    """Draw how often pixels are foreground, by the predicted probability of foreground.

    said: for each network, (3, bins), as `calibration` of ranking.py gives it. A dot is a bin with
    pixels, larger if it has more.
    """
    with canvas(path, "", (5.2, 4.8)) as figure:
        ax = figure.subplots()
        ax.plot([0, 100], [0, 100], c="grey", lw=0.8, ls="--")
        for colour, (network, bins) in zip(COLOURS, said.items(), strict=False):
            pixels, probability, foreground = bins[:, bins[0] > 0]
            x, y = 100 * probability / pixels, 100 * foreground / pixels
            ax.plot(x, y, c=colour, lw=1.5, label=network)
            ax.scatter(x, y, 8 + 120 * pixels / pixels.sum(), color=colour, alpha=0.7)
        ax.set(xlabel="probability of foreground, percent", aspect="equal")
        ax.set(ylabel="pixels that are foreground, percent", xlim=(0, 100), ylim=(0, 100))
        ax.legend()


def draw_rates(
    path: Path,
    rates: dict[str, list[tuple[np.ndarray, np.ndarray]]],
    chosen: dict[str, list[tuple[float, float]]],
) -> None:
    """Draw fg_to_bg against bg_to_fg over all thresholds: a line per fold, and their mean.

    rates: for each network, both rates at the thresholds, by fold, as `curve` of ranking.py gives
    them; the mean is taken at equal bg_to_fg. chosen: both rates at argmax, by fold, marked.
    """
    points = 100 * np.array([point for of_network in chosen.values() for point in of_network])
    low, high = np.clip([min(1, 0.7 * points.min()), max(50, 1.4 * points.max())], 0.1, 100)
    at = np.geomspace(low, high, 200)
    with canvas(path, "", (6.4, 5.4)) as figure:
        ax = figure.subplots()
        for colour, (network, folds) in zip(COLOURS, rates.items(), strict=False):
            lines = [np.interp(at, 100 * f[::-1], 100 * m[::-1]) for m, f in folds]
            for line in lines if len(lines) > 1 else []:
                ax.plot(at, line, c=colour, lw=0.7, alpha=0.6)
            ax.plot(at, np.mean(lines, 0), c=colour, lw=2, label=network)
            missed, false = 100 * np.array(chosen[network]).T.clip(low / 100)
            ax.plot(false, missed, "o", c=colour, ms=6, mec="white")
        ax.plot([], [], "o", c="grey", ms=6, mec="white", label="at argmax")
        ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
        ticks = [tick for tick in TICKS if low <= tick <= high]
        ax.set_xticks(ticks, ticks)
        ax.set_yticks(ticks, ticks)
        ax.minorticks_off()
        ax.set(xlabel="bg_to_fg, percent", ylabel="fg_to_bg, percent")
        ax.grid(lw=0.4, alpha=0.5)
        ax.legend()


def draw_bars(path: Path, title: str, ylabel: str, bars: dict[str, dict[str, list[float]]]) -> None:
    """Draw groups of bars: bars[series][group] has the single values, shown as dots, in percent.

    A group that a series lacks, or without a known value, has no bar.
    """
    groups = list(dict.fromkeys(group for of_series in bars.values() for group in of_series))
    width = 0.8 / len(bars)
    with canvas(path, title, (max(6.4, 0.9 + 0.45 * len(groups) * len(bars)), 4.4)) as figure:
        ax = figure.subplots()
        for number, (series, of_group) in enumerate(bars.items()):
            places = np.arange(len(groups)) + (number - (len(bars) - 1) / 2) * width
            every = [of_group.get(group, []) for group in groups]
            known = [[100 * value for value in values if value is not None] for values in every]
            means = [np.mean(values) if values else np.nan for values in known]
            turn, which = divmod(number, len(COLOURS))  # the same colours again are hatched
            style = {"color": COLOURS[which], "hatch": "///" * turn, "edgecolor": "white"}
            ax.bar(places, means, 0.9 * width, **style, alpha=0.75, label=series)
            for place, values in zip(places, known, strict=True):
                ax.plot([place] * len(values), values, ".", ms=4, color="black", alpha=0.6)
        ax.set_xticks(range(len(groups)), groups, rotation=25, ha="right")
        ax.set_ylabel(ylabel)
        if len(bars) > 1:
            ax.legend()


def draw_intervals(
    path: Path, title: str, xlabel: str, rows: dict[str, tuple[float, float, float]]
) -> None:
    """Draw differences with their intervals (mean, low, high), one per row; grey if n.s."""
    with canvas(path, title, (6.4, 1.2 + 0.35 * len(rows))) as figure:
        ax = figure.subplots()
        for place, (mean, low, high) in enumerate(rows.values()):
            colour = BLUE if low > 0 or high < 0 else "grey"
            ax.plot([100 * low, 100 * high], [place, place], color=colour, lw=2)
            ax.plot(100 * mean, place, "o", ms=6, color=colour)
        ax.axvline(0, color="black", lw=0.8)
        ax.set_yticks(range(len(rows)), rows)
        ax.invert_yaxis()
        ax.set_xlabel(xlabel)


def show_classes(ax: Axes, values: np.ndarray, colours: list[str]) -> None:
    """Show integers (H, W), each in the colour of its place in `colours`; UNSURE in its own."""
    ax.imshow(
        values,
        ListedColormap(colours).with_extremes(over=UNSURE_COLOUR),
        vmin=0,
        vmax=len(colours) - 1,
        interpolation="nearest",  # a mixture of two classes would look like a third
    )


def name_colours(
    figure: Figure, named: Iterable[tuple[str, str]], truth: Tensor | None = None
) -> None:
    """Add a legend below a figure: background and the colours of `named` (name, colour).

    truth: the class masks in the figure; if they have unsure pixels, their colour is named too.
    """
    shown = [("background", BACKGROUND_COLOUR), *named]
    if truth is not None and (truth == UNSURE).any():
        shown.append(("unsure", UNSURE_COLOUR))
    handles = [Patch(facecolor=colour, ec="grey", label=name) for name, colour in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)


def embed(path: Path) -> str:
    """Return a picture as a data URL, so that the page needs no other file.

    A PNG becomes a WebP, which takes a seventh of the space for photographs.
    """
    kind, content = "svg+xml", path.read_bytes()
    if path.suffix == ".png":
        buffer = io.BytesIO()
        with Image.open(path) as picture:
            picture.convert("RGB").save(buffer, "WEBP", quality=QUALITY)
        kind, content = "webp", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
