"""An optimiser step: what it computes when compiled, and that a GPU's host need not wait for it."""

import dataclasses
from unittest import mock

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from config import UserError
from medood.data.labels import UNSURE
from medood.models.inference import Predictor
from medood.training.augmentation import draw_augmentation
from medood.training.loop import explain_errors, train_epoch
from medood.training.segmentation import Trainer
from tests.conftest import TINY
from tests.gpus import CPU, SMALL, some_patches, trained

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
    return Trainer(cfg, 1, some_patches(4), CPU)


def test_a_batch_of_one_that_cannot_be_normalised_is_said_with_the_setting():
    cfg = dataclasses.replace(SMALL, batch_size=1)
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

    cfg, seen = dataclasses.replace(SMALL, loss=loss), []
    ours = trainer(cfg)
    ours.step(*batch(cfg))  # torch's Adam looks at its settings at first
    with Watch():
        ours.step(*batch(cfg))
    assert "_fused_adam_" in seen
    seen.clear()
    with Watch():
        train_epoch(ours, 1)
    assert seen.count("_fused_adam_") == 1
    with Watch(), pytest.raises(AssertionError, match="makes the host wait"):
        torch.ones(1).item()


@pytest.mark.parametrize("encoder", ["tu-test_resnet", "mobilenet_v2", "mobileone_s0"])
def test_every_gradient_lies_in_memory_as_its_weight_does(encoder):
    """Else torch's fused Adam would mix up their elements on a CPU."""
    ours = trainer(dataclasses.replace(TINY, encoder=encoder))
    Predictor(ours.cfg, ours.model.eval())(batch(ours.cfg)[0])
    ours.model.load_state_dict(ours.model.train().state_dict())
    ours.loss(*batch(ours.cfg)).backward()
    found = [weight for weight in ours.model.parameters() if weight.grad is not None]
    assert any(not weight.is_contiguous() for weight in found)
    assert all(weight.stride() == weight.grad.stride() for weight in found)


def test_a_step_compiles_as_one_graph_and_learns_the_same(monkeypatch):
    plain = dataclasses.replace(SMALL, precision="bfloat16")
    compiled = dataclasses.replace(plain, compile=True)
    # any break of the graph is an error here; inductor would take a minute to compile it
    compile_ = torch.compile

    def whole(function, **options):
        return compile_(function, backend="eager", fullgraph=True, dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", whole)
    first, second = trainer(plain), trainer(compiled)
    for _ in range(3):
        found, expected = second.step(*batch(plain)), first.step(*batch(plain))
        torch.testing.assert_close(found, expected)


def test_what_cannot_be_compiled_is_said_with_the_cure(monkeypatch):
    def fail(*_):
        raise OSError("no compiler")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_(function, backend=fail))
    cfg = dataclasses.replace(SMALL, compile=True)
    with (
        pytest.raises(UserError, match="compile = True: unet_tu-test_resnet cannot .* to False$"),
        explain_errors(cfg, CPU),
    ):
        trainer(cfg).step(*batch(cfg))


def test_one_graph_serves_every_batch_and_learning_rate(monkeypatch):
    """A break of the graph would be an error; so would a second graph, for the shorter batch."""
    torch._dynamo.reset()  # other tests compiled the same function
    counter, compiled = CompileCounter(), torch.compile

    def once(function, **options):
        return compiled(function, backend=counter, fullgraph=True, dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", once)
    with mock.patch.object(torch._dynamo.config, "error_on_recompile", True):
        trained(dataclasses.replace(SMALL, compile=True, batch_size=4), CPU, count=6, epochs=3)
    assert counter.frame_count == 1
