"""What the scripts of weak/ take in addition to the settings of config.py."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from config import Config, Count, Positive, Share, settings

Method = Literal["cam", "contrast", "grad_cam", "grad_cam_pp", "transfer", "unet"]
Scale = Annotated[float, Field(ge=0.25, le=4)]


@settings
class ImagesConfig(Config):
    """Which images, and what is known about them."""

    has_pixel_masks: ClassVar[bool] = False
    # in the trunk, an image is a patch
    patch_size: ClassVar[property] = property(lambda self: self.image_size)
    side_setting: ClassVar[str] = "image_size"

    image_labels: Path | None = None
    """CSV with img_name, a column of 0 and 1 for each class, and optionally patient and split."""
    image_size: Annotated[int, Field(gt=0, multiple_of=32)] = 128
    """Side in pixels, a multiple of 32, to which every whole image is scaled."""
    normalise: Literal["none", "image", "patient"] = "none"
    """Give the tissue of each image, or of all of a patient's, one mean brightness and spread."""


@settings
class ClassifierConfig(ImagesConfig):
    """How the classifier is trained."""

    stages: Annotated[int, Field(ge=3, le=5)] = 5
    """Stages of the encoder that the classifier uses; with fewer it sees less of the context."""
    classifier_epochs: Count = 8
    """Passes of a plain classifier over the training images."""
    method: Method = "cam"
    """Maps that become masks (contrast if no image has two classes); or transfer, a generator."""
    size: Annotated[float, Field(gt=0, lt=1)] = 0.03
    """With unet and transfer, the share of an image that a class covers: a rough guess."""
    contrast_epochs: Count = 5
    """Passes of a contrast classifier, for that method; it continues from a plain one."""
    classifier_lr: Positive = 3e-4
    """Highest learning rate of the classifier's encoder; ten times as much for its head."""
    classifiers: Count = 2
    """Classifiers of each kind, with different seeds: maps and logits are their mean."""
    shuffled: bool = False
    """A control: shuffle the labels of the training images."""

    @property
    def is_pooled(self) -> bool:
        """Whether the classifier is the trunk's network: see weak/pooled.py."""
        return self.method in ("unet", "transfer")


@settings
class MapsConfig(ClassifierConfig):
    """How the maps of classes are made."""

    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = (0.5, 1.0, 1.5, 2.0)
    """Scales of the image at which CAM is computed; their mean is used."""


@settings
class IRNetConfig(MapsConfig):
    """How the boundaries between classes are learned."""

    sure_area: Share = 0.7
    """Share of the class's estimated area, highest map values first, that is sure foreground."""
    possible_area: Annotated[float, Field(ge=1)] = 2.0
    """Pixels outside this multiple of the estimated area are sure background."""
    irnet_epochs: Count = 3
    """Passes of IRNet over the training images with a class."""
    irnet_lr: Positive = 0.1
    """Learning rate of IRNet at the start; it falls to 0."""


@settings
class TransferConfig(ClassifierConfig):
    """How images with a lesion are made healthy."""

    lesion: str | None = None
    """Class of the image labels to remove; None: the only one."""
    iterations: Count = 600
    """Steps of the judge, each on batch_size images with the lesion and as many without."""
    transfer_lr: Positive = 5e-4
    """Learning rate of generator and judge."""


@settings
class MasksConfig(IRNetConfig, TransferConfig):
    """How maps, or a generator, become masks."""

    walk_steps: Count = 8
    """Steps of the random walk that spreads the maps up to the boundaries."""
    unsure: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Mark pixels as unsure (255) if the map, after the walk, is this close to half its maximum."""
    outline: bool = False
    """End masks where the brightness changes: for lesions that differ in it from what is around."""
