"""Images in rows, with what the steps of weak/ say of each."""

from pathlib import Path

from torch import Tensor

from config import Config
from medood.data.workspace import data_name
from medood.evaluation import figures


def draw_rows(
    path: Path,
    cfg: Config,
    title: str,
    names: list[str],
    images: Tensor,
    columns: dict[str, Tensor],
) -> None:
    """Draw images, RGB uint8 (n, P, P, 3), each with its name and, beside it, its columns."""
    title = f"{data_name(cfg.workspace)}, {title}"
    figures.draw_rows(path, title, names, {"image": images} | columns, cfg.classes)
