"""The step that --compile makes: one compiled graph, and on a GPU one launch for all of it."""

import dataclasses
from unittest import mock

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from config import UserError
from medood.training import losses, step
from medood.training.batches import Loader
from medood.training.step import Trainer
from robust.free import FreeTrainer
from robust.settings import FreeConfig
from tests.conftest import as_settings_of
from tests.gpus import CPU, HERE, SMALL, some_patches, trained


@pytest.fixture
def uncompiled(monkeypatch):
    """torch.compile leaves the step as it is: what is tested is its recording."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.mark.parametrize("kind", [Trainer, FreeTrainer])
def test_a_recorded_step_learns_the_same(gpu, uncompiled, kind):
    """Over two epochs with other learning rates, each of four whole batches and a shorter one."""
    cfg = as_settings_of(FreeConfig, SMALL, batch_size=4)
    recorded = dataclasses.replace(cfg, compile=True)
    _, expected = trained(cfg, gpu.device, 18, 2, kind)
    trainer, found = trained(recorded, gpu.device, 18, 2, kind)
    assert trainer.recorded.graph is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_recorded_step_is_launched_at_once(gpu, uncompiled):
    if HERE:
        pytest.skip("a GPU does not say how often it was called")
    counts = {}
    for compile_ in (False, True):
        cfg = dataclasses.replace(SMALL, compile=compile_)
        trainer = Trainer(cfg, gpu.device)
        batch = next(iter(Loader(cfg, 1, some_patches(8), gpu.device)))
        for _ in range(5):
            trainer.step(*batch)
        gpu.launches.clear()
        trainer.step(*batch)
        counts[compile_] = list(gpu.launches)
    assert counts[True] == ["copy_"] * 4 + ["replay"]
    assert len(counts[False]) > 200


def test_what_cannot_be_recorded_is_said_with_the_cure(gpu, uncompiled, monkeypatch):
    def waiting(*given):
        return losses.segmentation_loss(*given) + 0 * given[0].sum().item()

    monkeypatch.setattr(step, "segmentation_loss", waiting)
    with pytest.raises(UserError, match=r"compile = True: a step cannot be recorded .* to False$"):
        trained(dataclasses.replace(SMALL, compile=True, batch_size=4), gpu.device)


def test_one_graph_serves_every_batch_and_learning_rate(monkeypatch):
    """A break of the graph would be an error; so would a second graph, for the shorter batch."""
    counter, compiled = CompileCounter(), torch.compile

    def once(function, **options):
        return compiled(function, backend=counter, fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", once)
    with mock.patch.object(torch._dynamo.config, "error_on_recompile", True):
        trained(dataclasses.replace(SMALL, compile=True, batch_size=4), CPU, count=6, epochs=3)
    assert counter.frame_count == 1


# ---------------------------------------------------------------- what these tests would find


def break_the_graph(monkeypatch):
    def breaking(*given):
        torch._dynamo.graph_break()
        return losses.segmentation_loss(*given)

    monkeypatch.setattr(step, "segmentation_loss", breaking)


def take_the_rate_as_a_number(monkeypatch):
    def begin_epoch(trainer, lr):
        for group in trainer.optimiser.param_groups:
            group["lr"] = lr

    monkeypatch.setattr(Trainer, "begin_epoch", begin_epoch)


def test_a_break_of_the_graph_is_found(monkeypatch):
    break_the_graph(monkeypatch)
    with pytest.raises(UserError, match="cannot be compiled"):
        test_one_graph_serves_every_batch_and_learning_rate(monkeypatch)


def test_a_recorded_number_is_found(gpu, uncompiled, monkeypatch):
    take_the_rate_as_a_number(monkeypatch)
    with pytest.raises(AssertionError):
        test_a_recorded_step_learns_the_same(gpu, None, Trainer)
