"""What the scripts of transfer/ take beside the settings of config.py and of weak/."""

from typing import Annotated

from pydantic import Field

from config import Count, Positive, settings
from weak.settings import ImagesConfig

Weight = Annotated[float, Field(ge=0)]


@settings
class TransferConfig(ImagesConfig):
    """How diseased images are made healthy."""

    lesion: str | None = None
    """Which class of the image labels to remove; None takes the only one that there is."""
    channels: Count = 16
    """Width of the networks (published: 54)."""
    iterations: Count = 600
    """Steps of the generators, each on batch_size images with the lesion and as many without."""
    transfer_lr: Positive = 5e-4
    """Learning rate of generators and discriminators."""
    cycle_weight: Weight = 2.0
    """How much it counts that there and back again gives the same image."""
    identity_weight: Weight = 10.0
    """How much it counts that a healthy image stays as it is."""
    area_weight: Weight = 3.0
    """How much it counts how far the area of masks is from 0 on healthy images, 2 % on others."""
