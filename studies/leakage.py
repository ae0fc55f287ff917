"""Leakage: how close test patches are to training patches in fold lists, and its effect on scores.

Reads   any folder of fold lists, --k_folds, by default the workspace's
Writes  reports/studies/leakage_<model>.csv, .json, .md, .png

The study counts the regions, and the neighbouring patches, that are on both sides of each list.
Then it trains the baseline on the lists, and on the same patches split by region, and compares both
on the same test patches: the difference is what the leak adds to the score. With the setting
`patients`, patients are counted and split instead of regions.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import Config, Count, UserError, settings
from medood.data.folds import patches_there, read_list, split_patients
from medood.data.patients import patients_of
from medood.data.workspace import LIST_ENDING, id_files
from medood.markdown import markdown
from medood.runs.command_line import run
from studies.common import Recipe, StudyConfig, prepare, run_arms
from studies.report import tell

LISTED = "lists as they are"


@settings
class LeakageConfig(StudyConfig):
    """The settings of a study, with three seeds and the fold lists."""

    seeds: Count = 3
    """Trainings of each arm, with the seeds `seed`, `seed` + 1 ...; `seed` splits the folds."""
    k_folds: Path | None = None
    """Folder of <fold>Image_Patchs.csv; by default the workspace's own k_folds."""


def place_of(name: str) -> tuple[str, int]:
    """Return region and number of a patch: `glas_1_07.png` -> (`glas_1`, 7); UserError if none."""
    region, _, number = Path(name).stem.rpartition("_")
    if not region or not number.isdigit():
        raise UserError(
            f"{name} is not named <region>_<number>, so its neighbours are unknown: rename it"
        )
    return region, int(number)


def leaks(cfg: Config, train: list[str], test: list[str]) -> dict[str, int]:
    """Return counts of a list: regions or patients, on both sides; test patches, with a neighbour.

    A neighbour is the training patch just before or after it in the row-by-row count of the region.
    """
    trained, tested = ([place_of(name) for name in names] for names in (train, test))
    patients = [set(patients_of(cfg, names)) for names in (train, test)]
    there = set(trained)
    adjacent = [any((region, k + step) in there for step in (-1, 1)) for region, k in tested]
    return {
        f"{cfg.unit}s": len(patients[0] | patients[1]),
        f"{cfg.unit}s on both sides": len(patients[0] & patients[1]),
        "test patches": len(test),
        "with a training neighbour": sum(adjacent),
    }


def read_lists(cfg: LeakageConfig) -> dict[str, tuple[list[str], list[str]]]:
    """Return training and test names of every list in the folder, by fold; UserError if none."""
    folder = cfg.k_folds or cfg.workspace / "k_folds"
    paths = sorted(folder.glob(f"*{LIST_ENDING}")) if folder.is_dir() else []
    if not paths:
        raise UserError(f"k_folds: no <fold>{LIST_ENDING} in {folder}: name a folder of lists")
    there = patches_there(cfg.workspace)
    return {path.name.removesuffix(LIST_ENDING): read_list(path, *there) for path in paths}


def leakage(cfg: LeakageConfig) -> None:
    """Count the leaks of every list, and train with and without them.

    Raises UserError for settings or lists that allow no such comparison.
    """
    if cfg.select != "last":
        raise UserError(f"select: {cfg.select}, but both arms train on whole lists: set it to last")
    prepare(cfg)
    lists = read_lists(cfg)
    counts = {fold: leaks(cfg, *sides) for fold, sides in lists.items()}
    columns = list(next(iter(counts.values())))
    rows = [[fold, *(str(count[name]) for name in columns)] for fold, count in counts.items()]
    table = markdown(["list", *columns], rows)
    print(table)

    folds = tuple(fold for fold in cfg.folds if str(fold) in lists)
    if not folds:
        raise UserError(f"folds: {cfg.folds} have no list: set folds to some of {[*lists]}")
    names = sorted({name for fold in folds for side in lists[str(fold)] for name in side})
    tests = [name for fold in folds for name in lists[str(fold)][1]]
    if len(set(tests)) < len(tests):
        raise UserError(f"folds: lists {folds} test a patch twice: set folds to fewer")
    patients = len(set(patients_of(cfg, names)))
    if patients < 2:
        raise UserError(f"{cfg.workspace}: all patches are of one {cfg.unit}: add images of others")
    # with so many parts, both arms train on about the same number of patches
    parts = min(max(2, round(len(names) * len(folds) / len(tests))), patients)
    part_of, apart_arm = split_patients(cfg, names, parts), f"{cfg.unit}s apart"

    def listed(cfg: StudyConfig, fold: int) -> Recipe:
        train, test = lists[str(fold)]
        return Recipe(cfg, id_files(cfg.workspace, train), [], test)

    def apart(cfg: StudyConfig, part: int) -> Recipe | None:
        out = {name for name in names if part_of[name] == part}
        test = sorted(out & set(tests))
        train = [name for name in names if name not in out]
        return Recipe(cfg, id_files(cfg.workspace, train), [], test) if test else None

    results = run_arms(replace(cfg, folds=folds), {LISTED: listed})
    results |= run_arms(replace(cfg, folds=tuple(range(parts))), {apart_arm: apart})
    if results:
        tables = {"Both sides of the lists": table}
        against, columns = {LISTED: [apart_arm]}, ("id_patches",)
        tell(cfg, "leakage", results, against, columns=columns, tables=tables, as_one=True)


if __name__ == "__main__":
    run(leakage, LeakageConfig())
