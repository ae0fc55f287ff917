"""Test the networks of every fold on its test patches: scores, a table and a picture.

Reads   models/<fold>_<model>/ and, where trained, models/<fold>_<model>_ood/
        Image_Patchs and Mask_Patchs of the fold's test patches
Writes  reports/<model>/scores.json, table.md, examples.png
        reports/<model>/differences.json, if both were tested: Med-OoD less baseline, as fractions

`python test.py --checkpoint workspace/models/79_unet_vgg11_bn` tests that network alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from config import CONFIG, Config, UserError
from medood.classes import CLASSES
from medood.cli import run
from medood.files import (
    data_name,
    model_folder,
    read_json,
    require_network,
    write_json,
    write_text,
)
from medood.folds import fold_digest, read_fold
from medood.hard_ood import pct_path
from medood.tables import INTERVAL, SCORES, markdown, spread

if TYPE_CHECKING:
    from medood.statistics import Difference
    from medood.testing import Tested

HEADINGS = {
    "all_background": "all background",
    "checkpoint": "checkpoint",
    "baseline": "baseline",
    "ood": "Med-OoD",
}


@dataclass(frozen=True)
class TestConfig(Config):
    """The settings, and what test.py alone takes."""

    checkpoint: Path | None = None
    """Test the network in this folder (ours, or of smp's save_pretrained) instead of models/."""


def networks(cfg: Config, checkpoint: Path | None) -> dict[int, dict[str, Path]]:
    """Return the checkpoint folders to test on each fold, by their name in scores.json."""
    from medood.checkpoints import read_run

    if checkpoint is not None:
        trained_on = read_run(checkpoint).get("fold")
        # test patches of another fold are training patches of this network
        folds = cfg.folds if trained_on is None else (trained_on,)
        return {fold: {"checkpoint": checkpoint} for fold in folds}
    found = {fold: {"baseline": model_folder(cfg, fold, ood=False)} for fold in cfg.folds}
    if not any(model_folder(cfg, fold, ood=True).exists() for fold in cfg.folds):
        return found
    for fold, folders in found.items():
        folders["ood"] = model_folder(cfg, fold, ood=True)
        baseline, ood = (read_run(folder).get("made_from", {}) for folder in folders.values())
        if baseline and ood and baseline["settings"] != ood["settings"]:
            raise UserError(
                f"{folders['ood']} was trained with other settings than {folders['baseline']}:"
                " run `python train_ood.py` with the settings of the baseline first"
            )
    return found


def evaluate_fold(cfg: Config, fold: int, folders: dict[str, Path]) -> Tested:
    """Test each network of a fold on its test patches."""
    from medood.checkpoints import read_run
    from medood.testing import score_networks

    for folder in folders.values():
        require_network(folder)
    train, val, names = read_fold(cfg, fold)
    for folder in folders.values():
        if read_run(folder).get("trained_on", "") not in ("", fold_digest(train + val)):
            raise UserError(
                f"{folder} was trained on other patches than fold {fold} trains on now, so some of"
                " the fold's test patches may be among them: train it again, or put its list back"
            )
    tested = score_networks(cfg, folders, names, f"fold {fold}")
    for name, folder in folders.items():
        if record := read_run(folder):
            write_json(folder / "run.json", {**record, "scores": tested.scores[name]})
    return tested


def table(scores: dict[int, dict], sizes: dict[int, dict], gains: dict[str, Difference]) -> str:
    """Return the scores of all folds as a Markdown table, in percent.

    scores: what scores.json holds. sizes: for each fold and network, patches, pnr and pct.
    gains: Med-OoD less baseline, by score; empty if only one of them was tested.
    """
    arms = [name for name in HEADINGS if name in next(iter(scores.values()))]
    header = ["", *(HEADINGS[arm] for arm in arms), *(["difference"] if gains else [])]

    def row(label: str, of: dict[str, list], gain: str, scale: float = 100, digits: int = 1):
        cells = [spread(of[arm], scale, digits) for arm in arms]
        return [label, *cells, *([gain] if gains else [])]

    rows = [
        row(
            f"`{name}`",
            {arm: [fold[arm][name] for fold in scores.values()] for arm in arms},
            gains[name].text() if gains else "",
        )
        for name in SCORES
    ]
    for value, nucleus in enumerate(CLASSES):
        label = f"IoU {nucleus.name}"
        of = {arm: [fold[arm]["iou"][value] for fold in scores.values()] for arm in arms}
        if all(iou is None for iou in of[arms[0]]):
            rows.append([label, *["absent"] * (len(header) - 1)])
        else:
            rows.append(row(label, of, gains[label].text() if gains else ""))
    for label, key, digits in (
        ("ID training patches", "id_patches", 0),
        ("OoD training patches", "ood_patches", 0),
        ("pnr", "pnr", 3),
        ("pct", "pct", 2),
    ):
        of = {arm: [sizes[fold].get(arm, {}).get(key) for fold in scores] for arm in arms}
        rows.append(row(label, of, "", scale=1, digits=digits))
    return markdown(header, rows)


def training_sizes(cfg: Config, fold: int, folders: dict[str, Path]) -> dict[str, dict]:
    """Return how many patches each network was trained on, and the pnr and pct behind it."""
    from medood.checkpoints import read_run

    sizes = {name: read_run(folder) for name, folder in folders.items()}
    estimate = read_json(pct_path(cfg, fold)) or {}
    # an estimate made anew since is not the one that this network was trained with
    if "ood" in sizes and estimate.get("ood_patches") == sizes["ood"].get("ood_patches"):
        sizes["baseline"] |= {"pnr": estimate.get("pnr_id"), "pct": 0.0}
        sizes["ood"] |= {"pnr": estimate.get("pnr"), "pct": estimate.get("pct")}
    return sizes


def evaluate(cfg: Config = CONFIG, checkpoint: Path | None = None) -> None:
    """Test the networks of every fold, or the one in `checkpoint`; print and write the scores."""
    if checkpoint is not None and not checkpoint.is_dir():
        found = "a file: give its folder" if checkpoint.exists() else "not there"
        raise UserError(f"checkpoint: {checkpoint} is {found}")
    # here, so that --help answers without torch
    from medood.figures import draw_examples
    from medood.statistics import paired_differences

    out = cfg.workspace / "reports" / (checkpoint.resolve().name if checkpoint else cfg.model_name)
    tests, sizes = {}, {}
    for fold, folders in networks(cfg, checkpoint).items():
        tests[fold] = evaluate_fold(cfg, fold, folders)
        sizes[fold] = training_sizes(cfg, fold, folders)
    scores = {fold: test.scores for fold, test in tests.items()}
    counts = [test.counts for test in tests.values()]
    gains = {}
    if "ood" in counts[0]:
        arms = ([count[name] for count in counts] for name in ("ood", "baseline"))
        gains = paired_differences(*arms)
    folds = ", ".join(map(str, scores))
    over = f"folds {folds}: mean ± standard deviation" if len(scores) > 1 else f"fold {folds} alone"
    title = f"{data_name(cfg.workspace)}. {checkpoint or cfg.model_name}, percent, {over}"
    if gains:
        title += f"; difference: Med-OoD less baseline, {INTERVAL}"
    text = f"{title}\n\n{table(scores, sizes, gains)}"
    print(text)
    write_json(out / "scores.json", scores)
    write_text(out / "table.md", text)
    if gains:
        plain = {name: gain.plain() for name, gain in gains.items()}
        write_json(out / "differences.json", plain)
    first, test = next(iter(tests.items()))
    shown = {HEADINGS[name]: predicted for name, predicted in test.predictions.items()}
    title = f"{data_name(cfg.workspace)}, fold {first}"
    draw_examples(out / "examples.png", title, test.patches, shown)
    print(f"{out}: scores.json, table.md, examples.png")


if __name__ == "__main__":
    run(lambda cfg: evaluate(cfg, cfg.checkpoint), TestConfig())
