"""The results of a study: one report for all, with tables, differences and a figure.

<workspace>/reports/studies/<study>_<model>.*  CSV, JSON, Markdown and figure of a study
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from config import Config, UserError
from medood.data.files import csv_text, write_json, write_text
from medood.data.workspace import data_name
from medood.evaluation.figures import draw_bars, draw_intervals
from medood.evaluation.scores import RegionCounts
from medood.evaluation.statistics import Difference, paired_differences, pool
from medood.evaluation.tables import OWN_SCORES, SHARES, interval_over, spread
from medood.markdown import markdown
from medood.models.checkpoints import versions
from medood.runs.products import plain_settings
from studies.common import Result, Results, StudyConfig, seeds_of

# the columns of tables of networks and of differences, which have a matched rate
BY_NUCLEUS = ("mpq", "bpq", *SHARES)
SHOWN = ("ap", "miou_paper", "miou", "fg_to_bg", "bg_to_fg", *BY_NUCLEUS)
COMPARED = ("ap", "bg_to_fg_matched", *SHOWN[1:])
FORMATS = {"steps": (1, 0), "hard": (1, 0), "moved": (100, 0), "pnr": (1, 3)}
FORMATS |= {"id_patches": (1, 0), "ood_patches": (1, 0)}

Differences = dict[str, dict[str, Difference]]  # by pair, `<arm> - <reference>`, and by score
OfArm = dict[tuple[int, int], Result]  # by fold and seed


def compare(
    results: Results, arm: str, against: str, classes: tuple[str, ...], as_one: bool = False
) -> dict[str, Difference]:
    """Return the paired differences of two arms over the folds and seeds that both have.

    classes: the name of each value of a mask. as_one: the arms have other folds; all folds of a
    seed are one test. Raises UserError if there is none.
    """
    ours, theirs = (tests_of(results[name], as_one) for name in (arm, against))
    both = [key for key in ours if key in theirs]
    if not both:
        raise UserError(f"{arm} and {against}: no fold has patches for both: set other folds")
    return paired_differences(*([of[key] for key in both] for of in (ours, theirs)), classes)


def tests_of(results: OfArm, as_one: bool) -> dict[object, RegionCounts]:
    """Return the counts of an arm by fold and seed, or as one test by seed."""
    counts = {key: result.counts for key, result in results.items()}
    if not as_one:
        return counts
    seeds = {seed for _, seed in counts}
    return {s: pool([of for (_, seed), of in counts.items() if seed == s]) for s in sorted(seeds)}


def values(results: OfArm, name: str) -> list[float | None]:
    """Return a score, a size or a note of the recipe, for each fold and seed of an arm."""
    return [(result.sizes | result.scores).get(name) for result in results.values()]


def ious(results: OfArm, value: int) -> list[float | None]:
    """Return the IoU of a class, by its value in a mask, for each fold and seed of an arm."""
    return [result.scores["iou"][value] for result in results.values()]


def heads(names: Iterable[str]) -> list[str]:
    """Return the heads of some columns."""
    return [f"`{name}`" if name in (*OWN_SCORES, *COMPARED) else name for name in names]


def cells(results: OfArm, names: Iterable[str]) -> list[str]:
    """Return an arm's cells in some columns."""
    return [spread(values(results, name), *FORMATS.get(name, ())) for name in names]


def class_table(cfg: Config, results: Results, printed: dict[str, dict[str, object]]) -> str:
    """Return the IoU of every class, pooled and, as in the paper, patch by patch.

    There, a class absent from ground truth and prediction of a patch counts 1; `floor` is that of a
    network that predicts background everywhere. printed: the paper's columns, by class.
    """
    floor = next(iter(results.values()))
    header = ["class", *(f"IoU {arm}" for arm in results), "patch by patch: floor", *results]
    rows = []
    for value, kind in enumerate(cfg.class_names):
        rows.append([kind, *(spread(ious(of_arm, value)) for of_arm in results.values())])
        rows[-1].append(spread([r.patchwise["floor"][value] for r in floor.values()]))
        for of_arm in results.values():
            rows[-1].append(spread([r.patchwise["network"][value] for r in of_arm.values()]))
        rows[-1] += [str(column.get(kind, "-")) for column in printed.values()]
    return markdown([*header, *printed], rows)


def draw_classes(path: Path, title: str, cfg: Config, results: Results) -> None:
    """Draw the IoU of every class."""
    bars = {
        arm: {name: ious(of_arm, value) for value, name in enumerate(cfg.class_names)}
        for arm, of_arm in results.items()
    }
    draw_bars(path, title, "IoU, percent; dots are folds and seeds", bars)


def tell(
    cfg: StudyConfig,
    study: str,
    results: Results,
    against: dict[str, list[str]],
    *,
    columns: tuple[str, ...] = (),
    printed: dict[str, dict[str, object]] | None = None,
    tables: dict[str, str] | None = None,
    draw: Callable[[Path, str], None] | None = None,
    as_one: bool = False,
) -> None:
    """Print the scores and differences of a study, and write them with a figure.

    against: the arms to compare, by their reference. columns: additional ones of the table of
    scores. printed: the paper's columns, by arm. tables: additional ones, by caption. draw: draws
    the figure, instead of the differences of `ap`. as_one: see `compare`.
    """
    printed = printed or {}
    floor = [result.floor for result in next(iter(results.values())).values()]
    columns = (*columns, *(name for name in SHOWN if name in floor[0]))
    header = ["", "trainings", "steps", *heads(columns), *printed]
    rows = [
        [arm, str(len(of_arm)), *cells(of_arm, ["steps", *columns])]
        + [str(column.get(arm, "-")) for column in printed.values()]
        for arm, of_arm in results.items()
    ]
    known = [spread([of.get(name) for of in floor]) for name in columns]
    rows.append(["all background", "-", "-", *known, *["-"] * len(printed)])
    differences = {
        f"{arm} - {other}": compare(results, arm, other, cfg.class_names, as_one)
        for other, arms in against.items()
        for arm in arms
    }
    every = {"Scores": markdown(header, rows)} | (tables or {})
    for other, arms in against.items():
        gains = {arm: differences[f"{arm} - {other}"] for arm in arms}
        names = [name for name in COMPARED if all(name in gain for gain in gains.values())]
        less = [[arm, *(gain[name].text() for name in names)] for arm, gain in gains.items()]
        every[f"Less {other}"] = markdown(["", *heads(names)], less)
    out = write_study(cfg, study, results, every, differences)
    path, title = Path(f"{out}.png"), f"{data_name(cfg.workspace)}, {cfg.epochs} epochs\n{out.name}"
    if draw:
        draw(path, title)
    else:
        rows = {pair: gain["ap"] for pair, gain in differences.items()}
        draw_intervals(path, title, "`ap`, points; grey: n.s.", rows)
    print(f"{out}.csv, .json, .md, .png")


def write_study(
    cfg: StudyConfig, study: str, results: Results, tables: dict[str, str], differences: Differences
) -> Path:
    """Print the tables; write tables, single scores and differences; return the path of the files.

    The files are in reports/studies. The path has no ending; it names the network if there is only
    one.
    """
    every = [result for of_arm in results.values() for result in of_arm.values()]
    networks = sorted({result.network for result in every})
    # the name separates the runs of one study on single networks
    name = f"{study}_{networks[0]}" if len(networks) == 1 else study
    out = cfg.workspace / "reports" / "studies" / name
    units = {name for result in every for name in result.counts.regions}
    seeds = ", ".join(map(str, seeds_of(cfg)))
    title = (
        f"{data_name(cfg.workspace)}. {study}: {', '.join(networks)}, {cfg.epochs} epochs,"
        f" folds {', '.join(map(str, cfg.folds))}, seeds {seeds}, split {cfg.split};"
        f" percent, mean ± standard deviation; differences {interval_over(len(units), cfg.unit)}"
    )
    text = "\n".join([f"{title}\n", *(f"{part}\n\n{table}" for part, table in tables.items())])
    print(f"\n{text}")
    sizes = list(dict.fromkeys(name for result in every for name in result.sizes))
    rows = [
        {
            **{"arm": arm, "network": result.folder.name, "fold": fold, "seed": seed},
            **{name: result.sizes.get(name, "") for name in sizes},
            **{name: result.scores.get(name) for name in OWN_SCORES},
            **{f"IoU {kind}": result.scores["iou"][c] for c, kind in enumerate(cfg.class_names)},
            "floor_miou_paper": result.floor["miou_paper"],
        }
        for arm, of_arm in results.items()
        for (fold, seed), result in of_arm.items()
    ]
    write_text(Path(f"{out}.csv"), csv_text([*rows[0]], [row.values() for row in rows]))
    content = {
        "data": data_name(cfg.workspace),
        "settings": plain_settings(cfg) | {"seeds": cfg.seeds},
        "versions": versions(),
        "rows": rows,
        "differences": {
            pair: {name: difference.plain() for name, difference in of_pair.items()}
            for pair, of_pair in differences.items()
        },
    }
    write_json(Path(f"{out}.json"), content)
    write_text(Path(f"{out}.md"), text)
    return out
