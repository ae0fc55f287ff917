"""Every setting of the experiment. Edit a default here, then run any step.

One run can differ without an edit: `python train.py --encoder resnet18 --epochs 2`.
The text below a setting is what `--help` prints. Each script takes the settings that it uses.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

_SCRIPT = Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve()


def _stop_quietly(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """Show no traceback for Ctrl-C while Python still imports, or for a package that is missing."""
    if kind is KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    elif kind is ModuleNotFoundError:
        cure = "`source .venv/bin/activate`, or `pip install -r requirements.txt`"
        print(
            f"error: the package {str(error.name).partition('.')[0]} is not installed: {cure}",
            file=sys.stderr,
        )
    else:
        sys.__excepthook__(kind, error, trace)


if Path(__file__).resolve().parent in _SCRIPT.parents[:2]:  # a script of this repository runs
    sys.excepthook = _stop_quietly

import functools
import re
from typing import Annotated, ClassVar, Literal, TypeVar, dataclass_transform

import pydantic
from pydantic import ConfigDict, Field, ValidationError

from medood import UserError

Count = Annotated[int, Field(ge=1)]
Number = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Microns = Annotated[float, Field(ge=0.05, le=10)]

# Lizard's classes, name and colour; colour-blind readers can distinguish them (Okabe and Ito)
LIZARD = (
    ("neutrophil", "#f0e442"),
    ("epithelial", "#009e73"),
    ("lymphocyte", "#0072b2"),
    ("plasma", "#cc79a7"),
    ("eosinophil", "#d55e00"),
    ("connective", "#56b4e9"),
)


T = TypeVar("T")
_CHECKED = ConfigDict(strict=True, use_attribute_docstrings=True)


@dataclass_transform(frozen_default=True)
def settings(kind: type[T]) -> type[T]:
    """Make a class of settings: a frozen dataclass that raises UserError for a wrong value.

    The text below a setting is its description, which --help prints.
    """
    checked = pydantic.dataclasses.dataclass(frozen=True, config=_CHECKED)(kind)
    take = checked.__init__

    @functools.wraps(take)
    def init(self: T, **values: object) -> None:
        try:
            take(self, **values)
        except ValidationError as error:
            raise _refusal(error, values) from None

    checked.__init__ = init
    return checked


def _refusal(error: ValidationError, values: dict[str, object]) -> UserError:
    """Return what to tell the user of the first wrong value."""
    first = error.errors()[0]
    if isinstance(rule := first.get("ctx", {}).get("error"), UserError):
        return rule
    name, (_, reason) = first["loc"][0], first["msg"].split(" ", 1)  # "Input should be ..."
    return UserError(f"{name} = {values.get(name)!r}: it {reason}")


def _has_one_group(pattern: str) -> bool:
    """Say whether a text is a regular expression with one group."""
    try:
        return re.compile(pattern).groups == 1
    except (re.error, OverflowError, RecursionError):
        return False


@settings
class Data:
    """What is segmented, and how it is cut and split."""

    has_pixel_masks: ClassVar[bool] = True  # False where masks only test, as in weak/
    side_setting: ClassVar[str] = "patch_size"  # what messages call it

    workspace: Path = Path("workspace")
    """Folder of the data and of everything generated from it."""
    classes: Annotated[tuple[tuple[str, str], ...], Field(min_length=1, max_length=254)] = LIZARD
    """Name and colour of each class, such as `tumour "#d55e00"`; 1 in a mask is the first."""
    images: Path | None = None
    """Folder of your images, of any size; None: Lizard's, in the workspace."""
    masks: Path | None = None
    """Folder of their class masks, with the same names; None: Lizard's labels."""
    mask_values: tuple[Count, ...] = ()
    """Value of each class in your masks, such as 255; empty if they are 1, 2, 3, ..."""
    mpp: Microns = 0.5
    """Microns per pixel of the images (Lizard's: 0.5; 40x magnification is about 0.25)."""
    patch_size: Annotated[int, Field(gt=0, multiple_of=32)] = 128
    """Side of a patch in pixels, a multiple of 32."""
    folds: Annotated[tuple[Number, ...], Field(min_length=1)] = (79, 158, 237)
    """Fold n tests part n mod 3 of three, trains on the rest, and is seeded by n."""
    seed: Number = 0
    """Splits the patches into parts and, with the number of the fold, seeds each training."""
    split: Literal["patch", "region", "official"] = "patch"
    """What is split: patches (paper), whole regions or `patients`, or as in Lizard's info.csv."""
    patients: str | None = None
    """Patient of each image: a .csv (img_name, patient), or a pattern like "(case_[0-9]+)_.*"."""
    ood_fill: Literal["zero", "mean", "inpaint"] = "zero"
    """What replaces a nucleus: black (paper), mean background, or inpainting."""
    ood_source: Path | None = None
    """Folder of images without any nucleus, whose patches are mined as OoD candidates."""
    ood_source_use: Literal["instead", "beside"] = "instead"
    """Mine the patches of ood_source instead of the cut training patches, or in addition."""
    skip_bad_files: bool = False
    """Continue without regions that cannot be used; the report lists them."""
    dask_scheduler: Annotated[str, Field(pattern=r"^(tcp|tls)://\S+:\d+$")] | None = None
    """Let the workers of this dask scheduler, such as tcp://10.0.0.1:8786, prepare the data."""

    def __post_init__(self) -> None:
        names = {"background", *(name for name, _ in self.classes)}
        values = {0, *self.mask_values}
        rules = {
            "workspace": (
                not any("\ud800" <= letter <= "\udfff" for letter in str(self.workspace)),
                "a folder whose name is UTF-8, as safetensors opens no other: rename it",
            ),
            "classes": (
                len(names) == len(self.classes) + 1
                and all(name.strip() and name.isprintable() for name in names)
                and all(re.fullmatch("#[0-9a-fA-F]{6}", colour) for _, colour in self.classes),
                'pairs of a name and a colour, such as (("tumour", "#d55e00"),), no name twice',
            ),
            "masks": (
                not self.has_pixel_masks or (self.images is None) == (self.masks is None),
                "set together with images, or neither",
            ),
            "mask_values": (
                not self.mask_values
                or not self.has_pixel_masks  # its classes are not known yet
                or (self.masks is not None and len(values) == len(self.classes) + 1),
                f"{len(self.classes)} different numbers, one for each class, and only with masks",
            ),
            "folds": (len(set(self.folds)) == len(self.folds), "different numbers"),
            "patients": (
                self.patients is None
                or self.patients.lower().endswith(".csv")
                or _has_one_group(self.patients),
                'a .csv, or a regular expression with one group, such as "(case_[0-9]+)_.*"',
            ),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                found = getattr(self, name)
                found = str(found) if isinstance(found, Path) else found
                raise UserError(f"{name} = {found!r} must be {rule}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each value of a mask, from 0: background, then `classes`."""
        return ("background", *(name for name, _ in self.classes))

    @property
    def unit(self) -> str:
        """What is on one side only if `split` is region, and what a bootstrap draws."""
        if self.patients is not None:
            return "patient"
        return "slide" if self.split == "official" else "region"


@settings
class Network:
    """What is trained."""

    architecture: str = "unet"
    """Any of segmentation-models-pytorch, such as unet, unetplusplus, manet or deeplabv3plus."""
    encoder: str = "vgg11_bn"
    """Any encoder of segmentation-models-pytorch, or of timm, as `tu-<name>`."""
    encoder_weights: str = "imagenet"
    """`imagenet` (downloaded once), `none`, or the path of a .pth or .safetensors file."""
    batch_norm: bool = True
    """False removes every batch normalisation of encoder and decoder (Table 3 of the paper)."""

    @property
    def model_name(self) -> str:
        """What every file of this network is named after, such as `unet_vgg11_bn`."""
        return f"{self.architecture}_{self.encoder}"


@settings
class Training:
    """How it is trained."""

    epochs: Count = 36
    """Passes over the training patches."""
    batch_size: Count = 8
    """Patches per optimiser step."""
    lr: Positive = 1e-4
    """Learning rate of Adam; a tenth of it for the last 10 of 36 epochs."""
    stain: Share = 0.0
    """Vary the stains of H&E images in training by up to this share, such as 0.05."""
    sampling: Literal["shuffle", "rare"] = "shuffle"
    """Each patch once per epoch (paper), or as many patches, those of rare classes more often."""
    loss: Literal["dice", "dice_ce", "paper_code"] = "dice"
    """Dice per class; the same with cross-entropy; or flattened, as in the paper's code."""
    ood_weight: Annotated[float, Field(ge=0)] = 1.0
    """Lambda of Eq. 4: weight of a pixel of an OoD patch in the loss."""
    select: Literal["last", "val"] = "last"
    """Weights to keep: the last epoch's, or the best on regions held out of the training side."""


@settings
class Machine:
    """Where and how it is computed."""

    device: str = "auto"
    """`auto` is CUDA if available, else the CPU; or any device of torch, such as cuda:1."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` is bfloat16 if the hardware supports it, else float32; tests use float32."""
    mirrors: bool = False
    """Average predictions over the eight flips and rotations of an image: eight times slower."""
    compile: bool = False
    """Compile the training step, on one GPU into CUDA graphs; slower on the CPUs tried."""
    deterministic: bool = False
    """Refuse CUDA operations that may differ between runs (pspnet and upernet need them)."""
    tensorboard: bool = False
    """Write the losses of every training to <workspace>/tensorboard too."""


@settings
class Search:
    """How many OoD patches are trained on."""

    pnr_opt: Positive = 0.65
    """Positive-negative ratio that the training set should reach (Eq. 2-3)."""
    pct_grid: Annotated[tuple[Share, ...], Field(min_length=1)] = tuple(n / 10 for n in range(11))
    """Shares of the ranked OoD patches that the grid search tries, as fractions."""


@settings
class TrainingConfig(Machine, Training, Network, Data):
    """The settings of a training, and of whatever uses a trained network."""


@settings
class Config(Search, TrainingConfig):
    """All settings."""


try:
    CONFIG = Config()
except UserError as error:
    raise SystemExit(f"error: config.py: {error}") from None
