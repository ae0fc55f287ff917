"""What the scripts of robust/ take in addition to the settings of config.py."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from tyro.conf import UseAppendAction

from config import (
    CONFIG,
    Config,
    Count,
    Number,
    Positive,
    Search,
    TrainingConfig,
    UserError,
    settings,
)

Eps = Annotated[float, Field(ge=0, le=255)]  # in 255ths of the range of an image
Attack = Literal[
    *("noise", "pgd", "segpgd", "cospgd", "apgd_ce", "apgd_dlr", "apgd_masked_ce"),
    *("apgd_masked_ce_balanced", "apgd_js", "sea", "sea_masked_ce_balanced", "sea_masked_ce"),
    *("sea_js", "fab", "square"),
]


@settings
class Attacks:
    """Which attacks are tried, and how hard."""

    attacks: tuple[Attack, ...] = ()
    """Attacks to try; none: noise, APGD with two losses, SEA, FAB and Square."""
    steps: Count = 100
    """Iterations of a gradient-based attack."""
    queries: Count = 1000
    """Queries of Square, which uses no gradient, for each image."""
    corruptions: bool = False
    """Also test corruptions without an attacker, such as noise and blur, at five strengths."""


@settings
class AttackConfig(Attacks, Config):
    """The settings of attack.py only."""

    eps: Annotated[tuple[Eps, ...], Field(min_length=1)] = (2.0, 4.0, 8.0)
    """How far an attack may change a pixel, in 255ths of the range of colours."""
    checkpoint: UseAppendAction[tuple[Path, ...]] = ()
    """Attack this network (a folder, or a file of weights) instead of models/; twice: compare."""
    patches: Count | None = None
    """Attack at most this many test patches of each fold, spread over its regions; None: all."""
    quick: bool = False
    """A first look: the largest eps, and at most 10 steps, 100 queries, 16 patches of a fold."""


@settings
class Replays:
    """How free adversarial training is done."""

    replays: Count = 5
    """Steps of free adversarial training on each batch, m; its epochs are divided by it."""


@settings
class FreeConfig(Replays, TrainingConfig):
    """The settings of train_free.py only."""

    eps: Eps = 8.0
    """How far the noise may change a pixel, in 255ths of the range of colours."""


@settings
class VolumeConfig:
    """Which volumes, how far an attack may change them, and where it is computed."""

    workspace: Path = CONFIG.workspace
    """Folder of everything generated from the volumes."""
    data: Path | None = None
    """Folder of a task of the Medical Segmentation Decathlon: dataset.json, imagesTr, labelsTr."""
    eps: Eps = 8.0
    """Largest change of a voxel, in 255ths of the range of its volume's intensities."""
    folds: Annotated[tuple[Number, ...], Field(min_length=1)] = CONFIG.folds
    """Fold n tests part n mod 3 of three, trains on the rest, and is seeded by n."""
    seed: Number = CONFIG.seed
    """Splits the volumes into parts and, with the number of the fold, seeds each training."""
    device: str = CONFIG.device
    """`auto` is CUDA if available, else the CPU; or any device of torch, such as cuda:1."""
    precision: Literal["auto", "float32", "bfloat16"] = CONFIG.precision
    """`auto` is bfloat16 if the hardware supports it, else float32; tests use float32."""

    @property
    def task(self) -> str:
        """The name of the data's folder, such as Task04_Hippocampus; UserError without one."""
        if self.data is None:
            raise UserError("data = None: name the folder of an MSD task with --data")
        return self.data.resolve().name

    @property
    def home(self) -> Path:
        """The folder of everything generated from the task."""
        return self.workspace / self.task


@settings
class NetworkConfig(Replays, Search, VolumeConfig):
    """Which network, and how it is trained."""

    network: Literal["unet", "lattice"] = "unet"
    """MONAI's residual U-Net, or the lattice of ROG."""
    epochs: Count = 30
    """Passes over the training volumes, a patch of each; free training divides them."""
    batch_size: Count = 2
    """Patches per optimiser step."""
    lr: Positive = 2e-3
    """Highest learning rate of AdamW: it rises for a tenth of all steps, then falls to 0."""
    ood_fill: Literal["zero", "mean"] = "zero"
    """What replaces the foreground: the minimum of the volume, or its mean background."""
    ood_weight: Annotated[float, Field(ge=0)] = CONFIG.ood_weight
    """Lambda of Eq. 4: weight of a voxel of an OoD volume in the loss."""
    tensorboard: bool = CONFIG.tensorboard
    """Write the losses of the training to <workspace>/tensorboard too."""


@settings
class TrainVolumesConfig(NetworkConfig):
    """The settings of train_volumes.py only."""

    free: bool = False
    """Free adversarial training, from the clean network of the same fold."""
    ood: bool = False
    """Add the volumes without foreground that fool the clean network of the fold (Med-OoD)."""

    @property
    def model_name(self) -> str:
        """What every file of this network is named after, such as `unet_free_ood`."""
        return self.network + "_free" * self.free + "_ood" * self.ood


@settings
class TestVolumesConfig(Attacks, VolumeConfig):
    """How much is tested."""

    attacked: Count = 20
    """Attack this many test volumes of each fold, from the first; clean scores are of all."""
