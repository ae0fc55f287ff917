"""Settings of weak/ for the first images of its sample, and images to classify."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import TINY, as_settings_of
from weak import generate_maps, report, sample
from weak.main import MainConfig
from weak.scoring import ROWS
from weak.settings import ClassifierConfig

PLAIN_ROWS = [row for row in ROWS if not row.endswith("_outlined")]  # without the setting


@contextmanager
def few_pictures() -> Iterator[None]:
    """Draw one image in each picture: to draw takes longer than to compute what is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate_maps, "SHOWN", 2)
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


def of_two_classes(workspace: Path, **own: object) -> ClassifierConfig:
    """Settings of classifiers of the classes of `painted`."""
    classes = (("a", "#000000"), ("b", "#ffffff"))
    return as_settings_of(ClassifierConfig, TINY, workspace=workspace, classes=classes, **own)


def painted(count, side=32, seed=0):
    """Images with a red square where class a is held, and a blue one where b is."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (count, 2))
    images = rng.integers(100, 150, (count, side, side, 3))
    for image, (a, b) in zip(images, labels, strict=True):
        if a:
            image[2:14, 2:14] = 255, 0, 0
        if b:
            image[16:28, 16:28] = 0, 0, 255
    return torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels).float()


def scores_in(cfg: MainConfig) -> dict:
    """The scores of every row of the one fold."""
    path = cfg.workspace / "reports" / "weak" / (cfg.lesion or "") / "scores.json"
    (of_fold,) = json.loads(path.read_text()).values()
    return of_fold


@contextmanager
def stopped_after(kind: type, epochs: int) -> Iterator[None]:
    """Interrupt every training of a kind when it has had some epochs."""
    begin = kind.begin_epoch

    def stop(self, epoch):
        if epoch == epochs:
            raise KeyboardInterrupt
        return begin(self, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "begin_epoch", stop)
        yield
