"""Train a segmentation network on pseudo-masks, with the images that hold no class as negatives.

Reads   weak/Images, weak/Pseudo_Masks                    (generate_masks.py)
Writes  models/<fold>_<model>_weak_positives/             trained on the images that hold a class
        models/<fold>_<model>_weak/                       and on the negatives that fooled it

This is Med-OoD without a cut: an image whose label is 0 everywhere shows no class, so whatever the
first network sees in it is false. Those in which it sees something, the hardest first, are added
until the positive-negative ratio comes nearest to pnr_opt; the rest is pruned. With the control of
shuffled labels both names end in _shuffled.
"""

import shutil
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import Config, UserError
from medood.data.files import fingerprint, in_threads, whole_folder, write_json
from medood.data.records import RUN
from medood.data.workspace import Pair, weights_of
from medood.runs.command_line import run
from medood.runs.products import network_made_from
from medood.runs.provenance import require
from weak.image_labels import with_classes
from weak.products import IMAGES, PSEUDO_MASKS, fold_labels, image_paths, masks_folder
from weak.settings import MasksConfig

SEARCH = ("mirrors", "pnr_opt", "pct_grid")  # beside those of its training: they choose negatives


def weak_network(cfg: MasksConfig, fold: int, negatives: bool = True) -> Path:
    """Return where the network of a fold is, trained with or without negatives."""
    ending = ("" if negatives else "_positives") + "_shuffled" * cfg.shuffled
    return cfg.workspace / "models" / f"{fold}_{cfg.model_name}_weak{ending}"


def train_segmentation(cfg: MasksConfig) -> None:
    """Train both networks of every fold."""
    cfg = with_classes(cfg)
    require(cfg, IMAGES, PSEUDO_MASKS)
    for fold in cfg.folds:
        train_networks(cfg, fold)


def train_networks(cfg: MasksConfig, fold: int) -> None:
    """Train the network of a fold on its positives, mine the negatives, and train the second."""
    # here, so that --help works without torch
    from medood.models.checkpoints import read_run
    from medood.training.segmentation import train_fold

    positives, negatives = training_files(cfg, fold)
    if not hold_a_class(cfg, positives):
        found = f"fold {fold}: no mask in {masks_folder(cfg, fold)} holds a class"
        if not cfg.shuffled:
            raise UserError(f"{found}: train the classifier longer, see its scores.json")
        print(f"{found}: as it should be, nothing was learned from shuffled labels")
        return
    first = weak_network(cfg, fold, negatives=False)
    train_fold(cfg, fold, positives, [], first)
    chosen = mine(cfg, fold, first, positives, negatives)
    second, made_from = weak_network(cfg, fold), made_from_of(cfg, fold)
    if not chosen and not second.exists():  # trained again, it would be the same to the bit
        with whole_folder(second) as copied:
            shutil.copytree(first, copied, dirs_exist_ok=True)
            write_json(copied / RUN, read_run(first) | {"made_from": made_from})
    train_fold(cfg, fold, positives + chosen, [], second, made_from=made_from)


def made_from_of(cfg: MasksConfig, fold: int, negatives: bool = True) -> dict:
    """Return what decides the network of a fold, trained with or without negatives.

    Of the negatives, it is all that there are, and what chooses among them: the first network, and
    the settings of the search.
    """
    positives, others = training_files(cfg, fold)
    if not negatives:
        return network_made_from(cfg, fold, positives)
    first = weights_of(weak_network(cfg, fold, negatives=False))
    made_from = network_made_from(cfg, fold, positives + others, SEARCH)
    return made_from | {"first network": fingerprint([first])}


def training_files(cfg: MasksConfig, fold: int) -> tuple[list[Pair], list[Pair]]:
    """Return the training images that hold a class, with their masks, and those that hold none."""
    labels, train, _ = fold_labels(cfg, fold)
    paths, masks = image_paths(cfg, labels), masks_folder(cfg, fold)
    holding = [index for index in train if labels.labels[index].any()]
    empty = [index for index in train if not labels.labels[index].any()]
    positives = [(paths[index], masks / paths[index].name) for index in holding]
    return positives, [(paths[index], None) for index in empty]


def hold_a_class(cfg: MasksConfig, positives: list[Pair]) -> bool:
    """Say whether any mask holds a class: there is nothing to learn otherwise."""
    return any(count for count, _ in count_files(cfg, positives))


def mine(
    cfg: Config, fold: int, network: Path, positives: list[Pair], negatives: list[Pair]
) -> list[Pair]:
    """Return the negatives to train on: those that fool a network, as many as pnr_opt asks for."""
    from estimate_pct import choose_pct, count_samples
    from rank_prune_ood import rank_files

    if not negatives:
        print(f"fold {fold}: every training image holds a class: there is no negative to mine")
        return []
    rows = rank_files(cfg, network, negatives, f"fold {fold}: mining")
    of_name = {image.name: (image, mask) for image, mask in negatives}
    hard = [of_name[row[1]] for row in rows if row[-1]]
    counts = count_samples(*zip(*count_files(cfg, positives), strict=True))
    best, _ = choose_pct(*counts, len(hard), cfg.pct_grid, cfg.pnr_opt)
    print(
        f"fold {fold}: {len(hard)} of {len(negatives)} negatives fool the network; pct"
        f" {best['pct']:g}, {best['ood_patches']} of them, brings the pnr to {best['pnr']:.3f}"
    )
    return hard[: best["ood_patches"]]


def count_files(cfg: Config, files: list[Pair]) -> list[tuple[int, int]]:
    """Return how many pixels of each image's mask are of a class, and how many are sure."""
    from estimate_pct import count_pixels

    count = partial(count_pixels, classes=len(cfg.class_names))
    return in_threads(count, [mask for _, mask in files])


if __name__ == "__main__":
    run(train_segmentation, MasksConfig())
