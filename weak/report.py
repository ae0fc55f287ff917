"""What weak/test_masks.py found, for people: tables, figures and a page."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from medood.data.dataset import load_patches
from medood.data.files import read_json, write_json, write_text
from medood.data.images import read_mask
from medood.data.workspace import SAMPLE_NAME, data_name
from medood.evaluation import figures
from medood.evaluation.model_card import TEMPLATES
from medood.evaluation.statistics import Difference, paired_differences
from medood.evaluation.tables import INTERVAL, markdown, spread
from weak.generate_maps import read_maps
from weak.generate_masks import BOUNDARIES
from weak.maps import normalised, resized
from weak.pictures import draw_rows
from weak.products import classifier_folder, fold_labels, image_paths, masks_folder
from weak.settings import MasksConfig
from weak.test_masks import FLOOR, ROWS, Tested

SHOWN_SCORES = ("miou", "dsc", "fg_to_bg", "bg_to_fg")
NEGATIVES = "segmentation less without negatives"
TAUGHT = 0.01  # IoU of full supervision below which a class was not learned
EXAMPLES = 6  # images of a fold in each picture

Table = tuple[list[str], list[list[str]]]


def report_folder(cfg: MasksConfig) -> Path:
    """Return where the scores and the report go."""
    return cfg.workspace / "reports" / "weak"


def write_report(cfg: MasksConfig, tests: dict[int, Tested]) -> None:
    """Print the tables; write them, the scores and the page with its figures. tests: by fold."""
    out = report_folder(cfg)
    scores = {
        fold: {name: tally.scores() for name, tally in test.tallies.items()}
        for fold, test in tests.items()
    }
    gains = differences(cfg, tests)
    data = data_name(cfg.workspace)
    content = {
        "data": data,
        "is_sample": data == SAMPLE_NAME,
        "title": f"{data}. {cfg.model_name}, percent, {describe(tests)}",
        "verdict": verdict(cfg, scores, gains),
        "floor": ROWS[FLOOR],
        "interval": INTERVAL.replace("regions", "patients"),
        "scores": score_table(cfg, scores),
        "differences": difference_table(cfg, gains),
        "shares": share_table(cfg, scores),
        "classifier": classifier_table(cfg),
    }
    text = TEMPLATES.get_template("weak.md").render(markdown=markdown, **content)
    print(text)
    write_text(out / "table.md", text)
    write_json(out / "scores.json", scores)
    plain = {name: {k: v.plain() for k, v in of_row.items()} for name, of_row in gains.items()}
    write_json(out / "differences.json", plain)
    write_page(cfg, tests, scores, content)


def write_page(
    cfg: MasksConfig, tests: dict[int, Tested], scores: dict[int, dict], content: dict
) -> None:
    """Draw the figures and write the page. content: what tables and page share."""
    out = report_folder(cfg)
    bars = {
        ROWS[name]: {
            kind: [of_fold[name]["iou"][value] for of_fold in scores.values()]
            for value, kind in enumerate(cfg.class_names)
            if value
        }
        for name in next(iter(scores.values()))
        if name != "all_background"
    }
    figures.draw_bars(out / "classes.svg", "", "IoU, percent", bars)
    for fold, test in tests.items():
        draw_tested(out / f"{fold}_tested.png", cfg, fold, test)
        draw_teaching(out / f"{fold}_pseudo_masks.png", cfg, fold)
    page = TEMPLATES.get_template("weak.html").render(
        bars=figures.embed(out / "classes.svg"),
        examples={fold: figures.embed(out / f"{fold}_tested.png") for fold in tests},
        teaching={fold: figures.embed(out / f"{fold}_pseudo_masks.png") for fold in tests},
        settings={field.name: getattr(cfg, field.name) for field in fields(cfg)},
        **content,
    )
    write_text(out / "index.html", page)
    print(f"{out / 'index.html'}: open it in a browser; scores.json and table.md lie beside it")


def describe(tests: dict[int, Tested]) -> str:
    """Return what the tables are of, in words."""
    folds = [
        f"fold {fold} ({len(test.patients)} images of {len(set(test.patients))} patients)"
        for fold, test in tests.items()
    ]
    return ", ".join(folds) + (": mean ± standard deviation" if len(tests) > 1 else "")


# ---------------------------------------------------------------- numbers


def differences(cfg: MasksConfig, tests: dict[int, Tested]) -> dict[str, dict[str, Difference]]:
    """Return the scores of each row less those of the prior of place, resampled over patients.

    NEGATIVES is the network less the one without negatives.
    """
    counts = {
        name: [test.tallies[name].by_region(test.patients) for test in tests.values()]
        for name in next(iter(tests.values())).tallies
    }
    floor, without = counts.pop(FLOOR), counts["positives_only"]
    pairs = {name: (of_row, floor) for name, of_row in counts.items()}
    pairs[NEGATIVES] = counts["segmentation"], without
    return {name: paired_differences(*pair, cfg.class_names) for name, pair in pairs.items()}


def verdict(
    cfg: MasksConfig, scores: dict[int, dict], gains: dict[str, dict[str, Difference]]
) -> str:
    """Return the result in a sentence."""

    def mean(name: str) -> float:
        return float(np.mean([of_fold[name]["miou"] for of_fold in scores.values()]))

    own, full = mean("segmentation"), mean("supervised")
    gain = gains["segmentation"]["miou"]
    open_ = ", which leaves open whether it is better" if gain.holds_zero else ""
    return (
        f"From image labels alone: mean IoU {100 * own:.1f} %, {100 * own / full:.0f} % of full"
        f" supervision's ({100 * full:.1f} %); {gain.points()} points more than"
        f" {ROWS[FLOOR]}{open_}."
    )


# ---------------------------------------------------------------- tables


def score_table(cfg: MasksConfig, scores: dict[int, dict]) -> Table:
    """Return the scores of every row over folds, in percent."""
    classes = [f"IoU {name}" for name in cfg.class_names[1:]]
    rows = []
    for name in next(iter(scores.values())):
        found = [of_fold[name] for of_fold in scores.values()]
        cells = [
            spread([of_fold["iou"][i] for of_fold in found]) for i in range(1, len(classes) + 1)
        ]
        rows.append(
            [ROWS[name], *cells, *(spread([of_fold[k] for of_fold in found]) for k in SHOWN_SCORES)]
        )
    return ["", *classes, *SHOWN_SCORES], rows


def difference_table(cfg: MasksConfig, gains: dict[str, dict[str, Difference]]) -> Table:
    """Return the differences with their intervals, in points."""
    names = [*(f"IoU {name}" for name in cfg.class_names[1:]), "miou", "fg_to_bg", "bg_to_fg"]
    rows = [
        [ROWS.get(row, row), *(gain[name].text() for name in names)] for row, gain in gains.items()
    ]
    return ["", *names], rows


def share_table(cfg: MasksConfig, scores: dict[int, dict]) -> Table:
    """Return the IoU of every class and row as a share of full supervision's, in percent.

    It is left out where full supervision does not find the class either.
    """
    rows = []
    for name in next(iter(scores.values())):
        cells = []
        for value in range(1, len(cfg.class_names)):
            pairs = [
                (f[name]["iou"][value], f["supervised"]["iou"][value]) for f in scores.values()
            ]
            known = [one / full if full and full > TAUGHT else None for one, full in pairs]
            cells.append(spread(known))
        rows.append([ROWS[name], *cells])
    return ["", *cfg.class_names[1:]], rows


def classifier_table(cfg: MasksConfig) -> Table:
    """Return AUC and F1 of each class over folds."""
    found = [read_json(classifier_folder(cfg, fold) / "scores.json") or {} for fold in cfg.folds]
    rows = [
        [name, *(spread([of_fold[k][value] for of_fold in found], 1, 3) for k in ("auc", "f1"))]
        for value, name in enumerate(cfg.class_names[1:])
    ]
    return ["class", "AUC", "F1"], rows


# ---------------------------------------------------------------- pictures


def draw_tested(path: Path, cfg: MasksConfig, fold: int, test: Tested) -> None:
    """Draw test images in rows, from the worst to the best, with what each step says of them."""
    right = figures.share_right(test.patches, {"": test.predicted["segmentation"]})[""]
    shown = test.patches.masks.flatten(1).amax(1) > 0  # a class to find
    order = right.where(shown, torch.inf).argsort(stable=True)[: int(shown.sum())]
    chosen = order[torch.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).long()].tolist()
    names = [test.patches.names[index] for index in chosen]
    columns = {
        "map": test.maps[chosen].amax(1),
        "boundary": read_boundaries(cfg, fold, names),
        "walk": test.predicted["irnet"][chosen],
        "network": test.predicted["segmentation"][chosen],
        "truth": test.patches.masks[chosen],
    }
    draw_rows(path, cfg, f"fold {fold}", names, test.patches.images[chosen], columns)


def draw_teaching(path: Path, cfg: MasksConfig, fold: int) -> None:
    """Draw training images in rows, with their label: map, boundary and pseudo-mask."""
    labels, train, _ = fold_labels(cfg, fold)
    holding = [index for index in train if labels.labels[index].any()]
    places = np.linspace(0, len(holding) - 1, min(EXAMPLES, len(holding))).astype(int)
    chosen = [holding[place] for place in places]
    paths = [image_paths(cfg, labels)[index] for index in chosen]
    maps, held = read_maps(cfg, fold, paths, cfg.method)
    masks = [read_mask(masks_folder(cfg, fold) / p.name, len(cfg.class_names)) for p in paths]
    names = [
        f"{p.stem}\n{', '.join(np.array(labels.classes)[labels.labels[i] == 1])}"
        for i, p in zip(chosen, paths, strict=True)
    ]
    columns = {
        "map": resized(normalised(maps, held), [cfg.patch_size] * 2).amax(1),
        "boundary": read_boundaries(cfg, fold, [p.name for p in paths]),
        "pseudo-mask": torch.from_numpy(np.stack(masks)),
    }
    images = load_patches(cfg, [(p, None) for p in paths]).images
    draw_rows(path, cfg, f"fold {fold}, training images", names, images, columns)


def read_boundaries(cfg: MasksConfig, fold: int, names: list[str]) -> torch.Tensor:
    """Return the boundaries that IRNet sees in images, float32 (N, h, w)."""
    with np.load(masks_folder(cfg, fold) / BOUNDARIES) as arrays:
        return torch.from_numpy(np.stack([arrays[Path(name).stem] for name in names])).float()
