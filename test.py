"""Test the networks of every fold on its test patches: scores and a report.

Reads   models/<fold>_<model>/ and, where trained, models/<fold>_<model>_ood/
        Image_Patchs and Mask_Patchs of the fold's test patches
Writes  reports/<model>/index.html                the report, with its figures in one file
        reports/<model>/scores.json, table.md     and the figures alone
        reports/<model>/differences.json, of two networks: the second less the first, as fractions
        reports/checkpoints/<name>/               the same, of checkpoints named on the command line

`python test.py --checkpoint workspace/models/79_unet_vgg11_bn` tests only that network; a second
`--checkpoint` compares two.
"""

from __future__ import annotations

from pathlib import Path

from tyro.conf import UseAppendAction

from config import CONFIG, Config, UserError, settings
from medood.data.files import write_json
from medood.data.folds import Fold, read_fold
from medood.data.workspace import fold_path, model_folder
from medood.processes import is_main
from medood.runs.command_line import run
from medood.runs.products import BASELINE, FOLD, MED_OOD, PATCH_MASKS, PATCHES
from medood.runs.provenance import require


@settings
class TestConfig(Config):
    """The settings of test.py only."""

    checkpoint: UseAppendAction[tuple[Path, ...]] = ()
    """Test this network (a folder, or a file of weights) instead of models/; twice: compare two."""


def named(checkpoints: tuple[Path, ...]) -> dict[str, Path]:
    """Return one or two checkpoints by names that distinguish them; UserError for others."""
    if len(checkpoints) > 2:
        raise UserError(f"{len(checkpoints)} checkpoints: give one, or two to compare")
    if len({path.resolve() for path in checkpoints}) < len(checkpoints):
        raise UserError(f"checkpoint: {checkpoints[0]} is named twice: give two networks")
    for path in checkpoints:
        if not path.exists():
            raise UserError(f"checkpoint: {path} does not exist: correct its name")
    names = [path.resolve().name for path in checkpoints]
    if len(set(names)) < len(names):
        names = ["_".join(path.resolve().parts[1:]) for path in checkpoints]
    return dict(zip(names, checkpoints, strict=True))


def networks(cfg: Config, checkpoints: dict[str, Path]) -> dict[int, dict[str, Path]]:
    """Return the networks of each fold, by their name in scores.json.

    They are those of models/; or the checkpoints, for each fold that might test them.
    """
    if not checkpoints:
        with_ood = any(model_folder(cfg, fold, ood=True).exists() for fold in cfg.folds)
        arms = {"baseline": False, "ood": True} if with_ood else {"baseline": False}
        if not with_ood and any(model_folder(cfg, fold, ood=False).exists() for fold in cfg.folds):
            print("there is no Med-OoD network yet: only the baseline is tested")
        return {
            fold: {name: model_folder(cfg, fold, ood) for name, ood in arms.items()}
            for fold in cfg.folds
        }
    from medood.models.checkpoints import read_run, seen_in_training

    for path in checkpoints.values():
        if seen_in_training(path) is None:
            print(f"{path} has no list of its training patches: make sure that none is tested here")
    own = [read_run(path).get("fold") for path in checkpoints.values()]
    # its own fold comes first: a network of train.py is tested there
    folds = [fold for fold in own if fold is not None and fold_path(cfg.workspace, fold).exists()]
    return dict.fromkeys([*folds, *cfg.folds], checkpoints)


def folds_to_test(
    cfg: Config, folders: dict[int, dict[str, Path]], checkpoints: dict[str, Path]
) -> dict[int, Fold]:
    """Return the folds that test no patch on which their networks were trained.

    Raises UserError if data or networks are missing or out of date, if a network of models/ was
    trained on its test patches, and if checkpoints were trained on those of every fold.
    """
    from medood.models.checkpoints import has_seen

    trained = [] if checkpoints else [BASELINE, MED_OOD][: len(folders[cfg.folds[0]])]
    require(cfg, PATCHES, PATCH_MASKS, FOLD, *trained)
    folds = {fold: read_fold(cfg, fold) for fold in folders}
    for fold, of_fold in folders.items():
        tested = folds[fold].test
        seen = [path for path in of_fold.values() if has_seen(path, tested, cfg.patch_size)]
        if seen and not checkpoints:
            raise UserError(
                f"{seen[0]} was trained on patches that fold {fold} now tests: remove it to have it"
                " trained again, or restore the list of the fold"
            )
        if seen:
            del folds[fold]
    if not folds:
        names = " or ".join(map(str, checkpoints.values()))
        raise UserError(
            f"every fold tests patches that {names} was trained on: test it on other data, or"
            " compare networks of one fold"
        )
    return folds


def evaluate(cfg: Config = CONFIG, checkpoints: tuple[Path, ...] = ()) -> None:
    """Test the networks of every fold, or one or two checkpoints; write scores and report."""
    of_name = named(checkpoints)
    # here, so that --help needs no torch
    from medood.evaluation.model_card import record_scores
    from medood.evaluation.nuclei import no_nuclei
    from medood.evaluation.report import Comparison, write_report
    from medood.evaluation.testing import score_networks

    folders = networks(cfg, of_name)
    folds = folds_to_test(cfg, folders, of_name)
    if (why := no_nuclei(cfg)) and is_main():
        print(why)
    tests = {
        fold: score_networks(cfg, folders[fold], patches.test, f"fold {fold}")
        for fold, patches in folds.items()
    }
    if not is_main():
        return
    if not checkpoints:
        for test in tests.values():
            record_scores(test)
    found = Comparison(cfg, bool(checkpoints), folds, tests)
    scores = {fold: test.scores for fold, test in tests.items()}
    write_json(found.folder / "scores.json", scores)
    write_report(found)


if __name__ == "__main__":
    run(lambda cfg: evaluate(cfg, cfg.checkpoint), TestConfig())
