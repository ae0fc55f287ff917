"""Test the networks of every fold on its test patches: scores, a table and a picture.

Reads   models/<fold>_<model>/ and, where trained, models/<fold>_<model>_ood/
        Image_Patchs and Mask_Patchs of the fold's test patches
Writes  reports/<model>/scores.json, table.md, examples.png

`python test.py --checkpoint workspace/models/79_unet_vgg11_bn` tests that network alone.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import CONFIG, Config, UserError
from medood.classes import CLASSES
from medood.cli import run
from medood.files import SAMPLE_MARK, model_folder, read_json, write_json, write_text
from medood.folds import fold_digest, read_fold
from medood.hard_ood import pct_path

HEADINGS = {
    "all_background": "all background",
    "checkpoint": "checkpoint",
    "baseline": "baseline",
    "ood": "Med-OoD",
}
# the order of the table; the scores are explained in medood/scores.py
SCORES = ("miou", "dsc", "miou_paper", "dsc_paper", "fg_to_bg", "bg_to_fg", "fg_to_fg")


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


def evaluate_fold(cfg: Config, fold: int, folders: dict[str, Path]) -> tuple[dict, dict]:
    """Return the scores of each network on a fold, and what it saw, for the picture."""
    import torch

    from medood.checkpoints import load_model, read_run
    from medood.data import id_files, load_patches
    from medood.inference import predict
    from medood.models import pick_device
    from medood.scores import Tally, all_background

    device = pick_device(cfg)
    models = {name: load_model(folder) for name, folder in folders.items()}
    train_names, names = read_fold(cfg, fold)
    for folder in folders.values():
        if read_run(folder).get("trained_on", "") not in ("", fold_digest(train_names)):
            raise UserError(
                f"{folder} was trained on other patches than fold {fold} trains on now, so some of"
                " the fold's test patches may be among them: train it again, or put its list back"
            )
    patches = load_patches(cfg, id_files(cfg, names))
    tallies = {name: Tally() for name in ("all_background", *models)}
    for truth in patches.masks.split(64):
        tallies["all_background"].add(all_background(truth), truth)
    predictions = {}
    for name, model in models.items():
        predicted = torch.empty_like(patches.masks)
        task = f"fold {fold}: testing {HEADINGS[name]}"
        for part, probability in predict(cfg, model, patches.images, device, task):
            tallies[name].add(probability, patches.masks[part].to(device))
            predicted[part] = probability.argmax(1).to("cpu", torch.uint8)
        predictions[HEADINGS[name]] = predicted
    scores = {name: tally.scores() for name, tally in tallies.items()}
    for name, folder in folders.items():
        if record := read_run(folder):
            write_json(folder / "run.json", {**record, "scores": scores[name]})
    return scores, {"patches": patches, "predictions": predictions}


def spread(values: list[float | None], scale: float = 100, digits: int = 1) -> str:
    """Return `mean ± standard deviation` of a score over folds, `-` where no fold defines it."""
    known = [value * scale for value in values if value is not None]
    if not known:
        return "-"
    mean = round(np.mean(known), digits) + 0.0  # no "-0.0"
    deviation = f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else ""
    return f"{mean:.{digits}f}{deviation}"


def table(scores: dict[int, dict], sizes: dict[int, dict]) -> str:
    """Return the scores of all folds as a Markdown table, in percent.

    scores: what scores.json holds. sizes: for each fold and network, patches, pnr and pct.
    """
    arms = [name for name in HEADINGS if name in next(iter(scores.values()))]
    paired = "baseline" in arms and "ood" in arms
    header = ["", *(HEADINGS[arm] for arm in arms), *(["difference"] if paired else [])]

    def row(label: str, of: dict[str, list], scale: float = 100, digits: int = 1) -> list[str]:
        cells = [spread(of[arm], scale, digits) for arm in arms]
        if paired:
            pairs = zip(of["ood"], of["baseline"], strict=True)
            both = [a - b for a, b in pairs if a is not None and b is not None]
            cells.append(spread(both, scale, digits))
        return [label, *cells]

    rows = [
        row(f"`{name}`", {arm: [fold[arm][name] for fold in scores.values()] for arm in arms})
        for name in SCORES
    ]
    for value, nucleus in enumerate(CLASSES):
        of = {arm: [fold[arm]["iou"][value] for fold in scores.values()] for arm in arms}
        absent = all(iou is None for iou in of[arms[0]])
        rows.append(
            [f"IoU {nucleus.name}", *["absent"] * (len(header) - 1)]
            if absent
            else row(f"IoU {nucleus.name}", of)
        )
    for label, key, digits in (
        ("ID training patches", "id_patches", 0),
        ("OoD training patches", "ood_patches", 0),
        ("pnr", "pnr", 3),
        ("pct", "pct", 2),
    ):
        of = {arm: [sizes[fold].get(arm, {}).get(key) for fold in scores] for arm in arms}
        rows.append(row(label, of, scale=1, digits=digits))
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    lines = [header, [("-" * width)[:-1] + ":" for width in widths], *rows]
    return "".join(
        "| "
        + " | ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        + " |\n"
        for line in lines
    )


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
    from medood.figures import draw_examples

    out = cfg.workspace / "reports" / (checkpoint.resolve().name if checkpoint else cfg.model_name)
    scores, sizes, drawn = {}, {}, None
    for fold, folders in networks(cfg, checkpoint).items():
        scores[fold], shown = evaluate_fold(cfg, fold, folders)
        sizes[fold] = training_sizes(cfg, fold, folders)
        drawn = drawn or shown
    of_sample = (cfg.workspace / SAMPLE_MARK).exists()
    data = "SAMPLE: synthetic tissue, not Lizard" if of_sample else str(cfg.workspace)
    folds = ", ".join(map(str, scores))
    over = f"folds {folds}: mean ± standard deviation" if len(scores) > 1 else f"fold {folds} alone"
    title = f"{data}. {checkpoint or cfg.model_name}, percent, {over}"
    text = f"{title}\n\n{table(scores, sizes)}"
    print(text)
    write_json(out / "scores.json", scores)
    write_text(out / "table.md", text)
    draw_examples(out / "examples.png", title=f"{data}, fold {next(iter(scores))}", **drawn)
    print(f"{out}: scores.json, table.md, examples.png")


if __name__ == "__main__":
    run(lambda cfg: evaluate(cfg, cfg.checkpoint), TestConfig())
