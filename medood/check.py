"""Find problems in the data before a run spends hours on them.

`python main.py --check` prints what is found and does nothing else; main.py starts with it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from config import Config, Data, UserError
from medood.data.files import pngs
from medood.data.folds import PARTS, held_out, read_list
from medood.data.images import look_at_pair, read_image, require_match
from medood.data.labels import read_region_label
from medood.data.names import by_name, name_of, stem_of
from medood.data.patients import patients_of
from medood.data.records import CHANGED, BadFiles, listed, record_of
from medood.data.workspace import fold_path, id_files, region_images, region_labels
from medood.runs.jobs import for_each
from medood.runs.provenance import survey

TRAIN_SHARE = 1 - 1 / PARTS  # of the patches of a fold


@dataclass
class Findings:
    """What is found in the workspace."""

    table: dict[str, str] = field(default_factory=dict)  # that is printed: what, and its value
    bad: BadFiles = field(default_factory=dict)  # the files that skip_bad_files leaves out
    stops: list[str] = field(default_factory=list)  # what stops the run in any case

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Add a UserError of the block to what stops the run, and continue after the block."""
        try:
            yield
        except UserError as error:
            if str(error) not in self.stops:
                self.stops.append(str(error))


def check(cfg: Config) -> Findings:
    """Return what is found in the data of cfg, and print it; nothing is changed.

    Reads every label and image. Raises no UserError for what it finds: see `refuse_findings`.
    """
    findings = Findings()
    findings.table["workspace"] = str(cfg.workspace)
    images, labels, patches = [], [], []
    with findings.noted():
        images, labels = region_images(cfg), region_labels(cfg)
    with findings.noted():
        # no step regenerates user-supplied patches, or those that have lost their sources
        if not images or not labels or record_of(cfg.workspace / "Image_Patchs").is_yours:
            patches = look_at_patches(cfg)
            findings.table["patches"] = str(len(patches))
        else:
            patches = _check_regions(cfg, images, labels, findings)
    if patches:
        _check_folds(cfg, patches, findings)
        with findings.noted():
            _check_time(cfg, len(patches), findings)
    with findings.noted():
        for product, (state, said) in survey(cfg).items():
            if state == CHANGED:
                findings.stops.append(said)
            else:
                findings.table[product] = said
    width = max(map(len, findings.table))
    print("".join(f"{what:>{width}}  {found}\n" for what, found in findings.table.items()))
    return findings


def refuse_findings(cfg: Config, findings: Findings) -> None:
    """Raise UserError with all that stops the run."""
    problems = list(findings.stops)
    if not cfg.skip_bad_files:
        listed = "\n".join(problems)  # by for_each, if no file can be used
        problems += [reason for reason in findings.bad.values() if reason not in listed]
    if problems:
        cure = " (--skip_bad_files continues without bad files)" if findings.bad else ""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError("\n  ".join([f"{count}{cure}", *problems]))


def _check_regions(
    cfg: Config, images: list[Path], labels: list[Path], findings: Findings
) -> list[str]:
    """Check every image and its label; return the names of the patches they will give."""
    image_of, label_of = (by_name(paths, stem_of) for paths in (images, labels))
    findings.table["images, labels"] = f"{len(image_of)}, {len(label_of)}"
    for name in sorted(image_of.keys() ^ label_of.keys()):
        path = image_of.get(name) or label_of[name]
        kind, other = ("image", "label") if name in image_of else ("label", "image")
        reason = f"{path} has no {other} of the same name: add it, or remove the {kind}"
        findings.bad[name_of(path)] = reason
    jobs = [(label_of[name], image_of[name], cfg) for name in sorted(image_of) if name in label_of]
    if not jobs:
        raise UserError("no image has a label of the same name: correct the names")
    patches = for_each(_look_at_region, jobs, cfg, "checking the regions", findings.bad)
    findings.table["regions that fit"] = str(len(patches))
    return [*chain.from_iterable(patches)]


def _look_at_region(label: Path, image: Path, cfg: Config) -> list[str]:
    """Return the patches that a region will give; UserError if the label or the image is bad."""
    inst_map, _, _ = read_region_label(label, cfg)
    require_match(image, read_image(image), inst_map)
    count = math.prod(math.ceil(side / cfg.patch_size) for side in inst_map.shape)
    return [f"{stem_of(image)}_{k}.png" for k in range(count)]


def look_at_patches(cfg: Data) -> list[str]:
    """Return the names of all patches; UserError that lists those that cannot be used."""
    folders = cfg.workspace / "Image_Patchs", cfg.workspace / "Mask_Patchs"
    names = sorted({name for folder in folders for name in by_name(pngs(folder))})
    jobs, bad = [(*pair, cfg) for pair in id_files(cfg.workspace, names)], {}
    for_each(look_at_pair, jobs, cfg, "checking the patches", bad)
    if bad:
        raise listed(bad, "correct them, or remove image and mask, and their rows in fold lists")
    return names


def _check_folds(cfg: Config, patches: list[str], findings: Findings) -> None:
    """Check both sides of each fold: of the user-supplied list, or as it will be split."""
    for fold in cfg.folds:
        path = fold_path(cfg.workspace, fold)
        own = record_of(path).is_yours
        if cfg.split == "official" and path.exists() and not own:
            continue  # the table that the list comes from may be gone
        with findings.noted():
            if own:
                made = "user-supplied"
                train, test = read_list(path, set(patches), set(findings.bad))
            else:
                made = f"split by {cfg.split}"
                test = held_out(cfg, patches, fold)
                train = set(patches) - test
            shared = set(patients_of(cfg, train)) & set(patients_of(cfg, test))
            sides = f"{len(train)} train, {len(test)} test patches"
            patients = set(patients_of(cfg, patches))
            shared = f"{len(shared)} of {len(patients)} {cfg.unit}s on both sides"
            findings.table[f"fold {fold}"] = f"{made}: {sides}, {shared}"


def _check_time(cfg: Config, patches: int, findings: Findings) -> None:
    """Add the expected time of training; UserError if its patches do not fit into memory."""
    from medood.data.dataset import require_memory  # here: they import torch
    from medood.training.segmentation import step_seconds

    require_memory(round(TRAIN_SHARE * patches), cfg.patch_size)
    steps = cfg.epochs * math.ceil(TRAIN_SHARE * patches / cfg.batch_size)
    # a baseline and a network on at least as many, at most twice as many patches
    hours = np.array([2, 3]) * steps * len(cfg.folds) * step_seconds(cfg) / 3600
    low, high = (f"{60 * h:.0f} min" if h < 2 else f"{h:.1f} h" for h in hours)
    reason = "estimated from 3 steps on this machine"
    findings.table["training"] = f"{low} (no OoD patch is added) to {high} (all are), {reason}"
