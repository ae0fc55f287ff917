"""What a value of a class mask stands for, beside the settings' own `classes`."""

import numpy as np

BACKGROUND = 0
BACKGROUND_COLOUR = "#ffffff"


def palette(classes: tuple[tuple[str, str], ...]) -> np.ndarray:
    """Return the colour of each value of a mask, RGB uint8 (1 + len(classes), 3)."""
    colours = [BACKGROUND_COLOUR, *(colour for _, colour in classes)]
    return np.array([tuple(bytes.fromhex(colour[1:])) for colour in colours], np.uint8)
