"""`deterministic`: what torch refuses on a GPU then, and that the losses need none of it."""

import dataclasses

import pytest
import segmentation_models_pytorch as smp
import torch
from docstring_parser import parse_from_object

from config import Config, Machine, UserError
from medood.training.loop import explain_errors
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


def refused_in_a_step(gpu, cfg: Config) -> set[str]:
    """Which operations of a training step torch would refuse to make deterministic on CUDA."""
    trainer = Trainer(cfg, 1, some_patches(4, cfg.patch_size), gpu.device)
    batch = next(iter(trainer.loader))
    gpu.launches.clear()
    torch.use_deterministic_algorithms(True)  # torch has other ways for some, slower ones
    try:
        trainer.step(*batch)
    finally:
        torch.use_deterministic_algorithms(False)
    return REFUSED.keys() & set(gpu.launches)


@pytest.mark.parametrize("loss", ["dice_ce", "paper_code"])  # the first one holds dice
def test_every_loss_can_be_deterministic(gpu, loss):
    if HERE:
        torch.use_deterministic_algorithms(True)
        try:
            trained(dataclasses.replace(SMALL, loss=loss), gpu.device)
        finally:
            torch.use_deterministic_algorithms(False)
    else:
        assert not refused_in_a_step(gpu, dataclasses.replace(SMALL, loss=loss))


@pytest.mark.long
@pytest.mark.skipif(HERE, reason="a GPU says so itself, one operation at a time")
@pytest.mark.parametrize("architecture", sorted(smp.MODEL_ARCHITECTURES_MAPPING))
def test_which_architectures_cannot_be_deterministic_is_what_the_settings_say(gpu, architecture):
    encoder = "tu-vit_tiny_patch16_224" if architecture == "dpt" else "resnet18"
    side = {"dpt": 224, "pan": 128}.get(architecture, 64)  # the least that each takes
    cfg = dataclasses.replace(TINY, architecture=architecture, encoder=encoder, patch_size=side)
    said = next(p for p in parse_from_object(Machine).params if p.arg_name == "deterministic")
    assert bool(refused_in_a_step(gpu, cfg)) == (architecture in said.description.split())


def test_an_operation_that_cannot_be_deterministic_is_said_with_the_cure():
    with (
        pytest.raises(UserError, match=r"^deterministic = True: unet_tu-test_resnet needs x_cuda"),
        explain_errors(SMALL, CPU),
    ):
        raise RuntimeError("x_cuda does not have a deterministic implementation, but you set")
