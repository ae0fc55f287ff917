"""Train a segmentation network on pseudo-masks, with the images without any class as negatives.

Reads   weak/Images, weak/Pseudo_Masks                    (generate_masks.py)
Writes  models/<fold>_<model>_weak_positives/             trained on the images with a class
        models/<fold>_<model>_weak/                       and on the negatives that fooled it
        models/<fold>_<model>_weak_pooled[_positives]/    with method = unet, the same two
        models/<fold>_<model>_weak_transfer_<lesion>[_positives]/    with method = transfer

This is Med-OoD without a cut: an image whose label is 0 everywhere has no class, so any foreground
that the first network predicts in it is false. Those with any, the hardest first, are added until
the positive-negative ratio is nearest to pnr_opt; the rest is pruned. With the control of shuffled
labels both names end in _shuffled.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import Config, UserError
from estimate_pct import choose_pct, count_samples, pixels_of
from medood.data.files import fingerprint
from medood.data.workspace import Pair, weights_of
from medood.runs.command_line import run
from medood.runs.products import network_made_from
from medood.runs.provenance import require
from medood.training.segmentation import train_fold
from rank_prune_ood import rank_files
from weak.image_labels import with_classes, with_lesion
from weak.products import (
    IMAGES,
    domains,
    fold_labels,
    image_paths,
    lesion_name,
    masks_folder,
    masks_product,
)
from weak.settings import MasksConfig

SEARCH = ("mirrors", "pnr_opt", "pct_grid")  # and those of its training: they choose negatives


def weak_network(cfg: MasksConfig, fold: int, negatives: bool = True) -> Path:
    """Return where the network of a fold is, trained with or without negatives."""
    routes = {"unet": "_pooled", "transfer": f"_{lesion_name(cfg)}"}
    ending = routes.get(cfg.method, "") + ("" if negatives else "_positives")
    ending += "_shuffled" * cfg.shuffled
    return cfg.workspace / "models" / f"{fold}_{cfg.model_name}_weak{ending}"


def train_segmentation(cfg: MasksConfig) -> None:
    """Train the networks of every fold whose masks contain a class."""
    is_transfer = cfg.method == "transfer"
    cfg = with_lesion(cfg) if is_transfer else with_classes(cfg)
    require(cfg, IMAGES, masks_product(cfg))
    for fold in cfg.folds:
        found = f"fold {fold}: no mask in {masks_folder(cfg, fold)} contains a class"
        if has_masks(cfg, fold):
            train_networks(cfg, fold)
        elif cfg.shuffled:
            print(f"{found}: as expected, nothing was learned from shuffled labels")
        else:
            longer = "iterations" if is_transfer else "classifier_epochs"
            or_plain = ", or set outline to False" * cfg.outline
            raise UserError(f"{found}: raise {longer}{or_plain}, and run the steps again")


def train_networks(cfg: MasksConfig, fold: int) -> None:
    """Train the network of a fold on its positives, mine the negatives, and train the second."""
    positives, negatives = training_files(cfg, fold)
    first, second = (weak_network(cfg, fold, negatives) for negatives in (False, True))
    train_fold(cfg, fold, positives, [], first)
    chosen = mine(cfg, fold, first, positives, negatives)
    train_fold(cfg, fold, positives + chosen, [], second, made_from=made_from_of(cfg, fold))


def made_from_of(cfg: MasksConfig, fold: int, negatives: bool = True) -> dict:
    """Return what decides the network of a fold, trained with or without negatives.

    Of the negatives: all of them, and what chooses among them: the first network, and the settings
    of the search.
    """
    positives, others = training_files(cfg, fold)
    if not negatives:
        return network_made_from(cfg, fold, positives)
    first = weights_of(weak_network(cfg, fold, negatives=False))
    made_from = network_made_from(cfg, fold, positives + others, SEARCH)
    return made_from | {"first network": fingerprint([first])}


def training_files(cfg: MasksConfig, fold: int) -> tuple[list[Pair], list[Pair]]:
    """Return the training images with a class, with their masks, and those without any."""
    masks = masks_folder(cfg, fold)
    if cfg.method == "transfer":
        holding, empty = domains(cfg, fold)
    else:
        labels, train, _ = fold_labels(cfg, fold)
        paths = image_paths(cfg, labels)
        holding = [paths[index] for index in train if labels.held[index].any()]
        empty = [paths[index] for index in train if not labels.held[index].any()]
    positives = [(path, masks / path.name) for path in holding]
    return positives, [(path, None) for path in empty]


def has_masks(cfg: MasksConfig, fold: int) -> bool:
    """Say whether any mask of a fold contains a class: otherwise there is nothing to learn."""
    positives, _ = training_files(cfg, fold)
    return any(pixels_of(cfg, positives)[0])


def mine(
    cfg: Config, fold: int, network: Path, positives: list[Pair], negatives: list[Pair]
) -> list[Pair]:
    """Return the negatives to train on: those that fool a network, as many as pnr_opt requires."""
    if not negatives:
        print(f"fold {fold}: every training image has a class: there is no negative to mine")
        return []
    rows = rank_files(cfg, network, negatives, f"fold {fold}: mining")
    of_name = {image.name: (image, mask) for image, mask in negatives}
    hard = [of_name[row[1]] for row in rows if row[-1]]
    counts = count_samples(*pixels_of(cfg, positives))
    best, _ = choose_pct(*counts, len(hard), cfg.pct_grid, cfg.pnr_opt)
    print(
        f"fold {fold}: {len(hard)} of {len(negatives)} negatives fool the network; pct"
        f" {best['pct']:g}, {best['ood_patches']} of them, changes the pnr to {best['pnr']:.3f}"
    )
    return hard[: best["ood_patches"]]


if __name__ == "__main__":
    run(train_segmentation, MasksConfig())
