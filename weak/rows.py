"""What weak/evaluate_masks.py tests: the rows of its tables."""

from typing import NamedTuple

from weak.settings import EvaluationConfig

# what is tested, in the order of the table
ROWS = {
    "all_background": "all background",
    "threshold": "grey threshold (Otsu)",
    "centre_prior": "mean of the maps",
    "cam": "CAM",
    "grad_cam_pp": "Grad-CAM++",
    "contrast": "CAM, contrast classifier",
    "irnet": "IRNet",
    "transfer": "transfer",
    "positives_only": "segmentation, without negatives",
    "segmentation": "segmentation",
    "refined": "transfer, refined",
    "shuffled_labels": "segmentation, labels shuffled",
    "supervised": "full supervision",
}
TRAINED = ("transfer", "refined")  # the rows that differ between trainings


class Rows(NamedTuple):
    """Settings of what is tested beside full supervision and the floors."""

    maps: EvaluationConfig | None  # of the route of maps
    control: EvaluationConfig | None  # of the same, from shuffled labels
    trainings: list[EvaluationConfig]  # of every training of a generator


def of_training(row: str, number: int) -> str:
    """Return what a row of TRAINED is called in one of the trainings of a fold, from 0."""
    return f"{row} {number}"
