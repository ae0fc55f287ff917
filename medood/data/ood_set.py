"""The files that pass the OoD set of a fold from step to step.

HardOoD/<fold>_<model>.csv         every candidate, hardest first     rank_prune_ood.py writes it
HardOoD/<fold>_<model>_pct.json    how many of them are trained on    estimate_pct.py writes it
"""

from config import Config, TrainingConfig, UserError
from medood.commands import command
from medood.data.files import pngs, read_json, read_table
from medood.data.folds import read_fold
from medood.data.names import name_of, plain
from medood.data.workspace import pct_path, ranking_path

ESTIMATE = {  # the numbers of an estimate, without the grid
    **dict.fromkeys(("available", "ood_patches", "id_patches", "positives", "negatives"), int),
    **dict.fromkeys(("pct", "pnr", "pnr_id", "distance"), (int, float)),
}


def columns(cfg: Config) -> list[str]:
    """Return the columns of a ranking: a count of false pixels for each foreground class."""
    return ["rank", "img_name", "miou", "false_pixels", *cfg.class_names[1:], "kept"]


def ood_candidates(cfg: Config, names: list[str]) -> list[str]:
    """Return the OoD patches to mine for a fold with these training patches."""
    if cfg.ood_source is None:
        return names
    of_source = [*map(name_of, pngs(cfg.workspace / "OoD_Source_Patchs"))]
    return of_source if cfg.ood_source_use == "instead" else names + of_source


def read_hard_oods(cfg: Config, fold: int) -> list[str]:
    """Return the names of the OoD patches that were kept, hardest first."""
    path = ranking_path(cfg, fold)
    again = (
        f"remove it and run `{command(cfg, 'rank_prune_ood.py', TrainingConfig, folds=(fold,))}`"
    )
    rows, expected = read_table(path), [*map(plain, columns(cfg))]
    if not rows or any(set(row) != set(expected) for row in rows):
        raise UserError(f"{path} lacks columns of {', '.join(expected)}: {again}")
    kept = [row["img_name"] for row in rows if row["kept"] == "1"]
    # a name from elsewhere must not point to a file outside the workspace
    if unknown := set(kept) - set(ood_candidates(cfg, read_fold(cfg, fold).train)):
        raise UserError(
            f"{path} ranks {min(unknown)}, which is not an OoD patch of this fold's training side:"
            f" {again}"
        )
    return kept


def chosen_oods(cfg: Config, fold: int) -> list[str]:
    """Return the names of the OoD patches that Med-OoD trains on: the hardest share."""
    estimate = read_estimate(cfg, fold)
    if not estimate:
        again = command(cfg, "estimate_pct.py", Config, folds=(fold,))
        raise UserError(f"{pct_path(cfg, fold)} is not an estimate: remove it and run `{again}`")
    return read_hard_oods(cfg, fold)[: estimate["ood_patches"]]


def read_estimate(cfg: Config, fold: int) -> dict:
    """Return the estimate of a fold; {} if estimate_pct.py would not write it like this."""
    estimate = read_json(pct_path(cfg, fold)) or {}
    numbers = all(isinstance(estimate.get(name), kind) for name, kind in ESTIMATE.items())
    return estimate if numbers else {}
