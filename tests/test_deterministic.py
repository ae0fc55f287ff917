"""`deterministic`: what torch refuses on a GPU then, and that the losses need none of it."""

import dataclasses

import pytest
import segmentation_models_pytorch as smp
import torch
from docstring_parser import parse_from_object
from torch.utils._python_dispatch import TorchDispatchMode

from config import Config, Machine
from medood.training.segmentation import Trainer
from tests.conftest import TINY
from tests.gpus import CPU, HERE, SMALL, some_patches, trained

# operations that torch refuses on CUDA if they must be deterministic, by the names that they have
# in its own list, the documentation of torch.use_deterministic_algorithms
REFUSED = {
    "_adaptive_avg_pool2d_backward": "torch.nn.AdaptiveAvgPool2d",
    "adaptive_max_pool2d_backward": "torch.nn.AdaptiveMaxPool2d",
    "nll_loss2d_forward": "torch.nn.NLLLoss",
    "grid_sampler_2d_backward": "torch.nn.functional.grid_sample",
    "reflection_pad2d_backward": "torch.nn.ReflectionPad2d",
    "max_unpool2d": "torch.nn.MaxUnpool2d",
    "histc": "torch.histc",
    "median": "torch.median",
    "upsample_bilinear2d_backward": "torch.nn.functional.interpolate",
    "upsample_bicubic2d_backward": "torch.nn.functional.interpolate",
}


def test_the_list_of_what_cannot_be_deterministic_is_torchs_own():
    listed = torch.use_deterministic_algorithms.__doc__
    refused = listed[listed.index("will throw a") :]
    for name in REFUSED.values():
        assert name in refused, name


class Noted(TorchDispatchMode):
    """Notes the operations of torch that are computed meanwhile."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **kwargs or {})


@pytest.fixture
def deterministic():
    """Torch has other ways for some operations, slower ones."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def refused_in_a_step(cfg: Config) -> set[str]:
    """Which operations of a training step torch would refuse to make deterministic on CUDA."""
    trainer = Trainer(cfg, 1, some_patches(4, cfg.patch_size), CPU)
    with Noted() as noted:
        trainer.step(*next(iter(trainer.loader)))
    return REFUSED.keys() & noted.names


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("loss", ["dice_ce", "paper_code"])  # the first one holds dice
def test_every_loss_can_be_deterministic(loss):
    cfg = dataclasses.replace(SMALL, loss=loss)
    assert not refused_in_a_step(cfg)
    if HERE:
        trained(cfg, torch.device("cuda"))


@pytest.mark.long
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("architecture", sorted(smp.MODEL_ARCHITECTURES_MAPPING))
def test_which_architectures_cannot_be_deterministic_is_what_the_settings_say(architecture):
    encoder = "tu-vit_tiny_patch16_224" if architecture == "dpt" else "resnet18"
    side = {"dpt": 224, "pan": 128}.get(architecture, 64)  # the least that each takes
    cfg = dataclasses.replace(TINY, architecture=architecture, encoder=encoder, patch_size=side)
    said = next(p for p in parse_from_object(Machine).params if p.arg_name == "deterministic")
    assert bool(refused_in_a_step(cfg)) == (architecture in said.description.split())
