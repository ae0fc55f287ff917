"""Where the lesion truly is, for the test and for the network of full supervision."""

from pathlib import Path

import numpy as np

from medood.data.files import in_threads
from medood.data.images import read_mask, write_png
from medood.data.labels import UNSURE
from medood.data.records import outputs_of
from medood.data.workspace import Pair
from medood.runs.products import Product
from weak.image_labels import with_classes
from weak.products import labels_there, making_folder
from weak.transfer_products import lesion_of
from weak.transfer_settings import TransferConfig
from weak.truth import TRUE_MASKS, true_files, truth_folder


def lesion_folder(cfg: TransferConfig, _: int = 0) -> Path:
    """Return where the true masks of the lesion are."""
    return cfg.workspace / "transfer" / "True_Masks" / lesion_of(cfg).replace("/", "_")


def lesion_files(cfg: TransferConfig, paths: list[Path]) -> list[Pair]:
    """Return images, each with its true mask, 1 where the lesion is and 0 elsewhere.

    Raises UserError for an image without a mask, and for a mask of another size or content.
    """
    every = with_classes(cfg)  # a mask may hold others beside the lesion
    pairs = true_files(every, labels_there(every).names)
    value = every.class_names.index(lesion_of(cfg))
    with making_folder(every, LESION_MASKS) as folder:
        if folder:

            def write(pair: Pair) -> None:
                mask = read_mask(pair[1], len(every.class_names))
                known = np.where(mask == UNSURE, UNSURE, mask == value)
                write_png(folder / pair[0].name, known.astype(np.uint8))

            in_threads(write, pairs, "true masks")
    return [(path, lesion_folder(cfg) / path.name) for path in paths]


LESION_MASKS = Product(
    *("lesion masks", lesion_folder, ()),
    lambda cfg, _: {"inputs": outputs_of(truth_folder(cfg)), "lesion": lesion_of(cfg)},
    *("weak/transfer_evaluate.py", TransferConfig),
    behind=(TRUE_MASKS,),
)
