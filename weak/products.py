"""What weak/ makes, from what: as medood/runs/products.py does for the trunk.

    weak/Images/               every image, patch_size pixels wide and high
    weak/classifier/<name>/    which classes an image holds
    weak/maps/<name>/          where the classifier sees them, an .npz an image
    weak/irnet/<name>/         where one class ends
    weak/Pseudo_Masks/<name>/  the masks that come of it

<name> is <fold>_<encoder>, with _shuffled for the control.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from config import UserError
from medood.data import records
from medood.data.files import digest, fingerprint, pngs, read_json, timed
from medood.data.names import name_of
from medood.runs.products import Product
from medood.runs.provenance import require
from weak.image_labels import ImageLabels, labels_of, shuffled, split, with_classes
from weak.read_images import list_inputs, stem_of
from weak.settings import ClassifierConfig, ImagesConfig, IRNetConfig, MapsConfig, MasksConfig

SIZES = "sizes.json"  # in weak/Images


def images_folder(cfg: ImagesConfig, _: int = 0) -> Path:
    """Return where the images are, all of one size."""
    return cfg.workspace / "weak" / "Images"


def image_paths(cfg: ImagesConfig, labels: ImageLabels) -> list[Path]:
    """Return the path of each image, in the order of its labels."""
    return [images_folder(cfg) / png_of(name) for name in labels.names]


def png_of(name: str) -> str:
    """Return what the file of an image is called in weak/Images; name: as the CSV has it."""
    return f"{stem_of(name)}.png"


def sizes_of(cfg: ImagesConfig) -> dict[str, list[int]]:
    """Return height and width of each original image, by the name of its file in weak/Images.

    The orientation comes third where the image was turned upright.
    """
    path = images_folder(cfg) / SIZES
    sizes = read_json(path)
    if sizes is None:
        raise UserError(f"{path} is missing: remove {path.parent} to have it made anew")
    return sizes


def labels_there(cfg: ImagesConfig) -> ImageLabels:
    """Return the labels of the images that weak/Images holds: bad ones may have been left out."""
    labels, there = labels_of(cfg), set(map(name_of, pngs(images_folder(cfg))))
    kept = [index for index, name in enumerate(labels.names) if png_of(name) in there]
    if not kept:
        again = IMAGES.cure(cfg, 0)
        raise UserError(
            f"{images_folder(cfg)} holds no image that {cfg.image_labels} names: run `{again}`"
            " first"
        )
    return ImageLabels(
        [labels.names[index] for index in kept],
        [labels.patients[index] for index in kept],
        labels.labels[kept],
        labels.classes,
        labels.given and [labels.given[index] for index in kept],
    )


def product_name(cfg: ClassifierConfig, fold: int) -> str:
    """Return what the products of a fold are named after."""
    return f"{fold}_{cfg.encoder}".replace("/", "_") + "_shuffled" * cfg.shuffled


def folder_of(kind: str) -> Callable[[ClassifierConfig, int], Path]:
    """Return where a product of a fold is, as a function of settings and fold."""
    return lambda cfg, fold: cfg.workspace / "weak" / kind / product_name(cfg, fold)


classifier_folder, maps_folder = folder_of("classifier"), folder_of("maps")
irnet_folder, masks_folder = folder_of("irnet"), folder_of("Pseudo_Masks")


def fold_labels(cfg: ClassifierConfig, fold: int) -> tuple[ImageLabels, list[int], list[int]]:
    """Return the image labels, and the indices of the images that train and that test in a fold.

    For the control, the labels of the training images are dealt among them at random.
    """
    labels = labels_there(cfg)
    train, test = split(labels, fold, cfg.seed)
    return (shuffled(labels, train, cfg.seed + fold) if cfg.shuffled else labels), train, test


# ---------------------------------------------------------------- the table


def _of_images(cfg: ImagesConfig, _: int) -> dict:
    if cfg.images is None or not cfg.images.is_dir():
        return {"inputs": None}
    return {"inputs": fingerprint(list_inputs(cfg.images, labels_of(cfg)))}


def _of_labels(cfg: ClassifierConfig, fold: int) -> dict:
    labels, train, _ = fold_labels(cfg, fold)
    rows = [f"{labels.names[i]} {labels.labels[i].tolist()}" for i in train]
    paths = image_paths(cfg, labels)
    table = [*labels.classes, *sorted(rows)]
    return {
        "fold": fold,
        "inputs": fingerprint(paths[i] for i in train),
        "image labels": digest("\n".join(table)),
        # without a contrast classifier its settings do not matter
        "contrast_epochs": cfg.contrast_epochs if cfg.method == "contrast" else 0,
    }


def _of_classifier(cfg: MapsConfig, fold: int) -> dict:
    images = fingerprint(image_paths(cfg, labels_there(cfg)))
    return {"classifier": _found(classifier_folder(cfg, fold)), "inputs": images}


def _of_maps(cfg: IRNetConfig, fold: int) -> dict:
    return {"inputs": _found(maps_folder(cfg, fold))}


def _of_irnet(cfg: MasksConfig, fold: int) -> dict:
    return {"maps": _found(maps_folder(cfg, fold)), "inputs": _found(irnet_folder(cfg, fold))}


def _found(folder: Path) -> dict | str | None:
    return records.outputs_of(folder) if folder.is_dir() else None


_CLASSIFIER = (
    *("encoder", "encoder_weights", "output_stride", "stages", "classifiers"),
    *("classifier_epochs", "classifier_lr", "batch_size", "precision", "seed", "shuffled"),
)
_IRNET = ("method", "sure_area", "possible_area", "irnet_epochs", "irnet_lr", "batch_size")
IMAGES = Product(
    *("weak images", images_folder, ("patch_size",), _of_images),
    *("weak/generate_images.py", ImagesConfig),
)
CLASSIFIER = Product(
    *("classifier", classifier_folder, _CLASSIFIER, _of_labels),
    *("weak/train_classifier.py", ClassifierConfig),
    behind=(IMAGES,),
)
MAPS = Product(
    *("maps", maps_folder, ("scales",), _of_classifier),
    *("weak/generate_maps.py", MapsConfig),
    behind=(CLASSIFIER,),
)
IRNET = Product(
    *("IRNet", irnet_folder, _IRNET, _of_maps),
    *("weak/train_irnet.py", IRNetConfig),
    behind=(MAPS,),
)
PSEUDO_MASKS = Product(
    *("pseudo-masks", masks_folder, ("method", "walk_steps", "unsure"), _of_irnet),
    *("weak/generate_masks.py", MasksConfig),
    behind=(IRNET,),
)


def make_folds(
    cfg: ClassifierConfig,
    product: Product,
    needs: list[Product],
    make: Callable[[ClassifierConfig, int, Path], None],
) -> None:
    """Make a product of every fold that is not there yet, from others that must be.

    make: fills a folder, given settings whose classes are the CSV's, and the fold.
    """
    cfg = with_classes(cfg)
    require(cfg, *needs)
    for fold in cfg.folds:
        with making_folder(cfg, product, fold) as folder:
            if folder:
                make(cfg, fold, folder)


@contextmanager
def making_folder(cfg: ImagesConfig, product: Product, fold: int = 0) -> Iterator[Path | None]:
    """Give a folder to fill with a product, or None if it is kept: see records.fresh_folder."""
    path, made = product.path(cfg, fold), product.made_from(cfg, fold)
    if records.is_kept(path, made):
        yield None
        return
    with (
        timed(cfg.workspace, f"{product.name} {path.name}"),
        records.fresh_folder(path, made) as folder,
    ):
        yield folder
