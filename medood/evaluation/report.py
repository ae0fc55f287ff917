"""The report of a test: reports/<model>/index.html, one file that needs nothing else.

It is written from what test.py counted and from what the steps before left in the workspace: logs,
the search for pct, pictures of the OoD patches, the settings beside the weights.
"""

import base64
import os
import platform
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from config import Config, UserError
from medood.data.dataset import count_classes
from medood.data.files import TIMES, read_table, write_text
from medood.data.folds import read_fold, region_of
from medood.data.labels import BACKGROUND_COLOUR
from medood.data.ood_set import read_estimate
from medood.data.records import record_of
from medood.data.workspace import (
    NUCLEI_LIST,
    SAMPLE_NAME,
    data_name,
    model_folder,
    pct_path,
    ranking_path,
)
from medood.evaluation.figures import (
    draw_bars,
    draw_confusion,
    draw_curves,
    draw_examples,
    draw_intervals,
)
from medood.evaluation.model_card import TEMPLATES
from medood.evaluation.statistics import Difference
from medood.evaluation.tables import SCORES, spread
from medood.evaluation.testing import Tested

MEANING = {
    "miou": "mean IoU over the foreground classes that occur in the test patches",
    "dsc": "the same mean of Dice",
    "miou_paper": "IoU of the whole mask with background, patch by patch, as the paper measures it",
    "dsc_paper": "the same with Dice; both follow pixel accuracy, so read them from their floor",
    "fg_to_bg": "share of foreground pixels called background",
    "bg_to_fg": "share of background pixels called foreground",
    "fg_to_fg": "share of foreground pixels called another class",
}
LOWER_IS_BETTER = ("fg_to_bg", "bg_to_fg", "fg_to_fg")


@dataclass(frozen=True)
class Comparison:
    """What test.py found about one network, or about two on the same patches."""

    cfg: Config
    tests: dict[int, Tested]  # by fold
    folders: dict[int, dict[str, Path]]  # by fold and network: its checkpoint
    runs: dict[int, dict[str, dict]]  # by fold and network: its run.json, pnr and pct
    labels: dict[str, str]  # by network: what people read
    gains: dict[str, Difference]  # by score: second network less first; {} if there is one
    header: list[str]  # of the table of scores
    rows: list[list[str]]
    title: str  # of the table: what, and on which data

    @property
    def is_med_ood(self) -> bool:
        """Say whether these are the workspace's own baseline and Med-OoD networks."""
        return all(
            model_folder(self.cfg, fold, ood=True) in of_fold.values()
            for fold, of_fold in self.folders.items()
        )


def verdict(gains: dict[str, Difference], ours: str, theirs: str) -> tuple[str, list[str]]:
    """Return the answer in a sentence, and what is behind it: is `ours` better than `theirs`?

    gains: ours less theirs, by score, as fractions.
    """
    miou = gains["miou"]
    points = f"{miou.points()} points of mean IoU"
    if np.isnan(miou.mean):
        answer = "No foreground class occurs in the test patches, so nothing can be said."
    elif np.isnan(miou.low):
        answer = f"One region was tested, so no interval can be given: {points}."
    elif miou.holds_zero:
        answer = f"No difference is shown between {ours} and {theirs}: {points}; this holds zero."
    elif miou.mean > 0:
        answer = f"{ours} is better than {theirs}: {points}."
    else:
        answer = f"{ours} is worse than {theirs}: {points}."
    claims = [_claim(name, gains[name], ours) for name in ("fg_to_bg", "bg_to_fg")]
    clear = {name: gain for name, gain in gains.items() if name.startswith("IoU ")}
    clear = {name: gain for name, gain in clear.items() if gain.low > 0 or gain.high < 0}
    if clear:
        listed = "; ".join(f"{name} {gain.points()}" for name, gain in clear.items())
        claims.append(f"Classes whose interval leaves zero out, in points: {listed}.")
    return answer, claims


def floor_caveat(tests: dict[int, Tested], labels: dict[str, str]) -> str | None:
    """Return which networks score below the floor, in a sentence, if any does."""
    mean = {
        name: np.mean([test.scores[name]["miou_paper"] for test in tests.values()])
        for name in (*labels, "all_background")
    }
    below = [label for name, label in labels.items() if mean[name] < mean["all_background"]]
    if not below:
        return None
    return (
        f"By miou_paper, a network that answers background everywhere is better than"
        f" {' and '.join(below)}: too short a training, or too few patches?"
    )


def _claim(name: str, gain: Difference, ours: str) -> str:
    """Return what happens to one kind of confusion, in a sentence."""
    what = {"fg_to_bg": "foreground called background", "bg_to_fg": "background called foreground"}
    if np.isnan(gain.mean):
        return f"{what[name].capitalize()}: not defined here."
    text = f"{what[name].capitalize()} ({name}): {gain.points()} points"
    if np.isnan(gain.low):
        return f"{text}."
    if gain.holds_zero:
        return f"{text}: no difference shown."
    return f"{text}: {ours} does this {'more' if gain.mean > 0 else 'less'}."


def steps_caveat(pairs: list[tuple[dict, dict]], ours: str, theirs: str) -> str | None:
    """Return how many more optimiser steps `ours` took than `theirs`, in a sentence, if it did.

    pairs: for each fold, what run.json says of theirs and of ours.
    """
    try:
        more = [_steps(second) / _steps(first) - 1 for first, second in pairs]
    except (KeyError, TypeError, ZeroDivisionError):  # a network from elsewhere
        return None
    if abs(np.mean(more)) < 0.01:
        return None
    word = "more" if np.mean(more) > 0 else "fewer"
    return (
        f"{ours} took about {100 * abs(np.mean(more)):.0f} % {word} optimiser steps than {theirs}."
        " This comparison does not tell what comes of the patches and what of the steps:"
        " studies/controls.py does."
    )


def _steps(run: dict) -> float:
    settings = run["settings"]
    patches = run["id_patches"] + run["ood_patches"]
    return patches * settings["epochs"] / settings["batch_size"]


def describe_data(cfg: Config, folds: list[int]) -> dict:
    """Return the tables of the data: a row for each fold, and one for each class."""
    parts = {fold: read_fold(cfg, fold) for fold in folds}
    names = sorted({name for part in parts.values() for side in part for name in side})
    pixels = dict(zip(names, count_classes(cfg, names), strict=True))
    by_fold = []
    for fold, (train, val, test) in parts.items():
        shared = {region_of(name) for name in train + val} & {region_of(name) for name in test}
        regions = len({region_of(name) for name in test})
        by_fold.append([fold, len(train), len(val), len(test), regions, len(shared)])
    nuclei = _nuclei_of_classes(cfg, parts)
    header = ["class", "pixels"] + (["nuclei"] if nuclei else [])
    for fold in folds:
        header += [f"{fold} train", f"{fold} test"] + ([f"{fold} nuclei"] if nuclei else [])
    total = np.sum(list(pixels.values()), axis=0)
    by_class = []
    for value, name in enumerate(cfg.class_names):
        row = [name, f"{100 * total[value] / total.sum():.2f} %"]
        row += [nuclei["all"][value] if value else "-"] if nuclei else []
        for fold, part in parts.items():
            row += [sum(pixels[n][value] > 0 for n in part.train + part.val)]
            row += [sum(pixels[n][value] > 0 for n in part.test)]
            row += [nuclei[fold][value] if value else "-"] if nuclei else []
        by_class.append(row)
    return {
        "patches": len(names),
        "regions": len({region_of(name) for name in names}),
        "by_fold": by_fold,
        "shared": any(row[-1] for row in by_fold),
        "header": header,
        "by_class": by_class,
    }


def _nuclei_of_classes(cfg: Config, parts: dict) -> dict:
    """Return the nuclei of each class, in all patches and in each fold's test; {} if unknown."""
    path = cfg.workspace / "Mask_Patchs" / NUCLEI_LIST
    if not path.exists():
        return {}
    try:
        rows = [(row["img_name"], int(row["class"])) for row in read_table(path)]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged: remove Mask_Patchs to have it made anew") from None
    found = {"all": Counter(value for _, value in rows)}
    for fold, part in parts.items():
        test = set(part.test)
        found[fold] = Counter(value for name, value in rows if name in test)
    return found


def read_times(workspace: Path, model_name: str) -> list[tuple[str, float]]:
    """Return what each step of this network took last, in seconds."""
    path = workspace / TIMES
    if not path.exists():
        return []
    last = {}
    for row in read_table(path):
        with suppress(KeyError, TypeError, ValueError):  # a spreadsheet may have spoilt a line
            last[row["step"]] = float(row["seconds"])
    ending = (f"_{model_name}", f"_{model_name}_ood")
    return [(s, seconds) for s, seconds in last.items() if "_" not in s or s.endswith(ending)]


def machine() -> str:
    """Return what this computer is, in words."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{gpu}"


def _in_words(value: object) -> str:
    """Return a setting as it is read: the items of a list one after the other."""
    return ", ".join(map(_in_words, value)) if isinstance(value, list) else str(value)


def embed(path: Path) -> str:
    """Return a picture as a data address, so that the page needs no other file."""
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _read_log(folder: Path) -> dict[str, list[float]] | None:
    path = folder / "log.csv"
    if not path.is_file():
        return None
    try:
        rows = read_table(path)
        log = {name: [float(row[name]) for row in rows] for name in rows[0]}
    except (IndexError, KeyError, TypeError, ValueError):  # of a network from elsewhere
        return None
    return log if {"epoch", "loss"} <= log.keys() else None


def draw_report(found: Comparison, out: Path) -> dict[str, list[tuple[Path, str]]]:
    """Draw the figures into `out`; return them, and those of earlier steps, with their captions."""
    cfg, tests = found.cfg, found.tests
    first, test = next(iter(tests.items()))
    figures: dict[str, list[tuple[Path, str]]] = {}
    shown = {name: gain for name, gain in found.gains.items() if name in SCORES}
    shown = {name: gain for name, gain in shown.items() if not np.isnan(gain.low)}
    if shown:
        theirs, ours = found.labels.values()
        draw_intervals(out / "differences.svg", "", f"{ours} less {theirs}, points", shown)
        caption = "Differences with their 95 % intervals; grey ones hold zero."
        figures["differences"] = [(out / "differences.svg", caption)]

    bars, matrices, logs = {}, {}, {}
    for name, label in found.labels.items():
        scores = [test.scores[name] for test in tests.values()]
        bars[label] = {
            kind: [of_fold["iou"][value] for of_fold in scores]
            for value, kind in enumerate(cfg.class_names)
        }
        matrices[label] = np.sum([of_fold["confusion"] for of_fold in scores], axis=0)
        trained = dict.fromkeys(of_fold[name] for of_fold in found.folders.values())
        logs[label] = [log for folder in trained if (log := _read_log(folder))]
    draw_bars(out / "classes.svg", "", "IoU, percent", bars)
    caption = "IoU of each class over the whole test fold; a dot is a fold."
    figures["classes"] = [(out / "classes.svg", caption)]
    draw_confusion(out / "confusion.svg", matrices, cfg.class_names)
    caption = "Of the pixels of each true class (a row), how many percent are called what."
    figures["confusion"] = [(out / "confusion.svg", caption)]
    if all(logs.values()):
        draw_curves(out / "curves.svg", logs)
        figures["curves"] = [(out / "curves.svg", "Loss over the epochs; a line is a training.")]

    seen = {label: test.predictions[name] for name, label in found.labels.items()}
    title = f"{data_name(cfg.workspace)}, fold {first}"
    draw_examples(out / "examples.png", title, test.patches, seen, cfg.classes)
    caption = "Test patches chosen by rule: with the best, the median and the worst"
    caption += " change in pixels right." if len(seen) == 2 else " share of pixels right."
    figures["examples"] = [(out / "examples.png", caption)]
    if found.is_med_ood:
        for kind, path_of, ending, caption in (
            ("pct", pct_path, ".png", "The search for the share of OoD patches, fold"),
            ("hardest", ranking_path, "_hardest.png", "The hardest OoD patches of fold"),
            ("false", ranking_path, "_false_pixels.png", "False pixels in OoD patches, fold"),
        ):
            stems = {fold: path_of(cfg, fold).with_suffix("") for fold in tests}
            drawn = {fold: stem.with_name(stem.name + ending) for fold, stem in stems.items()}
            figures[kind] = [(p, f"{caption} {fold}.") for fold, p in drawn.items() if p.exists()]
    return figures


def write_report(found: Comparison, out: Path) -> None:
    """Write index.html and its figures into the folder `out`."""
    cfg, labels = found.cfg, list(found.labels.values())
    answer, claims = None, []
    if found.gains:
        theirs, ours = labels
        answer, claims = verdict(found.gains, ours, theirs)
        pairs = [tuple(of_fold[name] for name in found.labels) for of_fold in found.runs.values()]
        if caveat := steps_caveat(pairs, ours, theirs):
            claims.append(caveat)
        if len({path for of_fold in found.folders.values() for path in of_fold.values()}) == 2:
            claims.append("One training of each: the interval leaves out chance between trainings.")
    else:
        (only,) = found.labels
        mious = [test.scores[only]["miou"] for test in found.tests.values()]
        answer = f"{labels[0]}: {spread(mious)} % mean IoU; one network, so nothing is compared."
    if caveat := floor_caveat(found.tests, found.labels):
        claims.append(caveat)
    last = next(iter(found.runs.values()))[list(found.labels)[-1]]  # Med-OoD's, if it is there
    data = data_name(cfg.workspace)
    of_checkpoints = labels == list(found.labels)  # they are called after their folders
    heading = " and ".join(labels) + ("" if of_checkpoints else f": {out.name}") + f" on {data}"
    page = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html")
    text = page.render(
        data=data,
        sample=data == SAMPLE_NAME,
        heading=heading,
        name=out.name,
        answer=answer,
        claims=claims,
        title=found.title,
        header=found.header,
        rows=found.rows,
        meaning=MEANING,
        lower=LOWER_IS_BETTER,
        classes=[("background", BACKGROUND_COLOUR), *cfg.classes],
        figures={
            kind: [(embed(path), caption) for path, caption in shown]
            for kind, shown in draw_report(found, out).items()
        },
        # of the estimate that the network was trained with, not of a later one
        pct={
            fold: read_estimate(cfg, fold)
            for fold, of_fold in found.runs.items()
            if "pct" in of_fold.get("ood", {})
        },
        ood_text=(
            "The nuclei were cut out of the training patches."
            if cfg.ood_source is None
            else "The candidates are, or are joined by, images from elsewhere without nuclei."
        ),
        left_out=sorted(
            said
            for folder in ("Image_Patchs", "k_folds", "OoD_Source_Patchs")
            for said in record_of(cfg.workspace / folder).bad_files.values()
        ),
        described=describe_data(cfg, list(found.tests)),
        settings=[(name, _in_words(value)) for name, value in last.get("settings", {}).items()],
        versions=last.get("versions", {}),
        times=read_times(cfg.workspace, cfg.model_name),
        machine=machine(),
    )
    write_text(out / "index.html", text)
