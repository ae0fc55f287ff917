"""Each fold is trained several times: a GAN depends on its random numbers, and one run says little.

Fold n tests part n mod 3 and is seeded by n, so folds n, n + 3, n + 6 are trainings on the same
images from other random numbers: no product needs a name for it.
"""

from dataclasses import replace

from config import Count, settings
from medood.data.folds import PARTS
from weak.transfer_settings import TransferConfig


@settings
class TrainingsConfig(TransferConfig):
    """How often each fold is trained."""

    trainings: Count = 3
    """Trainings of each fold, fold n's also as n + 3, n + 6, ...; the tables show the median."""


def trainings_of(cfg: TrainingsConfig, fold: int) -> list[int]:
    """Return the numbers under which a fold is trained."""
    return [fold + PARTS * number for number in range(cfg.trainings)]


def with_trainings(cfg: TrainingsConfig) -> TrainingsConfig:
    """Return settings whose folds are all trainings of all folds."""
    every = [number for fold in cfg.folds for number in trainings_of(cfg, fold)]
    return replace(cfg, folds=tuple(dict.fromkeys(every)))
