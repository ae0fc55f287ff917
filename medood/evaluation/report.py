"""The report of a test: reports/<model>/index.html, one file that needs nothing else.

It shows what test.py counted and what earlier steps left in the workspace: logs, the search for
pct, pictures of the OoD patches, the settings of the networks. Its texts are in templates/.
"""

import copy
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from markupsafe import Markup

from config import Config
from medood.data.files import TIMES, read_table, write_json
from medood.data.folds import Fold
from medood.data.labels import BACKGROUND_COLOUR
from medood.data.ood_set import read_estimate
from medood.data.records import record_of
from medood.data.workspace import data_name, model_folder, ranking_path
from medood.evaluation import figures
from medood.evaluation.model_card import TEMPLATES
from medood.evaluation.page import write_page
from medood.evaluation.ranking import calibration, curve
from medood.evaluation.scores import COUNTS
from medood.evaluation.statistics import Difference, paired_differences, pool
from medood.evaluation.tables import LABELS, SCORES, describe_data, interval_over, score_table
from medood.evaluation.testing import Tested
from medood.markdown import markdown


@dataclass(frozen=True)
class Comparison:
    """What test.py found about one network, or about two on the same patches."""

    cfg: Config
    named: bool  # the user named the networks; they are not those of models/
    folds: dict[int, Fold]
    tests: dict[int, Tested]  # by fold

    @property
    def folder(self) -> Path:
        """Return the folder of the scores and the report."""
        return report_folder(self.cfg, self.labels if self.named else ())

    @cached_property
    def labels(self) -> dict[str, str]:
        """Return the label of each network."""
        names = next(iter(self.tests.values())).folders
        return {name: name if self.named else LABELS[name] for name in names}

    @cached_property
    def gains(self) -> dict[str, Difference]:
        """Return the second network's scores less the first's; {} if there is one."""
        if len(self.labels) < 2:
            return {}
        counts = [[test.counts[name] for test in self.tests.values()] for name in self.labels]
        if self.named:  # one training each, however many folds it is tested on
            counts = [[pool(of_network)] for of_network in counts]
        theirs, ours = counts
        return paired_differences(ours, theirs, self.cfg.class_names)

    @cached_property
    def estimates(self) -> dict[int, dict]:
        """Return, by fold, the estimate of pct that its Med-OoD network was trained with."""
        if self.named or len(self.labels) < 2:
            return {}
        trained = {fold: test.runs["ood"].get("ood_patches") for fold, test in self.tests.items()}
        found = {fold: read_estimate(self.cfg, fold) for fold in trained}
        # a newer one does not count
        return {k: of for k, of in found.items() if of and of["ood_patches"] == trained[k]}

    @property
    def sizes(self) -> dict[int, dict]:
        """Return, by fold and network, its run.json with the pnr and pct of its training set."""
        sizes = {fold: copy.deepcopy(test.runs) for fold, test in self.tests.items()}
        for fold, of in self.estimates.items():
            sizes[fold]["ood"] |= {"pnr": of["pnr"], "pct": of["pct"]}
            sizes[fold]["baseline"] |= {"pnr": of["pnr_id"], "pct": 0.0}
        return sizes


def report_folder(cfg: Config, checkpoints: Iterable[str] = (), within: str = "reports") -> Path:
    """Return the folder of the report on the networks of models/, or on checkpoints, by name."""
    name = "_vs_".join(checkpoints)
    return cfg.workspace / within / (f"checkpoints/{name}" if name else cfg.model_name)


def below_floor(tests: dict[int, Tested], labels: dict[str, str]) -> list[str]:
    """Return the labels of the networks whose mean miou_paper is lower than the floor's."""
    mean = {
        name: np.mean([test.scores[name]["miou_paper"] for test in tests.values()])
        for name in (*labels, "all_background")
    }
    return [label for name, label in labels.items() if mean[name] < mean["all_background"]]


def machine() -> str:
    """Return a description of this computer."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{gpu}"


def draw_report(found: Comparison) -> list[Path]:
    """Draw the figures of the report into its folder, and return their paths."""
    cfg, labels, out = found.cfg, found.labels, found.folder
    for old in ("differences.svg", "rates.svg", "curves.svg", "pct.svg"):
        (out / old).unlink(missing_ok=True)  # of an earlier test: this one may have none
    bars, matrices, said = {}, {}, {}
    for name, label in labels.items():
        scores = [test.scores[name] for test in found.tests.values()]
        ious = zip(*(of_fold["iou"] for of_fold in scores), strict=True)
        bars[label] = dict(zip(cfg.class_names, ious, strict=True))
        matrices[label] = np.sum([of_fold["confusion"] for of_fold in scores], axis=0)
        counts = [test.counts[name] for test in found.tests.values()]
        said[label] = sum(calibration(of.ranked.sum(0), of.starts) for of in counts)
    fold, test = next(iter(found.tests.items()))
    title = f"{data_name(cfg.workspace)}, fold {fold}"
    seen = {labels[name]: predicted for name, predicted in test.predictions.items()}
    names = "classes.svg", "confusion.svg", "examples.png", "example.png", "calibration.svg"
    paths = [out / name for name in names]
    figures.draw_bars(paths[0], "", "IoU, percent", bars)
    figures.draw_confusion(paths[1], matrices, cfg.class_names)
    figures.draw_examples(paths[2], title, test.patches, seen, cfg.classes)
    figures.draw_examples(paths[3], "", test.patches, seen, cfg.classes, one=True)
    figures.draw_calibration(paths[4], said)
    if logs := logs_of(found):
        paths.append(out / "curves.svg")
        figures.draw_curves(paths[-1], logs)
    # a user-supplied estimate need not have a grid
    if searched := {fold: of for fold, of in found.estimates.items() if "made_from" in of}:
        paths.append(out / "pct.svg")
        figures.draw_pct_search(paths[-1], searched, cfg.pnr_opt)
    rates, chosen = rates_of(found)
    if all(chosen.values()):
        paths.append(out / "rates.svg")
        figures.draw_rates(paths[-1], rates, chosen)
    gains = {name: found.gains[name] for name in SCORES if name in found.gains}
    if gains := {name: gain for name, gain in gains.items() if not np.isnan(gain.low)}:
        theirs, ours = labels.values()
        paths.append(out / "differences.svg")
        figures.draw_intervals(paths[-1], "", f"{ours} less {theirs}, points", gains)
    return paths


def logs_of(found: Comparison) -> dict[str, list[dict[str, list[float]]]]:
    """Return the columns of the logs of each network's trainings, by label; {} if one has none."""
    logs = {}
    for name, label in found.labels.items():
        folders = dict.fromkeys(test.folders[name] for test in found.tests.values())
        paths = [folder / "log.csv" for folder in folders]
        tables = [read_table(path) for path in paths if path.is_file()]
        try:
            logs[label] = [{k: [float(row[k]) for row in rows] for k in rows[0]} for rows in tables]
        except (IndexError, ValueError):  # of a network from elsewhere
            return {}
    every = [log for of in logs.values() for log in of]
    known = all(logs.values()) and all({"epoch", "loss"} <= log.keys() for log in every)
    return logs if known else {}


def rates_of(found: Comparison) -> tuple[dict, dict]:
    """Return both error rates of each network, by label, then by fold: what draw_rates takes.

    Folds without foreground or background are left out.
    """
    rates: dict = {label: [] for label in found.labels.values()}
    chosen: dict = {label: [] for label in found.labels.values()}
    for test in found.tests.values():
        for name, label in found.labels.items():
            scores = test.scores[name]
            if scores["ap"] is not None:
                rates[label].append(curve(test.counts[name].ranked.sum(0)))
                chosen[label].append((scores["fg_to_bg"], scores["bg_to_fg"]))
    return rates, chosen


def pictures_of_oods(found: Comparison) -> dict[int, Path]:
    """Return the pictures of the OoD patches of Med-OoD networks, by fold.

    A user-supplied ranking has none: an existing one is of an earlier ranking.
    """
    pictures = {}
    for fold, test in found.tests.items():
        ranking = ranking_path(found.cfg, fold)
        path = ranking.with_name(f"{ranking.stem}_hardest.png")
        is_ood = model_folder(found.cfg, fold, ood=True) in test.folders.values()
        if is_ood and path.exists() and not record_of(ranking).is_yours:
            pictures[fold] = path
    return pictures


def more_steps(found: Comparison) -> float:
    """Return how many more steps the second networks took, as a share; 0 if train.py made none."""

    def steps(run: dict) -> float:
        settings, patches = run["settings"], run["id_patches"] + run["ood_patches"]
        return patches * settings["epochs"] / settings["batch_size"]

    runs = [tuple(test.runs.values()) for test in found.tests.values()]
    if not found.gains:
        return 0.0
    try:
        return float(np.mean([steps(second) / steps(first) - 1 for first, second in runs]))
    except (KeyError, TypeError, ZeroDivisionError):  # a network from elsewhere
        return 0.0


def read_times(workspace: Path) -> dict[str, str]:
    """Return the last time of each step in seconds; without what a spreadsheet has damaged."""
    path = workspace / TIMES
    rows = read_table(path) if path.exists() else []
    return {row["step"]: row["seconds"] for row in rows if {"step", "seconds"} <= row.keys()}


def write_report(found: Comparison) -> None:
    """Print the table of scores; write it, the differences and the page with its figures."""
    cfg, tests, out = found.cfg, found.tests, found.folder
    scores = {fold: test.scores for fold, test in tests.items()}
    header, rows = score_table(cfg.class_names, scores, found.sizes, found.gains)
    described = describe_data(cfg, found.folds)
    for fold, test in tests.items():
        nuclei = test.counts["all_background"].nuclei
        if nuclei is not None:
            true = nuclei[..., COUNTS.index("true")].sum(0).astype(int)
            described["by_class"][f"{fold} nuclei"] = ["-", *true[1:]]
    coded = [[f"`{row[0]}`" if row[0] in SCORES else row[0], *row[1:]] for row in rows]
    data = data_name(cfg.workspace)
    regions = {name for test in tests.values() for name in test.counts["all_background"].regions}
    interval = interval_over(len(regions), cfg.unit)
    of_network = f"_{cfg.model_name}", f"_{cfg.model_name}_ood"
    steps = read_times(cfg.workspace).items()
    title = TEMPLATES.get_template("title.txt").render(found=found, data=data, interval=interval)
    body = TEMPLATES.get_template("report.html").render(
        found=found,
        cfg=cfg,
        data=data,
        title=title.strip(),
        table=(header, rows),
        shown={row[0]: row[1:] for row in rows},
        more_steps=more_steps(found),
        trainings=len({folder for test in tests.values() for folder in test.folders.values()}),
        below_floor=below_floor(tests, found.labels),
        classes=[("background", BACKGROUND_COLOUR), *cfg.classes],
        described=described,
        class_rows=zip(*described["by_class"].values(), strict=True),
        run=[*next(iter(tests.values())).runs.values()][-1],  # of Med-OoD, if it exists
        figures={path.stem: path for path in draw_report(found)},
        pictures=pictures_of_oods(found),
        times=[step for step in steps if "_" not in step[0] or step[0].endswith(of_network)],
        machine=machine(),
    )
    (out / "differences.json").unlink(missing_ok=True)  # of an earlier test of two networks
    if found.gains:
        plain = {name: gain.plain() for name, gain in found.gains.items()}
        write_json(out / "differences.json", plain)
    names = " and ".join(found.labels.values())
    heading = names if found.named else f"{names}: {cfg.model_name}"
    text = f"{title}\n{markdown(header, coded)}"
    write_page(cfg.workspace, out, heading, {"": [Markup(body)]}, text)
