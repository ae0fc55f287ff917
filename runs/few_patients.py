"""Write image labels with a split: the test images of a fold, and few patients to train on.

    python runs/few_patients.py IMAGE_LABELS FOLD PATIENTS FOLDER

writes FOLDER/few.csv. The patients are the first of the training side, by name; a larger number
holds those of a smaller one.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import CONFIG
from medood.data.files import csv_text, write_text
from weak.image_labels import NAME, PATIENT, SPLIT, read_image_labels, split


def few_patients(path: Path, fold: int, patients: int, folder: Path) -> None:
    """Write few.csv into a folder."""
    labels = read_image_labels(path)
    train, test = split(labels, fold, CONFIG.seed)
    few = sorted({labels.patients[index] for index in train})[:patients]
    sides = {index: "train" for index in train if labels.patients[index] in few}
    sides |= dict.fromkeys(test, "test")
    rows = [
        (labels.names[index], labels.patients[index], side, *labels.labels[index])
        for index, side in sorted(sides.items())
    ]
    write_text(folder / "few.csv", csv_text([NAME, PATIENT, SPLIT, *labels.classes], rows))


if __name__ == "__main__":
    few_patients(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
