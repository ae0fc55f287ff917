"""How a study tells of its results: cells of tables, differences, and the files that hold them.

<workspace>/reports/studies/<study>_<model>.*  CSV, JSON, Markdown and figure of a study
"""

from collections.abc import Iterable
from pathlib import Path

from config import Config, UserError
from medood.data.files import csv_text, write_json, write_text
from medood.data.workspace import data_name
from medood.evaluation.statistics import Difference, paired_differences
from medood.evaluation.tables import INTERVAL, OWN_SCORES, spread
from medood.models.checkpoints import versions
from medood.runs.provenance import plain_settings
from studies.common import Result, Results, StudyConfig, seeds_of

# what tables of networks show, and those of differences, which a rate at equal rates heads
SHOWN = ("ap", "miou_paper", "miou", "fg_to_bg", "bg_to_fg")
COMPARED = ("ap", "bg_to_fg_matched", *SHOWN[1:])


def compare(results: Results, arm: str, against: str) -> dict[str, Difference]:
    """Return the paired differences of two arms over the folds and seeds that both have.

    Raises UserError if there is none.
    """
    both = [key for key in results[arm] if key in results[against]]
    if not both:
        raise UserError(f"{arm} and {against}: no fold has patches for both: set folds to others")
    classes = results[arm][both[0]].recipe.cfg.class_names
    return paired_differences(
        *([results[name][key].counts for key in both] for name in (arm, against)), classes
    )


def patchwise(results: dict[tuple[int, int], Result], of: str, value: int) -> list[float]:
    """Return the patch-by-patch IoU of a class, for each fold and seed.

    of: "network", or "floor" for a network that predicts background everywhere.
    """
    return [result.patchwise[of][value] for result in results.values()]


def values(results: dict[tuple[int, int], Result], name: str) -> list[float | None]:
    """Return a score, or a note of the recipe, for each fold and seed of an arm."""
    if name.startswith("IoU "):
        return [
            result.scores["iou"][result.recipe.cfg.class_names.index(name[4:])]
            for result in results.values()
        ]
    return [result.scores.get(name, result.recipe.notes.get(name)) for result in results.values()]


def heads(names: Iterable[str]) -> list[str]:
    """Return the heads of the columns of some scores."""
    return [f"`{name}`" for name in names]


def shown(results: dict[tuple[int, int], Result]) -> list[str]:
    """Return an arm's cells in the columns SHOWN."""
    return [spread(values(results, name)) for name in SHOWN]


def shown_floor(results: dict[tuple[int, int], Result]) -> list[str]:
    """Return what `all_background` scores on an arm's tests, in the columns SHOWN."""
    return [spread([result.floor[name] for result in results.values()]) for name in SHOWN]


def compared(gain: dict[str, Difference]) -> list[str]:
    """Return the cells of a difference in the columns COMPARED."""
    return [gain[name].text() for name in COMPARED]


def figure_title(cfg: StudyConfig, text: str) -> str:
    """Return the title of a study's figure: the data, the epochs and a text."""
    return f"{data_name(cfg.workspace)}, {cfg.epochs} epochs\n{text}"


def by_class(cfg: Config, results: Results) -> dict[str, dict[str, list[float | None]]]:
    """Return the IoU of every class, background included, by arm, as draw_bars takes it."""
    return {
        arm: {name: values(of_arm, f"IoU {name}") for name in cfg.class_names}
        for arm, of_arm in results.items()
    }


def write_study(
    cfg: StudyConfig,
    study: str,
    results: Results,
    tables: dict[str, str],
    differences: dict[str, dict[str, Difference]],
    paper: object = None,
) -> Path:
    """Print the tables; write tables, single scores and differences; return the path of the files.

    tables: Markdown by caption. differences: by the pair that is compared. paper: the paper's
    numbers. The files lie in reports/studies. The path has no ending; it names the network if there
    is only one.
    """
    every = [result for of_arm in results.values() for result in of_arm.values()]
    networks = sorted({result.recipe.cfg.model_name for result in every})
    # the name keeps apart the runs of one study on single networks
    name = f"{study}_{networks[0]}" if len(networks) == 1 else study
    out = cfg.workspace / "reports" / "studies" / name
    seeds = ", ".join(map(str, seeds_of(cfg)))
    title = (
        f"{data_name(cfg.workspace)}. {study}: {', '.join(networks)}, {cfg.epochs} epochs,"
        f" folds {', '.join(map(str, cfg.folds))}, seeds {seeds}, split {cfg.split};"
        f" percent, mean ± standard deviation; differences {INTERVAL.format(cfg.unit)}"
    )
    text = "\n".join([f"{title}\n", *(f"{part}\n\n{table}" for part, table in tables.items())])
    print(f"\n{text}")
    notes = sorted(
        {note for arm in results.values() for r in arm.values() for note in r.recipe.notes}
    )
    classes = [f"IoU {name}" for name in cfg.class_names]
    header = ["arm", "network", "fold", "seed", "id_patches", "ood_patches", "steps"]
    rows = [
        [
            *(arm, result.folder.name, fold, seed),
            len(result.recipe.files) - result.recipe.ood_patches,
            *(result.recipe.ood_patches, result.recipe.steps),
            *(result.recipe.notes.get(note, "") for note in notes),
            *(result.scores[name] for name in OWN_SCORES),
            *result.scores["iou"],
            result.floor["miou_paper"],
        ]
        for arm, of_arm in results.items()
        for (fold, seed), result in of_arm.items()
    ]
    columns = [*header, *notes, *OWN_SCORES, *classes, "floor_miou_paper"]
    write_text(Path(f"{out}.csv"), csv_text(columns, rows))
    content = {
        "data": data_name(cfg.workspace),
        "settings": plain_settings(cfg) | {"seeds": cfg.seeds},
        "versions": versions(),
        "rows": [dict(zip(columns, row, strict=True)) for row in rows],
        "differences": {
            pair: {name: difference.plain() for name, difference in of_pair.items()}
            for pair, of_pair in differences.items()
        },
        "paper": paper,
    }
    write_json(Path(f"{out}.json"), content)
    write_text(Path(f"{out}.md"), text)
    return out
