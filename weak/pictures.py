"""Images in rows, with what the steps of weak/ say of each."""

from pathlib import Path

from torch import Tensor

from config import Config
from medood.data.labels import BACKGROUND_COLOUR
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
    """Draw images and, beside each, its column: shades for floats, class colours for integers.

    images: RGB uint8 (n, P, P, 3). columns: (n, h, w) each, or (n, h, w, 3) for more images.
    """
    colours = [BACKGROUND_COLOUR, *(colour for _, colour in cfg.classes)]
    size = 2.1 * (1 + len(columns)), 2.2 * len(images) + 1
    with figures.canvas(path, f"{data_name(cfg.workspace)}, {title}", size) as figure:
        axes = figure.subplots(len(images), 1 + len(columns), squeeze=False)
        for index, line in enumerate(axes):
            line[0].imshow(images[index].numpy())
            line[0].set_ylabel(names[index])
            for ax, values in zip(line[1:], columns.values(), strict=True):
                if values.dim() == 4:
                    ax.imshow(values[index].numpy())
                elif values.is_floating_point():
                    ax.imshow(values[index].numpy(), cmap="magma", vmin=0, vmax=1)
                else:
                    figures.show_classes(ax, values[index].numpy(), colours)
        for ax, name in zip(axes[0], ["image", *columns], strict=True):
            ax.set_title(name)
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
        if any(part.dim() == 3 and not part.is_floating_point() for part in columns.values()):
            figures.name_colours(figure, cfg.classes)
