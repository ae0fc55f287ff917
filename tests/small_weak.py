"""Settings of weak/ for the first images of its sample."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import TINY, as_settings_of
from weak import generate_maps, healthy, report, sample
from weak.main import MainConfig

POOLED = ("tissue", "brightest", "strange", "maps", "unet")  # rows only with method = unet


@contextmanager
def few_pictures() -> Iterator[None]:
    """Draw one image in each picture: to draw takes longer than to compute what is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (generate_maps, healthy):
            patch.setattr(module, "SHOWN", 2)
        patch.setattr(report, "EXAMPLES", 1)
        yield


def small(workspace: Path, images: int = 18, **own: object) -> MainConfig:
    """Settings for the first images of the sample, in a workspace of their own."""
    labels = sample.draw_sample(workspace)["image_labels"]
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join(lines[: images + 1]) + "\n")
    return settings_of(workspace, **own)


def settings_of(workspace: Path, **own: object) -> MainConfig:
    """The settings alone, of images that are drawn."""
    drawn = {"images": workspace / "drawn" / "images", "masks": workspace / "drawn" / "masks"}
    drawn["image_labels"] = workspace / "drawn" / "image_labels.csv"
    given = {"workspace": workspace, "image_size": 32, "epochs": 1, "folds": (79,), **drawn}
    given |= {"classifier_epochs": 8, "classifier_lr": 3e-3}
    given |= {"method": "contrast", "contrast_epochs": 16}
    given |= {"stages": 3, "scales": (1.0,), "irnet_epochs": 1}
    return as_settings_of(MainConfig, TINY, **given | own)
