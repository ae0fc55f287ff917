"""The products of weak/, as medood/runs/products.py has those of the trunk.

    weak/Images/               every image, image_size pixels wide and high
    weak/classifier/<name>/    the classes of an image
    weak/maps/<name>/          where the classifier sees them, an .npz an image
    weak/irnet/<name>/         the boundaries of classes
    weak/generator/<name>/     makes an image with the lesion healthy
    weak/healthy/<name>/       every image without it
    weak/Pseudo_Masks/<name>/  the masks from maps, or from what a generator had to change

<name> is <fold>_<encoder> of maps, <fold>_pooled_<model> with method = unet, with _shuffled for the
control, and <fold>_transfer_<lesion> of generators, whose classifier is that of method = unet.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from config import UserError
from medood.data import records
from medood.data.files import digest, fingerprint, pngs, read_json
from medood.data.names import name_of
from medood.runs.products import Product, settings_of
from medood.runs.provenance import making, require
from weak.image_labels import ImageLabels, labels_of, shuffled, split
from weak.read_images import list_inputs, stem_of
from weak.settings import (
    ClassifierConfig,
    ImagesConfig,
    IRNetConfig,
    MapsConfig,
    MasksConfig,
    TransferConfig,
)

SIZES = "sizes.json"  # in weak/Images


def images_folder(cfg: ImagesConfig, _: int = 0) -> Path:
    """Return where the images are, all of one size."""
    return cfg.workspace / "weak" / "Images"


def image_paths(cfg: ImagesConfig, labels: ImageLabels) -> list[Path]:
    """Return the path of each image, in the order of its labels."""
    return [images_folder(cfg) / png_of(name) for name in labels.names]


def png_of(name: str) -> str:
    """Return the name of an image's file in weak/Images; name: as in the CSV."""
    return f"{stem_of(name)}.png"


def sizes_of(cfg: ImagesConfig) -> dict[str, list[int]]:
    """Return height and width of each original image, by the name of its file in weak/Images."""
    path = images_folder(cfg) / SIZES
    sizes = read_json(path)
    if sizes is None:
        raise UserError(f"{path} is missing: remove {path.parent} to have it regenerated")
    return sizes


def labels_there(cfg: ImagesConfig) -> ImageLabels:
    """Return the labels of the images in weak/Images: bad ones may have been skipped."""
    labels, there = labels_of(cfg), set(map(name_of, pngs(images_folder(cfg))))
    kept = [index for index, name in enumerate(labels.names) if png_of(name) in there]
    return ImageLabels(
        [labels.names[index] for index in kept],
        [labels.patients[index] for index in kept],
        labels.labels[kept],
        labels.classes,
        labels.given and [labels.given[index] for index in kept],
    )


def maps_name(cfg: ClassifierConfig, fold: int) -> str:
    """Return the name of the products of a fold by maps."""
    network = f"pooled_{cfg.model_name}" if cfg.is_pooled else cfg.encoder
    return f"{fold}_{network}".replace("/", "_") + "_shuffled" * cfg.shuffled


def transfer_name(cfg: TransferConfig, fold: int) -> str:
    """Return the name of the products of a fold by a generator."""
    return f"{fold}_{lesion_name(cfg)}"


def lesion_name(cfg: TransferConfig) -> str:
    """Return the part of such a name that says the lesion."""
    return f"transfer_{cfg.lesion}".replace("/", "_")


def folder_of(
    kind: str, name_of: Callable[[ImagesConfig, int], str]
) -> Callable[[ImagesConfig, int], Path]:
    """Return where a product of a fold is, as a function of settings and fold."""
    return lambda cfg, fold: cfg.workspace / "weak" / kind / name_of(cfg, fold)


classifier_folder, maps_folder = folder_of("classifier", maps_name), folder_of("maps", maps_name)
irnet_folder = folder_of("irnet", maps_name)
generator_folder = folder_of("generator", transfer_name)
healthy_folder = folder_of("healthy", transfer_name)


def masks_product(cfg: MasksConfig) -> Product:
    """Return the product of the masks of a method."""
    return {"transfer": TRANSFER_MASKS, "unet": POOLED_MASKS}.get(cfg.method, PSEUDO_MASKS)


def masks_folder(cfg: MasksConfig, fold: int) -> Path:
    """Return where the masks of a fold are."""
    return masks_product(cfg).path(cfg, fold)


def fold_labels(cfg: ClassifierConfig, fold: int) -> tuple[ImageLabels, list[int], list[int]]:
    """Return the image labels, and the indices of the images that train and that test in a fold.

    For the control, the labels of the training images are shuffled among them.
    """
    labels = labels_there(cfg)
    train, test = split(labels, fold, cfg.seed)
    return (shuffled(labels, train, cfg.seed + fold) if cfg.shuffled else labels), train, test


def domains(cfg: TransferConfig, fold: int) -> tuple[list[Path], list[Path]]:
    """Return the training images of a fold with the lesion, and those without any class."""
    labels = labels_there(cfg)
    paths, (train, _) = image_paths(cfg, labels), split(labels, fold, cfg.seed)
    diseased, healthy = (
        [paths[i] for i in train if is_of[i]] for is_of in _domains_of(cfg, labels)
    )
    return diseased, healthy


def indices_to_test(cfg: TransferConfig, fold: int) -> list[int]:
    """Return the indices of the test images of a fold.

    If masks show only the lesion, an image with another class and without the lesion is skipped.
    """
    labels = labels_there(cfg)
    _, test = split(labels, fold, cfg.seed)
    if cfg.lesion is None:
        return test
    is_of = np.any(_domains_of(cfg, labels), 0)
    return [index for index in test if is_of[index]]


def paths_to_test(cfg: TransferConfig, fold: int) -> list[Path]:
    """Return the images that indices_to_test names."""
    paths = image_paths(cfg, labels_there(cfg))
    return [paths[index] for index in indices_to_test(cfg, fold)]


def _domains_of(cfg: TransferConfig, labels: ImageLabels) -> tuple[np.ndarray, np.ndarray]:
    """Return which images have the lesion, and which have no class: bool (N,) each."""
    return labels.held[:, labels.classes.index(cfg.lesion)], ~labels.held.any(1)


def _of_images(cfg: ImagesConfig, _: int) -> dict:
    if cfg.images is None or not cfg.images.is_dir():
        return {"inputs": None}
    labels = labels_of(cfg)
    made_from = {"inputs": fingerprint(list_inputs(cfg.images, labels.names))}
    if cfg.normalise == "patient":
        pairs = zip(labels.names, labels.patients, strict=True)
        made_from["patients"] = digest("\n".join(map(" ".join, pairs)))
    return made_from


def _of_kinds(cfg: ClassifierConfig, fold: int) -> dict:
    if cfg.is_pooled:
        settings = settings_of(cfg, ("architecture", "size")) | {"pooling": "top"}
    else:  # without a contrast classifier its settings do not matter
        contrast = cfg.contrast_epochs if cfg.method == "contrast" else 0
        settings = {"stages": cfg.stages, "contrast_epochs": contrast, "output_stride": 8}
    # pooling and output_stride were settings once: earlier records contain them
    labels, train, _ = fold_labels(cfg, fold)
    rows = [f"{labels.names[i]} {labels.labels[i].tolist()}" for i in train]
    paths = image_paths(cfg, labels)
    return {
        "settings": settings_of(cfg, _CLASSIFIER) | settings,
        "fold": fold,
        "inputs": fingerprint(paths[i] for i in train),
        "image labels": digest("\n".join([*labels.classes, *sorted(rows)])),
    }


def _of_maps(cfg: MasksConfig, fold: int) -> dict:
    return {"inputs": _found(maps_folder(cfg, fold))}


def _of_classifier(cfg: MapsConfig, fold: int) -> dict:
    return {
        "settings": settings_of(cfg, () if cfg.is_pooled else ("scales",)),
        "classifier": _found(classifier_folder(cfg, fold)),
        "inputs": fingerprint(image_paths(cfg, labels_there(cfg))),
    }


def _of_irnet(cfg: MasksConfig, fold: int) -> dict:
    return {"maps": _found(maps_folder(cfg, fold)), "inputs": _found(irnet_folder(cfg, fold))}


def _of_domains(cfg: TransferConfig, fold: int) -> dict:
    diseased, healthy = domains(cfg, fold)
    return {
        "fold": fold,
        "inputs": fingerprint(diseased),
        "healthy": fingerprint(healthy),
        "classifier": _found(classifier_folder(cfg, fold)),
    }


def _of_generator(cfg: TransferConfig, fold: int) -> dict:
    return {
        "generator": _found(generator_folder(cfg, fold)),
        "inputs": fingerprint([*sum(domains(cfg, fold), []), *paths_to_test(cfg, fold)]),
    }


def _of_healthy(cfg: TransferConfig, fold: int) -> dict:
    sides = [sorted(path.name for path in side) for side in domains(cfg, fold)]
    return {
        "inputs": _found(healthy_folder(cfg, fold)),
        "domains": digest("\n\n".join("\n".join(names) for names in sides)),
    }


def _found(folder: Path) -> dict | str | None:
    return records.record_of(folder).outputs() if folder.is_dir() else None


_CLASSIFIER = (
    *("encoder", "encoder_weights", "classifiers", "classifier_epochs", "classifier_lr"),
    *("batch_size", "precision", "seed", "shuffled"),
)
_IRNET = ("method", "sure_area", "possible_area", "irnet_epochs", "irnet_lr", "batch_size")
_GENERATOR = ("iterations", "transfer_lr", "size", "batch_size", "precision", "seed")
IMAGES = Product(
    *("weak images", images_folder, ("image_size", "normalise"), _of_images),
    *("weak/generate_images.py", ImagesConfig),
)
CLASSIFIER = Product(
    *("classifier", classifier_folder, (), _of_kinds),
    *("weak/train_classifier.py", ClassifierConfig),
    behind=(IMAGES,),
)
MAPS = Product(
    *("maps", maps_folder, (), _of_classifier),
    *("weak/generate_maps.py", MapsConfig),
    behind=(CLASSIFIER,),
)
IRNET = Product(
    *("IRNet", irnet_folder, _IRNET, _of_maps),
    *("weak/train_irnet.py", IRNetConfig),
    behind=(CLASSIFIER, MAPS),
)
_MASKS = ("weak/generate_masks.py", MasksConfig)
_OF_MASKS = ("unsure", "outline")
PSEUDO_MASKS = Product(
    *("pseudo-masks", folder_of("Pseudo_Masks", maps_name), ("method", "walk_steps", *_OF_MASKS)),
    *(_of_irnet, *_MASKS, (CLASSIFIER, MAPS, IRNET)),
)
POOLED_MASKS = Product(
    *("pseudo-masks", folder_of("Pseudo_Masks", maps_name), _OF_MASKS),
    *(_of_maps, *_MASKS, (MAPS,)),
)
GENERATOR = Product(
    *("generator", generator_folder, _GENERATOR, _of_domains),
    *("weak/train_transfer.py", TransferConfig),
    behind=(CLASSIFIER,),
)
HEALTHY = Product("healthy images", healthy_folder, (), _of_generator, *_MASKS, (GENERATOR,))
TRANSFER_MASKS = Product(
    *("transfer masks", folder_of("Pseudo_Masks", transfer_name), ("outline",)),
    *(_of_healthy, *_MASKS, (HEALTHY,)),
)


def make_folds(
    cfg: ImagesConfig, product: Product, make: Callable[[ImagesConfig, int, Path], None]
) -> None:
    """Make a product of every fold that does not exist yet, from those behind it, which must exist.

    make: fills a folder, given the settings and the fold.
    """
    require(cfg, *product.behind)
    for fold in cfg.folds:
        with making(cfg, product, fold=fold) as folders:
            for folder in folders:
                make(cfg, fold, folder)
        shutil.rmtree(unfinished(product.path(cfg, fold)), ignore_errors=True)


def unfinished(folder: Path) -> Path:
    """Return the folder of an unfinished training, from which an interrupted one continues."""
    return folder.with_name(f"{folder.name}_unfinished")
