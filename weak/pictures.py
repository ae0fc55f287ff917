"""Images in rows, with the results of the steps of weak/ for each."""

from collections.abc import Iterable, Sequence
from itertools import compress
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from config import Config
from medood.data.workspace import data_name
from medood.evaluation import figures

T = TypeVar("T")


def some_of(items: Sequence[T], count: int) -> list[T]:
    """Return `count` of some items, or all of them, spread evenly from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)
    return [items[place] for place in places]


def caption(path: Path, classes: Sequence[str], held: Iterable[bool]) -> str:
    """Return the caption of an image in a picture: its name, and its classes."""
    return f"{path.stem}\n{', '.join(compress(classes, held))}"


def draw_rows(
    path: Path,
    cfg: Config,
    title: str,
    names: list[str],
    images: Tensor,
    columns: dict[str, Tensor],
) -> None:
    """Draw images, RGB uint8 (n, P, P, 3), each with its name and, next to it, its columns."""
    title = f"{data_name(cfg.workspace)}, {title}"
    figures.draw_rows(path, title, names, {"image": images} | columns, cfg.classes)
