"""An optimiser step: what it computes when compiled, and that a GPU's host need not wait for it."""

import dataclasses
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from config import UserError
from medood.data.dataset import Patches
from medood.data.labels import UNSURE
from medood.models.inference import Predictor
from medood.training.augmentation import draw_augmentation
from medood.training.batches import Loader
from medood.training.loop import train_epoch
from medood.training.step import ContiguousWeight, Trainer, explain_errors
from tests.conftest import TINY

CPU = torch.device("cpu")
# a value on the host, or a shape that depends on values: on a GPU, the host waits for both
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "is_nonzero")


def batch(cfg, count=4):
    generator = torch.Generator().manual_seed(0)
    shape = (count, cfg.patch_size, cfg.patch_size)
    images = torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8)
    masks = torch.randint(0, 7, shape, generator=generator, dtype=torch.uint8)
    masks[0, :4] = UNSURE
    return images, masks, torch.ones(count), draw_augmentation(count, 0)


def trainer(cfg):
    torch.manual_seed(0)
    return Trainer(cfg, CPU)


def test_a_batch_of_one_that_cannot_be_normalised_is_said_with_the_setting():
    cfg = dataclasses.replace(TINY, batch_size=1)
    with (
        pytest.raises(UserError, match="batch_size = 1: .* set batch_size to 2"),
        explain_errors(cfg, CPU),
    ):
        trainer(cfg).step(*batch(cfg, 1))


@pytest.mark.parametrize("loss", ["dice", "dice_ce", "paper_code"])
def test_a_step_asks_for_no_value_that_the_host_would_wait_for(loss):
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.overloadpacket.__name__
            assert name not in WAITS, f"{name} makes the host wait"
            seen.append(name)
            return function(*args, **(kwargs or {}))

    cfg, seen = dataclasses.replace(TINY, loss=loss), []
    ours = trainer(cfg)
    ours.step(*batch(cfg))  # torch's Adam looks at its settings at first
    with Watch():
        ours.step(*batch(cfg))
    assert "_fused_adam_" in seen
    seen.clear()
    images, masks, _, _ = batch(cfg)
    patches = Patches(list("abcd"), images, masks, torch.tensor([True, False, False, True]))
    loader = Loader(dataclasses.replace(cfg, batch_size=2), 1, patches, CPU)
    with Watch():
        train_epoch(ours, loader, 1e-3)
    assert seen.count("_fused_adam_") == 2
    with Watch(), pytest.raises(AssertionError, match="makes the host wait"):
        torch.ones(1).item()


def test_neither_inference_nor_a_resume_parts_the_weights_from_the_optimiser(tmp_path):
    """Weights of shape (C, 1, 1, 1) would be copied by each change to channels last."""
    cfg = dataclasses.replace(TINY, encoder="mobileone_s0")
    ours = trainer(cfg)
    assert any(weight.weight.shape[1:] == (1, 1, 1) for weight in ours.weights)
    Predictor(cfg, ours.model.eval(), CPU)(batch(cfg)[0])
    ours.model.load_state_dict(ours.model.state_dict())
    for weight in ours.weights:
        assert weight.contiguous.data_ptr() == weight.weight.data_ptr()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_compiles_as_one_graph_and_learns_the_same(monkeypatch, precision):
    plain = dataclasses.replace(TINY, encoder="tu-resnet10t", precision=precision)
    compiled = dataclasses.replace(plain, compile=True)
    # any break of the graph is an error here; inductor would take a minute to compile it
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    first, second = trainer(plain), trainer(compiled)
    for _ in range(3):
        found, expected = second.step(*batch(plain)), first.step(*batch(plain))
        torch.testing.assert_close(found, expected)


def test_what_cannot_be_compiled_is_said_with_the_cure(monkeypatch):
    def fail(*_):
        raise OSError("no compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    cfg = dataclasses.replace(TINY, compile=True)
    with (
        pytest.raises(UserError, match="compile = True: unet_mobilenet_v2 cannot .* to False$"),
        explain_errors(cfg, CPU),
    ):
        trainer(cfg).step(*batch(cfg))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("of_gradient", [torch.contiguous_format, torch.channels_last])
def test_adam_takes_each_gradient_to_its_own_weight_whatever_the_layouts(layout, of_gradient):
    """torch's fused Adam mixes up the elements where a weight and its gradient lie differently."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 4, 3, 3).contiguous(memory_format=layout))
    plain = torch.nn.Parameter(weight.detach().clone())
    ours, theirs = ContiguousWeight(weight), torch.optim.Adam([plain], 0.1, fused=False)
    adam = torch.optim.Adam([ours.contiguous], 0.1, fused=True)
    for _ in range(3):
        plain.grad = torch.randn(8, 4, 3, 3)
        weight.grad = plain.grad.contiguous(memory_format=of_gradient)
        ours.take_gradient()
        adam.step()
        theirs.step()
    torch.testing.assert_close(weight, plain)
    assert weight.grad is None
    assert ours.take_gradient() is None
