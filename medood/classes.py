"""The classes of Lizard, and the one place that knows them."""

from typing import NamedTuple


class NucleusClass(NamedTuple):
    """A value of the class masks; its place in CLASSES is that value."""

    name: str
    colour: tuple[int, int, int]  # RGB, told apart also by colour-blind readers (Okabe and Ito)


CLASSES = (
    NucleusClass("background", (255, 255, 255)),
    NucleusClass("neutrophil", (240, 228, 66)),
    NucleusClass("epithelial", (0, 158, 115)),
    NucleusClass("lymphocyte", (0, 114, 178)),
    NucleusClass("plasma", (204, 121, 167)),
    NucleusClass("eosinophil", (213, 94, 0)),
    NucleusClass("connective", (86, 180, 233)),
)
N_CLASSES = len(CLASSES)
BACKGROUND = 0
