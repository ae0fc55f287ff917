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

# what torch refuses on CUDA if it must be deterministic, see torch.use_deterministic_algorithms
REFUSED = (
    *("_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "nll_loss2d_forward"),
    *("grid_sampler_2d_backward", "reflection_pad2d_backward", "max_unpool2d", "histc", "median"),
    *("upsample_bilinear2d_backward", "upsample_bicubic2d_backward"),
)


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
    return noted.names.intersection(REFUSED)


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
