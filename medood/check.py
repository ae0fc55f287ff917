"""Look before you leap: what is wrong with the data, before hours are spent on them.

`python main.py --check` prints this and does nothing else; main.py begins with it.
"""

import itertools
import math
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from config import Config, UserError
from medood.data.files import pngs
from medood.data.folds import PARTS, held_out, read_list, read_official, region_of
from medood.data.images import look_at_pair, read_image, require_same_size, whole_patches
from medood.data.labels import read_region_label
from medood.data.memory import exceeds_memory
from medood.data.records import BadFiles, is_yours
from medood.data.workspace import fold_path, list_images, model_folder, region_images, region_labels
from medood.models.network import build_model
from medood.runs.jobs import for_each
from medood.runs.provenance import survey
from medood.training.step import step_seconds

# bytes for a pixel of the patches, at most
BYTES = {"Semantic_Labels": 1, "Image_Patchs": 3, "Mask_Patchs": 1, "OoD_Patchs": 3}
ADAM = 3  # a network in training, as resume.pt: the weights and two moments of each


@dataclass
class Findings:
    """What a look at the workspace gave."""

    rows: list[list[str]] = field(default_factory=list)  # what, and what was found
    bad: BadFiles = field(default_factory=dict)  # what skip_bad_files leaves out
    stops: list[str] = field(default_factory=list)  # what stops the run in any case

    def add(self, what: str, found: str) -> None:
        """Add a row of the table."""
        self.rows.append([what, found])


def check(cfg: Config) -> Findings:
    """Look through the data of cfg, changing nothing, and print what was found.

    Reads every label and image. Raises no UserError for what it finds: see `refuse_findings`.
    """
    findings = Findings()
    findings.add("workspace", str(cfg.workspace))
    try:
        raw = region_images(cfg), region_labels(cfg)
    except UserError as error:
        findings.stops.append(str(error))
        raw = [], []
    # patches that the user put there are not made again, nor those that have lost their sources
    as_they_are = is_yours(cfg.workspace / "Image_Patchs") or not all(raw)
    patches = _check_patches(cfg, findings) if as_they_are else _check_regions(cfg, *raw, findings)
    _check_oods(cfg, patches, findings)
    if patches:
        _check_folds(cfg, patches, findings)
        _check_cost(cfg, len(patches), findings)
    findings.rows += survey(cfg)
    width = max(len(what) for what, _ in findings.rows)
    print("".join(f"{what:>{width}}  {found}\n" for what, found in findings.rows))
    return findings


def refuse_findings(cfg: Config, findings: Findings) -> None:
    """Raise UserError with all that stops the run."""
    problems = findings.stops + ([] if cfg.skip_bad_files else list(findings.bad.values()))
    if problems:
        cure = " (--skip_bad_files goes on without what is bad)" if findings.bad else ""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError("\n  ".join([f"{count}{cure}", *problems]))


def _check_regions(
    cfg: Config, image_paths: list[Path], label_paths: list[Path], findings: Findings
) -> list[str]:
    """Look at every image and its label; return the names of the patches they will give."""
    images, labels = ({path.stem: path for path in paths} for paths in (image_paths, label_paths))
    findings.add("images, labels", f"{len(images)}, {len(labels)}")
    for name in sorted(images.keys() - labels.keys()):
        path = images[name]
        said = f"{path} has no label of its name: add it, or remove the image"
        findings.bad[path.name] = said
    for name in sorted(labels.keys() - images.keys()):
        path = labels[name]
        findings.bad[path.name] = f"{path} has no image of its name: add it, or remove the label"
    names = sorted(images.keys() & labels.keys())
    if not names:
        findings.stops.append("no image has a label of its name: look at their names")
        return []
    try:
        jobs = [(labels[name], images[name], cfg) for name in names]
        regions = for_each(_look_at_region, jobs, cfg, "looking at the data", findings.bad)
    except UserError:  # every region is bad
        findings.stops.append("no region can be used")
        return []
    findings.add("regions that fit", str(len(regions)))
    nuclei = sum((count for _, _, count in regions), Counter())
    absent = [name for value, name in enumerate(cfg.class_names) if value and not nuclei[value]]
    findings.add("nuclei", str(nuclei.total()) + (f", none: {', '.join(absent)}" if absent else ""))
    if not nuclei:
        findings.stops.append("no label holds a nucleus: look at them")
    return [f"{name}_{k}.png" for name, count, _ in regions for k in range(count)]


def _look_at_region(label: Path, image: Path, cfg: Config) -> tuple[str, int, Counter]:
    """Return a region's name, its patches and the nuclei of each class; UserError if it is bad."""
    inst_map, _, classes = read_region_label(label, cfg)
    require_same_size(image, read_image(image, cfg.max_pixels), inst_map)
    patches = math.prod(math.ceil(side / cfg.patch_size) for side in inst_map.shape)
    return image.stem, patches, Counter(classes.tolist())


def _check_patches(cfg: Config, findings: Findings) -> list[str]:
    """Look at every patch that is there; return the names of those that can be used."""
    folders = cfg.workspace / "Image_Patchs", cfg.workspace / "Mask_Patchs"
    names = sorted({path.name for folder in folders for path in pngs(folder)})
    try:
        jobs = [(folders[0] / name, folders[1] / name, cfg) for name in names]
        used = for_each(look_at_pair, jobs, cfg, "looking at the patches", findings.bad)
    except UserError:  # every patch is bad
        findings.stops.append("no patch can be used")
        return []
    findings.add("patches", f"{len(names)}, of which {len(used)} can be used")
    return [name for name in names if name not in findings.bad]


def _check_oods(cfg: Config, patches: list[str], findings: Findings) -> None:
    """Look at OoD patches that the user put there, and at the images of ood_source."""
    folder = cfg.workspace / "OoD_Patchs"
    there = {path.name for path in pngs(folder)}
    if is_yours(folder) and (lost := sorted(set(patches) - there)):
        findings.stops.append(
            f"{folder}, which you put there, lacks {len(lost)} patches, {lost[0]} for one: add"
            " them, or remove the folder to have it made"
        )
    if cfg.ood_source is None:
        return
    try:
        jobs = [(path, cfg) for path in list_images(cfg.ood_source)]
    except UserError as error:
        findings.stops.append(str(error))
        return
    try:
        counts = for_each(_look_at_source, jobs, cfg, "looking at ood_source", findings.bad)
        findings.add("ood_source", f"{len(jobs)} images, {sum(counts)} patches")
    except UserError:  # every image is bad
        findings.stops.append("no image of ood_source can be used")


def _look_at_source(path: Path, cfg: Config) -> int:
    """Return how many patches an image of ood_source gives; UserError if it gives none."""
    return whole_patches(path, read_image(path, cfg.max_pixels), cfg.patch_size)


def _check_folds(cfg: Config, patches: list[str], findings: Findings) -> None:
    """Look at the fold lists that the user put there, and at what the others are drawn from."""
    tests, drawn = {}, []
    for fold in cfg.folds:
        path = fold_path(cfg, fold)
        if not is_yours(path):
            drawn.append(fold)
            continue
        try:
            train, test = read_list(path, set(patches), set(findings.bad))
        except UserError as error:
            findings.stops.append(str(error))
            continue
        shared = {region_of(name) for name in train} & {region_of(name) for name in test}
        tests[fold] = set(test)
        sides = f"yours: {len(train)} train, {len(test)} test patches"
        findings.add(f"fold {fold}", f"{sides}, {len(shared)} regions on both sides")
    for (one, first), (other, second) in itertools.combinations(tests.items(), 2):
        if both := first & second:
            findings.add(f"folds {one}, {other}", f"test {len(both)} patches both")
    official = None
    if cfg.split == "official" and not all(fold_path(cfg, fold).exists() for fold in drawn):
        try:
            official = read_official(cfg.workspace, patches)
        except UserError as error:
            findings.stops.append(str(error))
            return
    for fold in drawn:
        if cfg.split == "official" and official is None:
            continue  # drawn before, and its table is gone
        test = held_out(patches, fold, cfg.split, cfg.seed, official)
        sides = f"{len(patches) - len(test)} train, {len(test)} test patches"
        findings.add(f"fold {fold}", f"drawn by {cfg.split}: {sides}")
        if len(test) in (0, len(patches)):
            findings.stops.append(
                f"fold {fold}: split = {cfg.split} leaves a side of it empty, as there are too few"
                " regions: set split to patch"
            )


def _check_cost(cfg: Config, patches: int, findings: Findings) -> None:
    """Compare free disk with what will be written, and say about how long training takes."""
    weights = 4 * sum(
        value.numel() for value in build_model(replace(cfg, encoder_weights="none")).parameters()
    )
    made = [model_folder(cfg, fold, ood) for fold in cfg.folds for ood in (False, True)]
    to_train = [folder for folder in made if not (folder / "run.json").exists()]
    pixels = patches * cfg.patch_size**2
    needed = (len(to_train) + ADAM) * weights if to_train else 0
    for name, size in BYTES.items():
        if not pngs(cfg.workspace / name):
            needed += size * pixels
    held = 2 * 4 * round((1 - 1 / PARTS) * pixels)  # in training: if all OoD patches are added
    needed += held if exceeds_memory(cfg, held) else 0
    place = next(path for path in (cfg.workspace, *cfg.workspace.parents) if path.exists())
    free = shutil.disk_usage(place).free
    findings.add("disk", f"{needed / 1e9:.1f} GB at most to be written, {free / 1e9:.1f} GB free")
    if free < needed:
        findings.stops.append(
            f"{place} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} may be written: free some"
            " space, or name another folder with --workspace"
        )
    steps = cfg.epochs * math.ceil((1 - 1 / PARTS) * patches / cfg.batch_size)
    hours = np.array([2, 3]) * steps * len(cfg.folds) * step_seconds(cfg) / 3600
    low, high = (f"{60 * h:.0f} min" if h < 2 else f"{h:.1f} h" for h in hours)
    said = f"{low} (no OoD patch is added) to {high} (all are), from 3 steps on this machine"
    findings.add("training", said)
