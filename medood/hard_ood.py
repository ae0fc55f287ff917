"""The files in which the OoD set of a fold goes from step to step.

HardOoD/<fold>_<model>.csv         every candidate, hardest first     rank_prune_ood.py writes it
HardOoD/<fold>_<model>_pct.json    how many of them are trained on    estimate_pct.py writes it
"""

import csv
from pathlib import Path

from config import Config, UserError
from medood.classes import CLASSES
from medood.files import fingerprint, model_folder, read_json

COLUMNS = ["rank", "img_name", "miou", "false_pixels", *(c.name for c in CLASSES[1:]), "kept"]


def ranking_path(cfg: Config, fold: int) -> Path:
    """Return where the ranked candidates of a fold lie."""
    return cfg.workspace / "HardOoD" / f"{fold}_{cfg.model_name}.csv"


def pct_path(cfg: Config, fold: int) -> Path:
    """Return where the estimate of a fold lies."""
    return cfg.workspace / "HardOoD" / f"{fold}_{cfg.model_name}_pct.json"


def read_hard_oods(cfg: Config, fold: int) -> list[str]:
    """Return the names of the OoD patches that were kept, hardest first."""
    path = ranking_path(cfg, fold)
    if not path.exists():
        raise UserError(f"{path} is missing: run `python rank_prune_ood.py --folds {fold}` first")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if any(set(row) != set(COLUMNS) for row in rows):
        raise UserError(f"{path} lacks columns of {', '.join(COLUMNS)}: remove it and rank again")
    weights = model_folder(cfg, fold, ood=False) / "model.safetensors"
    mined_with = (read_json(path.with_suffix(".json")) or {}).get("network")
    if weights.exists() and mined_with not in (None, fingerprint([weights])):
        raise UserError(
            f"{path} is older than the baseline in {weights.parent}:"
            f" run `python rank_prune_ood.py --folds {fold}` again"
        )
    return [row["img_name"] for row in rows if row["kept"] == "1"]


def read_pct(cfg: Config, fold: int) -> dict:
    """Return what estimate_pct.py found for a fold, if it was of the ranking that is there."""
    estimate = read_json(pct_path(cfg, fold))
    if estimate is None or estimate.get("ranking") != fingerprint([ranking_path(cfg, fold)]):
        raise UserError(
            f"{pct_path(cfg, fold)} is missing or older than the ranking:"
            f" run `python estimate_pct.py --folds {fold}` first"
        )
    return estimate
