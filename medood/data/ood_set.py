"""The files in which the OoD set of a fold goes from step to step.

HardOoD/<fold>_<model>.csv         every candidate, hardest first     rank_prune_ood.py writes it
HardOoD/<fold>_<model>_pct.json    how many of them are trained on    estimate_pct.py writes it
"""

from pathlib import Path

from config import Config, UserError
from medood.data.files import SOURCE_PREFIX, list_pngs, model_folder, read_json, read_table
from medood.data.folds import read_fold
from medood.data.records import changes, fingerprint

ESTIMATE = {  # what an estimate says, beside the grid
    **dict.fromkeys(("available", "ood_patches", "id_patches", "positives", "negatives"), int),
    **dict.fromkeys(("pct", "pnr", "pnr_id", "distance"), (int, float)),
}


def columns(cfg: Config) -> list[str]:
    """Return the columns of a ranking: a count of false pixels for each foreground class."""
    return ["rank", "img_name", "miou", "false_pixels", *cfg.class_names[1:], "kept"]


def ranking_path(cfg: Config, fold: int) -> Path:
    """Return where the ranked candidates of a fold lie."""
    return cfg.workspace / "HardOoD" / f"{fold}_{cfg.model_name}.csv"


def pct_path(cfg: Config, fold: int) -> Path:
    """Return where the estimate of a fold lies."""
    return cfg.workspace / "HardOoD" / f"{fold}_{cfg.model_name}_pct.json"


def ood_path(cfg: Config, name: str) -> Path:
    """Return where an OoD patch lies: one cut from the ID set, or one of ood_source."""
    if cfg.ood_source is not None and name.startswith(SOURCE_PREFIX):
        return cfg.workspace / "OoD_Source_Patchs" / name
    return cfg.workspace / "OoD_Patchs" / name


def ood_candidates(cfg: Config, names: list[str]) -> list[str]:
    """Return the OoD patches to mine for a fold with these training patches."""
    if cfg.ood_source is None:
        return names
    folder = cfg.workspace / "OoD_Source_Patchs"
    of_source = [path.name for path in list_pngs(folder, made_by="generate_unfiltered_oods.py")]
    return of_source if cfg.ood_source_use == "instead" else names + of_source


def read_hard_oods(cfg: Config, fold: int) -> list[str]:
    """Return the names of the OoD patches that were kept, hardest first."""
    path = ranking_path(cfg, fold)
    if not path.exists():
        raise UserError(f"{path} is missing: run `python rank_prune_ood.py --folds {fold}` first")
    rows = read_table(path)
    expected = columns(cfg)
    if not rows or any(set(row) != set(expected) for row in rows):
        raise UserError(f"{path} lacks columns of {', '.join(expected)}: remove it and rank again")
    if record := read_json(path.with_suffix(".json")):  # a ranking of the user's has none
        _refuse_stale(cfg, fold, record)
    kept = [row["img_name"] for row in rows if row["kept"] == "1"]
    # a name from elsewhere must not reach a file outside the workspace
    if unknown := set(kept) - set(ood_candidates(cfg, read_fold(cfg, fold).train)):
        raise UserError(
            f"{path} ranks {min(unknown)}, which is no OoD patch of this fold's training side:"
            f" run `python rank_prune_ood.py --folds {fold}` again"
        )
    return kept


def chosen_oods(cfg: Config, fold: int) -> list[str]:
    """Return the names of the OoD patches that Med-OoD trains on: the hardest share."""
    return read_hard_oods(cfg, fold)[: read_pct(cfg, fold)["ood_patches"]]


def _refuse_stale(cfg: Config, fold: int, record: dict) -> None:
    """Raise UserError if the ranking was made from another network or other OoD patches."""
    again = f"remove it and run `python rank_prune_ood.py --folds {fold}` again"
    weights = model_folder(cfg, fold, ood=False) / "model.safetensors"
    if weights.exists() and record.get("network") != fingerprint([weights]):
        path = ranking_path(cfg, fold)
        raise UserError(f"{path} is older than the baseline in {weights.parent}: {again}")
    names = ood_candidates(cfg, read_fold(cfg, fold).train)
    if record.get("candidates") != fingerprint(ood_path(cfg, name) for name in names):
        raise UserError(
            f"{ranking_path(cfg, fold)} ranks other OoD patches than there are now (ood_fill,"
            f" ood_source, select or the fold's list changed): {again}"
        )


def read_pct(cfg: Config, fold: int) -> dict:
    """Return what estimate_pct.py found for a fold, if it was of the ranking that is there."""
    path, first = pct_path(cfg, fold), f"run `python estimate_pct.py --folds {fold}` first"
    estimate = stored_estimate(cfg, fold)
    if not estimate:
        raise UserError(f"{path} is missing, or no estimate: {first}")
    if why := changes(estimate.get("made_from", {}), pct_record(cfg, fold)):
        raise UserError(f"{path} is out of date ({why}): {first}")
    return estimate


def stored_estimate(cfg: Config, fold: int) -> dict:
    """Return what estimate_pct.py wrote for a fold, whatever ranking it is of; {} if nothing."""
    estimate = read_json(pct_path(cfg, fold)) or {}
    numbers = all(isinstance(estimate.get(name), kind) for name, kind in ESTIMATE.items())
    return estimate if numbers and isinstance(estimate.get("made_from"), dict) else {}


def pct_record(cfg: Config, fold: int) -> dict:
    """Return what the estimate of a fold is made from."""
    masks = [cfg.workspace / "Mask_Patchs" / name for name in read_fold(cfg, fold).train]
    return {
        "pnr_opt": cfg.pnr_opt,
        "pct_grid": list(cfg.pct_grid),
        "ranking": fingerprint([ranking_path(cfg, fold)]),
        "masks": fingerprint(masks),
    }
