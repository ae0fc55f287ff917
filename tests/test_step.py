"""An optimiser step: what it computes when compiled, and what is said where it cannot."""

import dataclasses
from unittest import mock

import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounter

from config import UserError
from medood.models.inference import Predictor
from medood.training.augmentation import draw_augmentation
from medood.training.loop import explain_errors
from medood.training.segmentation import Trainer
from tests.conftest import TINY
from tests.gpus import CPU, SMALL, some_patches, trained


def batch(cfg, count=4):
    patches = some_patches(count, cfg.patch_size)
    return patches.images, patches.masks, torch.ones(count), draw_augmentation(count, 0)


def trainer(cfg):
    return Trainer(cfg, 1, some_patches(4), CPU)


MEMORY = torch.OutOfMemoryError("CUDA out of memory.")
SLOW = RuntimeError("x_cuda does not have a deterministic implementation, but you set")


@pytest.mark.parametrize(
    ("error", "change", "said"),
    [
        (MEMORY, {"batch_size": 8}, "memory for batches of 8 .* set batch_size to 4$"),
        (MEMORY, {"batch_size": 1}, "batches of 1 .* set device to cpu$"),
        (SLOW, {}, "x_cuda does not have .*: set deterministic to False$"),
        (Unsupported("no compiler"), {}, "no compiler.*: set compile to False$"),
        (None, {"batch_size": 1}, "set batch_size to 2 or more$"),  # as torch raises it
    ],
)
def test_what_torch_cannot_do_is_said_with_the_setting_that_helps(error, change, said, monkeypatch):
    cfg = dataclasses.replace(SMALL, **change)
    if error is not None:
        monkeypatch.setattr(Trainer, "step", mock.Mock(side_effect=error))
    with pytest.raises(UserError, match=said), explain_errors(cfg, CPU):
        trainer(cfg).step(*batch(cfg, 1))


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


def test_one_graph_serves_every_batch_and_learning_rate_and_learns_the_same(monkeypatch):
    """A break of the graph would be an error; so would a second graph, for the shorter batch."""
    torch._dynamo.reset()  # other tests compiled the same function
    counter, compile_ = CompileCounter(), torch.compile  # inductor would take a minute

    def once(function, **options):
        return compile_(function, backend=counter, fullgraph=True, dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", once)
    plain = dataclasses.replace(SMALL, precision="bfloat16", batch_size=4)
    _, expected = trained(plain, CPU, count=6, epochs=3)
    with mock.patch.object(torch._dynamo.config, "error_on_recompile", True):
        _, found = trained(dataclasses.replace(plain, compile=True), CPU, count=6, epochs=3)
    assert counter.frame_count == 1
    torch.testing.assert_close(found, expected)
