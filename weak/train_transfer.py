"""Train a generator to make images with a lesion healthy, inside of a mask that it has to find.

Reads   weak/Images, weak/classifier                (train_classifier.py), and the image labels
Writes  weak/generator/<fold>_transfer_<lesion>/    generator, log of the losses
        weak/generator/<fold>_.../flipped.json      how often the classifier flipped

An interrupted training continues. One after which the classifier still sees most of the lesions has
failed; that is told by image labels alone.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from safetensors.torch import save_file

from config import UserError
from medood.data.files import write_json
from medood.models.network import pick_device
from medood.runs.command_line import run
from medood.training.loop import fit, write_log
from weak.arrays import load_images
from weak.check_labels import check_labels, places_of
from weak.image_labels import with_classes, with_lesion
from weak.pooled import load_pooled
from weak.products import (
    GENERATOR,
    classifier_folder,
    domains,
    generator_folder,
    image_paths,
    labels_there,
    make_folds,
    unfinished,
)
from weak.settings import TransferConfig
from weak.transfer import WEIGHTS, Images, Sees, Trainer, flipped

FLIPPED = "flipped.json"
ENOUGH = 0.5  # of the lesions that the classifier sees, which a generator is to take out


def train_generators(cfg: TransferConfig) -> None:
    """Train the generator of every fold on the images of its training side."""
    cfg = with_lesion(cfg)
    check_labels(cfg)
    make_folds(cfg, GENERATOR, train_fold)


def train_fold(cfg: TransferConfig, fold: int, folder: Path) -> None:
    """Write the generator of a fold into a folder."""
    paths = domains(cfg, fold)
    if not paths[1]:
        raise UserError(
            f"fold {fold} has no training image without any class: add some, or another fold"
        )
    diseased, healthy = (with_places(cfg, of_kind) for of_kind in paths)
    of_all, device = with_classes(cfg), pick_device(cfg.device)
    networks = load_pooled(of_all, classifier_folder(cfg, fold), device)
    sees = Sees(cfg, networks, of_all.class_names.index(cfg.lesion) - 1)
    print(
        f"fold {fold}: {len(diseased.pixels)} images with the lesion, {len(healthy.pixels)} without"
        f" any class, {device.type}"
    )
    where = generator_folder(cfg, fold)
    trainer = Trainer(cfg, fold, diseased, healthy, sees, device)
    fit(trainer, unfinished(where), GENERATOR.made_from(cfg, fold))
    generator = trainer.model["generator"].eval()
    save_file(
        {name: values.contiguous() for name, values in generator.state_dict().items()},
        folder / WEIGHTS,
    )
    write_log(folder, trainer.log)
    share = flipped(generator, sees, diseased.pixels, device)
    write_json(folder / FLIPPED, {"flipped": [share]})
    cure = f": raise iterations (now {cfg.iterations})" if share < ENOUGH else ""
    print(f"{where}: the classifier flips on {100 * share:.0f} % of what it sees{cure}")


def with_places(cfg: TransferConfig, paths: list[Path]) -> Images:
    """Return images and where each lies in the body, as far as it is known."""
    labels = labels_there(cfg)
    place = dict(zip(image_paths(cfg, labels), places_of(labels).tolist(), strict=True))
    return Images(load_images(cfg, paths), torch.tensor([place[path] for path in paths]))


if __name__ == "__main__":
    run(train_generators, TransferConfig())
