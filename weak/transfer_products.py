"""What transfer/ makes, from what: its rows of the one table in medood/runs/provenance.py.

transfer/generator/<fold>_<lesion>/       what makes an image with the lesion healthy
transfer/healthy/<fold>_<lesion>/         every image without it
transfer/Pseudo_Masks/<fold>_<lesion>/    where it had to change
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from config import UserError
from medood.data import records
from medood.data.files import digest, fingerprint, timed
from medood.data.names import plain
from medood.runs.products import Product
from weak.image_labels import labels_of, split, with_classes
from weak.products import IMAGES, image_paths, labels_there
from weak.transfer_settings import TransferConfig


def lesion_of(cfg: TransferConfig) -> str:
    """Return the class to remove; UserError if the CSV has no such class, or several to choose."""
    classes = labels_of(cfg).classes
    if cfg.lesion is None and len(classes) == 1:
        return classes[0]
    if cfg.lesion is None or plain(cfg.lesion) not in classes:
        raise UserError(
            f"lesion = {cfg.lesion}: {cfg.image_labels} has the classes {', '.join(classes)}: name"
            " one of them with --lesion"
        )
    return plain(cfg.lesion)


def product_name(cfg: TransferConfig, fold: int) -> str:
    """Return what the products of a fold are named after."""
    return f"{fold}_{lesion_of(cfg)}".replace("/", "_")


def generator_folder(cfg: TransferConfig, fold: int) -> Path:
    """Return where the generator of a fold is."""
    return cfg.workspace / "transfer" / "generator" / product_name(cfg, fold)


def domains(cfg: TransferConfig, fold: int) -> tuple[list[Path], list[Path]]:
    """Return the training images of a fold that hold the lesion, and those that hold no class."""
    labels = labels_there(cfg)
    paths, (train, _) = image_paths(cfg, labels), split(labels, fold, cfg.seed)
    has_lesion = labels.labels[:, labels.classes.index(lesion_of(cfg))] == 1
    is_healthy = ~labels.labels.any(1)
    diseased, healthy = (
        [paths[i] for i in train if is_of[i]] for is_of in (has_lesion, is_healthy)
    )
    return diseased, healthy


# ---------------------------------------------------------------- the table


def _of_domains(cfg: TransferConfig, fold: int) -> dict:
    diseased, healthy = domains(cfg, fold)
    return {"fold": fold, "inputs": fingerprint(diseased), "healthy": fingerprint(healthy)}


# the settings that decide a generator, beside its images
DECIDING = (
    *("channels", "iterations", "transfer_lr", "cycle_weight", "identity_weight", "area_weight"),
    *("batch_size", "precision", "seed"),
)
GENERATOR = Product(
    *("generator", generator_folder, DECIDING, _of_domains),
    *("weak/train_transfer.py", TransferConfig),
    behind=(IMAGES,),
)


@contextmanager
def training_folder(cfg: TransferConfig, product: Product, fold: int) -> Iterator[Path | None]:
    """Give a folder to train a product in, or None if the product is kept.

    What it holds when the block ends becomes the product. Until then it lies in `unfinished` beside
    the product, so that a training that was interrupted can go on.
    """
    path, made = product.path(cfg, fold), product.made_from(cfg, fold)
    if records.is_kept(path, made):
        yield None
        return
    unfinished = path.parent / "unfinished" / path.name
    with timed(cfg.workspace, f"{product.name} {path.name}"):
        yield unfinished
    with records.fresh_folder(path, made) as folder:
        shutil.copytree(unfinished, folder, dirs_exist_ok=True)
    shutil.rmtree(unfinished)
    with suppress(OSError):  # another fold may be unfinished
        unfinished.parent.rmdir()


# ---------------------------------------------------------------- masks


def with_lesion(cfg: TransferConfig) -> TransferConfig:
    """Return settings whose only class is the lesion, in its colour among those of the CSV."""
    lesion, cfg = lesion_of(cfg), with_classes(cfg)
    of_lesion = tuple(pair for pair in cfg.classes if pair[0] == lesion)
    return replace(cfg, lesion=lesion, classes=of_lesion)


def held_out(cfg: TransferConfig, fold: int) -> list[Path]:
    """Return the test images of a fold that are of one of the two domains, in no order of labels.

    One that holds another class and not the lesion is of neither.
    """
    labels = labels_there(cfg)
    paths, (_, test) = image_paths(cfg, labels), split(labels, fold, cfg.seed)
    has_lesion = labels.labels[:, labels.classes.index(lesion_of(cfg))] == 1
    is_of = has_lesion | ~labels.labels.any(1)
    return [paths[index] for index in test if is_of[index]]


def healthy_folder(cfg: TransferConfig, fold: int) -> Path:
    """Return where the images of a fold are that were made healthy."""
    return cfg.workspace / "transfer" / "healthy" / product_name(cfg, fold)


def masks_folder(cfg: TransferConfig, fold: int) -> Path:
    """Return where the masks of a fold are."""
    return cfg.workspace / "transfer" / "Pseudo_Masks" / product_name(cfg, fold)


def _of_generator(cfg: TransferConfig, fold: int) -> dict:
    folder = generator_folder(cfg, fold)
    return {
        "generator": records.outputs_of(folder) if folder.is_dir() else None,
        "inputs": fingerprint([*sum(domains(cfg, fold), []), *held_out(cfg, fold)]),
    }


def _of_healthy(cfg: TransferConfig, fold: int) -> dict:
    folder = healthy_folder(cfg, fold)
    sides = [sorted(path.name for path in side) for side in domains(cfg, fold)]
    return {
        "inputs": records.outputs_of(folder) if folder.is_dir() else None,
        "domains": digest("\n\n".join("\n".join(names) for names in sides)),
    }


HEALTHY_IMAGES = Product(
    *("healthy images", healthy_folder, (), _of_generator),
    *("weak/transfer_masks.py", TransferConfig),
    behind=(GENERATOR,),
)
TRANSFER_MASKS = Product(
    *("transfer masks", masks_folder, (), _of_healthy),
    *("weak/transfer_masks.py", TransferConfig),
    behind=(HEALTHY_IMAGES,),
)
