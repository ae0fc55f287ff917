"""Leakage: how much of a fold list's test side the network has as good as seen, and what it costs.

Reads   any folder of fold lists, --k_folds, by default the workspace's
Writes  reports/studies/leakage_<model>.csv, .json, .md, .png

Counts the regions, and the neighbouring patches, that stand on both sides of each list. Then trains
the baseline on the lists, and on the same patches dealt by region, and compares both on the same
test patches: the difference is what the leak adds to the score.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import UserError
from medood.cli import run
from medood.data import id_files
from medood.figures import draw_intervals
from medood.folds import LIST_ENDING, PARTS, held_out, read_list, region_of
from medood.statistics import paired_differences, pool
from medood.tables import SCORES, markdown, spread
from studies.common import Recipe, StudyConfig, prepare, run_arms, values, write_study

LISTED, APART = "lists as they are", "regions apart"


@dataclass(frozen=True)
class LeakageConfig(StudyConfig):
    """The settings of a study, and the lists that this one judges."""

    k_folds: Path | None = None
    """Folder of <fold>Image_Patchs.csv; by default the workspace's own k_folds."""


def leaks(train: list[str], test: list[str]) -> dict[str, int]:
    """Return counts of a list: regions, those on both sides, test patches, those with a neighbour.

    A neighbour is the training patch before or after it in the same row-by-row count of a region.
    """
    regions = [{region_of(name) for name in names} for names in (train, test)]
    trained = set(train)

    def neighbours(name: str) -> set[str]:
        number = Path(name).stem.rsplit("_", 1)[1]
        if not number.isdigit():
            raise UserError(f"{name} does not end in _<number>: its neighbours are not known")
        around = (int(number) - 1, int(number) + 1)
        return {f"{region_of(name)}_{k}{Path(name).suffix}" for k in around}

    return {
        "regions": len(regions[0] | regions[1]),
        "regions on both sides": len(regions[0] & regions[1]),
        "test patches": len(test),
        "with a training neighbour": sum(bool(neighbours(name) & trained) for name in test),
    }


def leakage(cfg: LeakageConfig) -> None:
    """Count the leaks of every list, and train with and without them."""
    prepare(cfg)
    folder = cfg.k_folds or cfg.workspace / "k_folds"
    paths = sorted(folder.glob(f"*{LIST_ENDING}")) if folder.is_dir() else []
    if not paths:
        raise UserError(f"no <fold>{LIST_ENDING} in {folder}: name a folder of lists")
    images = cfg.workspace / "Image_Patchs"
    lists = {path.name.removesuffix(LIST_ENDING): read_list(path, images) for path in paths}
    counts = {fold: leaks(*sides) for fold, sides in lists.items()}
    columns = list(next(iter(counts.values())))
    rows = [[fold, *(str(count[name]) for name in columns)] for fold, count in counts.items()]
    table = markdown(["list", *columns], rows)
    print(table)

    folds = tuple(fold for fold in cfg.folds if str(fold) in lists)
    if not folds:
        raise UserError(
            f"none of folds {cfg.folds} has a list in {folder}: set folds to {[*lists]}"
        )
    names = sorted({name for sides in lists.values() for side in sides for name in side})
    tests = [name for fold in folds for name in lists[str(fold)][1]]
    tested = set(tests)
    if len(tested) < len(tests):
        raise UserError(
            f"{folder}: lists {folds} test a patch twice: set folds to some that do not"
        )

    def listed(cfg: StudyConfig, fold: int) -> Recipe:
        train, test = lists[str(fold)]
        return Recipe(cfg, id_files(cfg, train), [], test)

    def apart(cfg: StudyConfig, fold: int) -> Recipe | None:
        out = held_out(names, fold, "region", 0, None)
        test = sorted(out & tested)
        train = [name for name in names if name not in out]
        return Recipe(cfg, id_files(cfg, train), [], test) if test else None

    plain = replace(cfg, select="last")
    results = run_arms(replace(plain, folds=folds), {LISTED: listed})
    results |= run_arms(replace(plain, folds=tuple(range(PARTS))), {APART: apart})
    if cfg.plan:
        return
    by_seed = {
        arm: [
            pool([result.counts for (_, seed), result in of_arm.items() if seed == wanted])
            for wanted in cfg.seeds
        ]
        for arm, of_arm in results.items()
    }
    fall = paired_differences(by_seed[APART], by_seed[LISTED])
    rows = [
        [f"`{name}`", *(spread(values(of_arm, name)) for of_arm in results.values())]
        + [fall[name].text()]
        for name in SCORES
    ]
    scores = markdown(["", *results, "difference, all folds as one test"], rows)
    tables = {"Both sides of the lists": table, "Scores of the baseline": scores}
    differences = {f"{APART} - {LISTED}": fall}
    out = write_study(cfg, "leakage", results, tables, differences)
    bars = {name: tuple(fall[name]) for name in SCORES}
    title = f"{cfg.model_name}: regions apart less lists as they are"
    draw_intervals(out.with_suffix(".png"), title, "points", bars)
    print(f"{out}.csv, .json, .md, .png")


if __name__ == "__main__":
    run(leakage, LeakageConfig())
