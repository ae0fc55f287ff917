"""Every setting of the experiment. Edit a default here, then run any step.

One run can differ without an edit: `python train.py --encoder resnet18 --epochs 2`.
Each setting's description below is also what `--help` prints.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, get_args, get_origin, get_type_hints

# Lizard's classes, name and colour, told apart also by colour-blind readers (Okabe and Ito)
LIZARD = (
    ("neutrophil", "#f0e442"),
    ("epithelial", "#009e73"),
    ("lymphocyte", "#0072b2"),
    ("plasma", "#cc79a7"),
    ("eosinophil", "#d55e00"),
    ("connective", "#56b4e9"),
)


class UserError(ValueError):
    """A mistake that the user can mend: shown as one sentence, without a traceback."""


@dataclass(frozen=True)
class Config:
    """The settings; wrong values are refused here, with the valid ones named."""

    # --- data ---
    workspace: Path = Path("workspace")
    """Folder that holds the data and everything made from it."""
    classes: tuple[tuple[str, str], ...] = LIZARD
    """Name and colour of each foreground class; 1 in a mask is the first, 0 is background."""
    images: Path | None = None
    """Folder of your own images, of any size; None takes Lizard's from the workspace."""
    masks: Path | None = None
    """Folder of their class masks, of the same names; None takes Lizard's labels."""
    mask_values: tuple[int, ...] = ()
    """What stands for each class in your masks, such as 255; nothing if it is 1, 2, 3, ..."""
    mpp: float = 0.5
    """Microns per pixel of the images (Lizard's: 0.5); predict.py brings new images to it."""
    patch_size: int = 128
    """Side of a patch in pixels, a multiple of 32."""
    folds: tuple[int, ...] = (79, 158, 237)
    """One run each: fold n tests part n mod 3 of three, trains on the rest, and is seeded by n."""
    split: Literal["patch", "region", "official"] = "patch"
    """What is dealt into parts: patches (paper), whole regions, or as Lizard's info.csv says."""
    ood_fill: Literal["zero", "mean", "inpaint"] = "zero"
    """What stands where a nucleus stood: black (paper), mean background colour, or inpainting."""
    ood_source: Path | None = None
    """A folder of images without any nucleus, whose patches are mined as OoD candidates."""
    ood_source_use: Literal["instead", "beside"] = "instead"
    """Mine the patches of ood_source instead of the cut training patches, or beside them."""
    max_pixels: int = 2**29
    """Pixels of an image or label above which it is refused: a small file can claim to be huge."""
    skip_bad_files: bool = False
    """Go on without regions or patches that cannot be used; the report names them."""
    workers: int = -1
    """Threads that prepare the data; -1 is one per core."""
    dask_scheduler: str | None = None
    """Let the workers of this dask scheduler, such as tcp://10.0.0.1:8786, prepare the data."""

    # --- network ---
    architecture: str = "unet"
    """Any that segmentation-models-pytorch names: unet, unetplusplus, manet, fpn, deeplabv3plus."""
    encoder: str = "vgg11_bn"
    """Any encoder of segmentation-models-pytorch; `tu-<name>` reaches every one of timm."""
    encoder_weights: str = "imagenet"
    """`imagenet` (downloaded once), `none`, or the path of a .pth or .safetensors file."""

    batch_norm: bool = True
    """False removes every batch normalisation of encoder and decoder (Table 3 of the paper)."""
    sync_batch_norm: bool = False
    """With torchrun on several GPUs, normalise over the whole batch instead of each GPU's part."""

    # --- training ---
    epochs: int = 36
    """Passes over the training patches."""
    batch_size: int = 8
    """Patches per optimiser step."""
    lr: float = 1e-4
    """Learning rate of Adam; a tenth of it for the last 10 of 36 epochs (same share of others)."""
    loss: Literal["dice", "dice_ce", "paper_code"] = "dice"
    """Dice per class; the same with cross-entropy; or flattened, as the paper's code has it."""
    ood_weight: float = 1.0
    """Lambda of Eq. 4: how much a pixel of an OoD patch weighs in the loss."""

    select: Literal["last", "val"] = "last"
    """Weights to keep: the last epoch's, or the best on regions held out of the training side."""

    # --- how many OoD patches ---
    pnr_opt: float = 0.65
    """Positive-negative ratio that the training set should come to (Eq. 2-3)."""
    pct_grid: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """Shares of the ranked OoD patches that the grid search tries, as fractions."""

    # --- machine ---
    device: str = "auto"
    """`auto` is CUDA if there, else the CPU; or any device that torch names, such as cuda:1."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` is bfloat16 where the hardware computes in it, else float32."""
    max_memory: float | None = None
    """Gigabytes of patches to hold in memory, the rest in a file; None is half of the machine's."""
    seed: int = 0
    """Deals the patches into parts and, with the fold's number, seeds each training."""
    compile: bool = False
    """Compile the training step with torch.compile; slower on CPUs that were tried."""
    deterministic: bool = False
    """Refuse CUDA operations that may differ between runs; the CPU's never do."""
    tensorboard: bool = False
    """Write the losses and pictures of every training to <workspace>/tensorboard too."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if not _fits(getattr(self, name), hint):
                raise UserError(f"{name} = {getattr(self, name)!r} is not {_words(hint)}")
        names = [pair[0] for pair in self.classes if len(pair) == 2]
        colours = [pair[-1] for pair in self.classes if len(pair) == 2]
        rules = {
            "classes": (
                0 < len(names) == len(self.classes) < 255
                and len({"background", *names}) == len(names) + 1
                and all(name.strip() and name.isprintable() for name in names)
                and all(re.fullmatch("#[0-9a-fA-F]{6}", colour) for colour in colours),
                'pairs of a name and a colour, such as (("tumour", "#d55e00"),), no name twice',
            ),
            "masks": (
                (self.images is None) == (self.masks is None),
                "set together with images, or neither",
            ),
            "mask_values": (
                len(self.mask_values) in ((0,) if self.masks is None else (0, len(self.classes)))
                and len({0, *self.mask_values}) == len(self.mask_values) + 1
                and min(self.mask_values, default=1) > 0,
                f"{len(self.classes)} different numbers above 0, a class each, and only with masks",
            ),
            "mpp": (0.05 <= self.mpp <= 10, "0.05 to 10; 40x magnification is about 0.25"),
            "patch_size": (self.patch_size > 0 and self.patch_size % 32 == 0, "a multiple of 32"),
            "folds": (
                len(self.folds) > 0
                and len(set(self.folds)) == len(self.folds)
                and min(self.folds) >= 0,
                "one or more different whole numbers, none negative",
            ),
            "max_pixels": (self.max_pixels > 0, "at least 1"),
            "workers": (self.workers == -1 or self.workers > 0, "-1 or at least 1"),
            "dask_scheduler": (
                self.dask_scheduler is None
                or re.fullmatch(r"(tcp|tls)://\S+:\d+", self.dask_scheduler),
                "as `python -m dask scheduler` prints it, such as tcp://10.0.0.1:8786",
            ),
            "epochs": (self.epochs > 0, "at least 1"),
            "batch_size": (self.batch_size > 0, "at least 1"),
            "lr": (self.lr > 0, "above 0"),
            "ood_weight": (self.ood_weight >= 0, "0 or more"),
            "pnr_opt": (self.pnr_opt > 0, "above 0"),
            "pct_grid": (
                len(self.pct_grid) > 0 and all(0 <= pct <= 1 for pct in self.pct_grid),
                "one or more fractions from 0 to 1",
            ),
            "max_memory": (self.max_memory is None or self.max_memory > 0, "above 0"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise UserError(f"{name} = {getattr(self, name)!r} must be {rule}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each value of a mask, from 0: background, then `classes`."""
        return ("background", *(name for name, _ in self.classes))

    @property
    def model_name(self) -> str:
        """What every file of this network is named after, such as `unet_vgg11_bn`."""
        return f"{self.architecture}_{self.encoder}"


def _fits(value: object, hint: object) -> bool:
    """Say whether a setting's value is of its declared type."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is UnionType:
        return any(_fits(value, kind) for kind in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if isinstance(value, bool) and hint is not bool:
        return False  # Python counts True as a number
    return isinstance(value, (int, float) if hint is float else hint)


def _words(hint: object) -> str:
    """Return what `_fits` expects, in words."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if get_origin(hint) is tuple:
        return f"a tuple of {getattr(get_args(hint)[0], '__name__', 'such')} values, as (x,)"
    if get_origin(hint) is UnionType:
        return " or ".join(_words(kind) for kind in get_args(hint))
    return "None" if hint is NoneType else f"of type {hint.__name__}"


try:
    CONFIG = Config()
except UserError as error:
    raise SystemExit(f"error: config.py: {error}") from None
