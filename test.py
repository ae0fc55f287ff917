"""Test the networks of every fold on its test patches: scores, and a report to look at.

Reads   models/<fold>_<model>/ and, where trained, models/<fold>_<model>_ood/
        Image_Patchs and Mask_Patchs of the fold's test patches
Writes  reports/<model>/index.html                the report, with its figures in one file
        reports/<model>/scores.json, table.md     and the figures alone
        reports/<model>/differences.json, of two networks: the second less the first, as fractions
        reports/checkpoints/<name>/               the same, of checkpoints named on the command line

`python test.py --checkpoint workspace/models/79_unet_vgg11_bn` tests that network alone, and with a
second `--checkpoint` compares two.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import UseAppendAction

from config import CONFIG, Config, UserError
from medood.data.files import write_json, write_text
from medood.data.folds import read_fold
from medood.data.ood_set import read_estimate
from medood.data.records import RUN
from medood.data.workspace import data_name, fold_path, model_folder, require_network
from medood.evaluation.tables import INTERVAL, LABELS, SCORES, markdown, score_table
from medood.processes import is_main
from medood.runs.command_line import run
from medood.runs.provenance import require

if TYPE_CHECKING:
    from medood.evaluation.testing import Tested


@dataclass(frozen=True)
class TestConfig(Config):
    """The settings, and what test.py alone takes."""

    checkpoint: UseAppendAction[tuple[Path, ...]] = ()
    """Test this network (a folder, or a file of weights) instead of models/; twice: compare two."""


def networks(cfg: Config, checkpoints: tuple[Path, ...]) -> dict[int, dict[str, Path]]:
    """Return the checkpoints to test on each fold, by their name in scores.json."""
    if checkpoints:
        names = [path.resolve().name for path in checkpoints]
        if len(set(names)) < len(names):
            names = ["_".join(path.resolve().parts[1:]) for path in checkpoints]
        of_name = dict(zip(names, checkpoints, strict=True))
        return {fold: of_name for fold in unseen_folds(cfg, checkpoints)}
    arms = {"baseline": False}
    if any(model_folder(cfg, fold, ood=True).exists() for fold in cfg.folds):
        arms["ood"] = True
    require(cfg, "baseline", *["Med-OoD"] * ("ood" in arms))
    return {
        fold: {name: model_folder(cfg, fold, ood) for name, ood in arms.items()}
        for fold in cfg.folds
    }


def unseen_folds(cfg: Config, checkpoints: tuple[Path, ...]) -> list[int]:
    """Return the folds that hold, on their test side, no patch the networks were trained on."""
    from medood.models.checkpoints import has_seen, read_run, seen_in_training

    for path in checkpoints:
        if seen_in_training(path) is None:
            print(f"{path} does not say what it was trained on: make sure that it was not on these")
    own = [read_run(path).get("fold") for path in checkpoints]
    # its own fold comes first: a network of ours is tested there
    folds = [fold for fold in own if fold is not None and fold_path(cfg, fold).exists()]
    unseen = [
        fold
        for fold in dict.fromkeys([*folds, *cfg.folds])
        if not any(has_seen(cfg, path, read_fold(cfg, fold).test) for path in checkpoints)
    ]
    if not unseen:
        named = " or ".join(map(str, checkpoints))
        raise UserError(
            f"every fold tests patches that {named} was trained on: test it on other data, or"
            " compare networks of one fold"
        )
    return unseen


def evaluate_fold(cfg: Config, fold: int, folders: dict[str, Path]) -> Tested:
    """Test each network of a fold on its test patches."""
    from medood.evaluation.testing import score_networks
    from medood.models.checkpoints import has_seen

    for folder in folders.values():
        require_network(folder)
    names = read_fold(cfg, fold).test
    for folder in folders.values():
        if has_seen(cfg, folder, names):
            raise UserError(
                f"{folder} was trained on patches that fold {fold} tests now: train it again, or"
                " put the fold's list back"
            )
    return score_networks(cfg, folders, names, f"fold {fold}")


def record_scores(tests: dict[int, Tested], folders: dict[int, dict[str, Path]]) -> None:
    """Write the scores of each network beside its weights: into run.json and the model card."""
    from medood.evaluation.model_card import write_card
    from medood.models.checkpoints import read_run

    for fold, of_fold in folders.items():
        for name, folder in of_fold.items():
            record = read_run(folder)
            if "data" in record:  # written by a training of ours
                record["scores"] = tests[fold].scores[name]
                write_json(folder / RUN, record)
                write_card(folder, record)


def training_runs(cfg: Config, fold: int, folders: dict[str, Path]) -> dict[str, dict]:
    """Return the run.json of each network, with the pnr and pct behind its training set."""
    from medood.models.checkpoints import read_run

    runs = {name: read_run(folder) for name, folder in folders.items()}
    if folders.get("ood") == model_folder(cfg, fold, ood=True):
        estimate = read_estimate(cfg, fold)
        # an estimate made anew since is not the one that this network was trained with
        if estimate.get("ood_patches") == runs["ood"].get("ood_patches"):
            runs["baseline"] |= {"pnr": estimate.get("pnr_id"), "pct": 0.0}
            runs["ood"] |= {"pnr": estimate.get("pnr"), "pct": estimate.get("pct")}
    return runs


def evaluate(cfg: Config = CONFIG, checkpoints: tuple[Path, ...] = ()) -> None:
    """Test the networks of every fold, or one or two checkpoints; write scores and report."""
    if len(checkpoints) > 2:
        raise UserError(f"{len(checkpoints)} checkpoints: give one, or two to compare")
    if len({path.resolve() for path in checkpoints}) < len(checkpoints):
        raise UserError(f"checkpoint: {checkpoints[0]} is named twice: give two networks")
    for path in checkpoints:
        if not path.exists():
            raise UserError(f"checkpoint: {path} is not there")
    # here, so that --help answers without torch
    from medood.evaluation.report import Comparison, write_report
    from medood.evaluation.statistics import paired_differences, pool

    require(cfg, "patches", "patch masks", "fold")
    folders = networks(cfg, checkpoints)
    tests = {fold: evaluate_fold(cfg, fold, of_fold) for fold, of_fold in folders.items()}
    if not is_main():
        return
    runs = {fold: training_runs(cfg, fold, of_fold) for fold, of_fold in folders.items()}
    arms = list(next(iter(folders.values())))
    labels = {arm: arm if checkpoints else LABELS[arm] for arm in arms}
    gains = {}
    if len(arms) == 2:
        counts = [[test.counts[arm] for test in tests.values()] for arm in reversed(arms)]
        if checkpoints:  # one training each, however many folds it is tested on
            counts = [[pool(of_arm)] for of_arm in counts]
        gains = paired_differences(*counts, cfg.class_names)

    folds = ", ".join(map(str, tests))
    over = f"folds {folds}: mean ± standard deviation" if len(tests) > 1 else f"fold {folds} alone"
    tested = " and ".join(arms) if checkpoints else cfg.model_name
    title = f"{data_name(cfg.workspace)}. {tested}, percent, {over}"
    if gains:
        title += f"; difference: {labels[arms[1]]} less {labels[arms[0]]}, {INTERVAL}"
    scores = {fold: test.scores for fold, test in tests.items()}
    header, rows = score_table(cfg.class_names, scores, runs, gains)
    coded = [[f"`{row[0]}`" if row[0] in SCORES else row[0], *row[1:]] for row in rows]
    text = f"{title}\n\n{markdown(header, coded)}"
    print(text)

    out = cfg.workspace / "reports" / cfg.model_name
    if checkpoints:
        out = cfg.workspace / "reports" / "checkpoints" / "_vs_".join(arms)
    write_json(out / "scores.json", scores)
    write_text(out / "table.md", text)
    for old in out.glob("differences.*"):  # of a test of two networks
        old.unlink()
    if gains:
        write_json(out / "differences.json", {name: gain.plain() for name, gain in gains.items()})
    write_report(Comparison(cfg, tests, folders, runs, labels, gains, header, rows, title), out)
    if not checkpoints:
        record_scores(tests, folders)
    print(f"{out / 'index.html'}: open it in a browser; scores.json and table.md lie beside it")


if __name__ == "__main__":
    run(lambda cfg: evaluate(cfg, cfg.checkpoint), TestConfig())
