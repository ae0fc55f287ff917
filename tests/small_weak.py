"""Settings of weak/ for the first images of its sample."""

from pathlib import Path

from tests.conftest import TINY, as_settings_of
from weak import sample
from weak.main import MainConfig


def small(workspace: Path, images: int = 18, **own: object) -> MainConfig:
    """Settings for the first images of the sample, in a workspace of their own."""
    drawn = sample.draw_sample(workspace)
    lines = drawn["image_labels"].read_text().splitlines()
    drawn["image_labels"].write_text("\n".join(lines[: images + 1]) + "\n")
    given = {"workspace": workspace, "image_size": 64, "epochs": 1, "folds": (79,), **drawn}
    given |= {"encoder": "tu-resnet10t", "classifier_epochs": 8, "classifier_lr": 3e-3}
    given |= {"method": "contrast", "contrast_epochs": 16}
    given |= {"stages": 3, "scales": (1.0,), "irnet_epochs": 1}
    return as_settings_of(MainConfig, TINY, **given | own)
