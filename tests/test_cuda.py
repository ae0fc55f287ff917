"""What holds on a GPU: on one where there is one, else on a stand-in that is as strict.

The stand-in (tests/standin.py) computes on the CPU, so results can be compared; it refuses what a
GPU refuses, and says what would make the host wait. It knows nothing of a GPU's rounding or speed.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from docstring_parser import parse_from_object
from torch._dynamo.testing import CompileCounter

from config import Config, Machine, UserError
from estimate_pct import estimate_pct
from medood.data.dataset import Patches
from medood.data.folds import read_fold
from medood.data.images import write_png
from medood.data.workspace import model_folder, ood_files
from medood.evaluation.testing import tally_patches
from medood.models import inference, network
from medood.models.checkpoints import load_model
from medood.training import losses, step
from medood.training.batches import Loader, storage_device
from medood.training.loop import train_epoch
from medood.training.step import Trainer, explain_errors
from predict import PredictConfig, predict_images
from rank_prune_ood import count_seen, rank_prune_ood
from robust.free import FreeTrainer
from robust.settings import FreeConfig
from test import evaluate
from tests import standin
from tests.conftest import TINY, as_settings_of
from train import train
from train_ood import train_ood
from transfer.settings import TransferConfig
from transfer.training import Trainer as TransferTrainer
from transfer.training import draw, transfer

CPU = torch.device("cpu")
# Adam turns rounding into whole steps where a gradient is next to nothing: small ones
SMALL = dataclasses.replace(TINY, encoder="tu-test_resnet", lr=1e-4)
HERE = torch.cuda.is_available()
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


class Cuda:
    """A GPU that is there."""

    device = torch.device("cuda", 0)

    @contextlib.contextmanager
    def never_waiting(self):
        """A context in which torch raises where the host would wait for the GPU."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


class Standin(standin.Standin):
    @contextlib.contextmanager
    def never_waiting(self):
        self.waits.clear()
        yield
        if self.waits:
            raise RuntimeError(f"the host waits: {', '.join(self.waits)}")


@pytest.fixture
def gpu(monkeypatch):
    if HERE:
        yield Cuda()
        return
    if standin.register is None:
        pytest.skip("needs a GPU, or torch 2.10 for a stand-in")
    for name, value in standin.CUDA.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with standin.started(Standin()) as device:
        yield device


@pytest.fixture
def uncompiled(monkeypatch):
    """torch.compile leaves the step as it is: what is tested is its recording."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def some_patches(count: int, side: int = 32) -> Patches:
    """Noise, with a class for each shade of red; every third patch is OoD."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(255 * coarse, size=side, mode="bilinear")
    images = images.permute(0, 2, 3, 1).to(torch.uint8)
    masks = images[..., 0] // 37
    is_ood = torch.arange(count) % 3 == 2
    masks[is_ood] = 0
    masks[0, :4] = 255
    return Patches([f"{number}.png" for number in range(count)], images, masks, is_ood)


def trained(cfg: Config, device: torch.device, count: int = 20, epochs: int = 2, kind=Trainer):
    """Return a trainer after some epochs, the second of a lower learning rate, and its losses."""
    torch.manual_seed(0)
    trainer = kind(cfg, device)
    loader = Loader(cfg, 1, some_patches(count), device)
    found = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        losses_of_epoch, norms = train_epoch(trainer, loader, cfg.lr / 10**epoch)
        found += [losses_of_epoch.cpu(), norms.cpu()]
    return trainer, torch.cat(found)


def test_nobody_finds_the_stand_in_once_it_is_over():
    if not HERE and standin.register is not None:
        with standin.started(Standin()):
            assert torch.get_device_module(standin.NAME).is_available()
        assert not torch.get_device_module(standin.NAME).is_available()
        assert torch.nn.DataParallel(torch.nn.Linear(2, 2)).module.weight.device == CPU


# ---------------------------------------------------------------- the step


@pytest.mark.parametrize("loss", ["dice", "dice_ce", "paper_code"])
def test_training_gives_what_it_gives_on_the_cpu(gpu, loss):
    """The rest of a batch, of ID and OoD patches, lambda and unsure pixels included."""
    cfg = dataclasses.replace(SMALL, loss=loss, ood_weight=0.5)
    (_, expected), (_, found) = trained(cfg, CPU), trained(cfg, gpu.device)
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-4)


def test_bfloat16_computes_near_float32_and_keeps_the_weights_in_it(gpu):
    cfg = dataclasses.replace(SMALL, precision="bfloat16", loss="dice_ce")
    trainer, found = trained(cfg, gpu.device)
    _, expected = trained(dataclasses.replace(cfg, precision="float32"), CPU)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.05)
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}


def test_float32_is_not_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    network.autocast(dataclasses.replace(SMALL, precision="float32"), CPU)
    assert not torch.backends.cudnn.allow_tf32
    network.autocast(dataclasses.replace(SMALL, precision="auto"), CPU)
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("loss", ["dice", "dice_ce", "paper_code"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", ["there", "on the CPU"])
def test_the_host_never_waits_in_an_epoch(gpu, loss, precision, stored):
    cfg = dataclasses.replace(SMALL, loss=loss, precision=precision)
    trainer = Trainer(cfg, gpu.device)
    patches = some_patches(20)
    loader = Loader(cfg, 1, dataclasses.replace(patches, mapped=stored != "there"), gpu.device)
    assert (loader.storage == CPU) == (stored != "there")
    train_epoch(trainer, loader, cfg.lr)  # torch prepares some things once
    loader.set_epoch(1)
    batches = iter(loader)
    step_of = [next(batches), next(batches)]  # the indices are copied at the start of an epoch
    with gpu.never_waiting():
        trainer.step(*step_of[1])
        trainer.step(*next(batches))


def test_patches_that_take_more_than_half_of_a_gpu_stay_in_memory(monkeypatch):
    patches, cuda = some_patches(20), torch.device("cuda")
    size = patches.images.nbytes + patches.masks.nbytes
    for free, expected in ((2 * size, "cuda"), (2 * size - 1, "cpu")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 8 * free))
        assert storage_device(patches, cuda).type == expected


def test_two_gpus_with_synchronised_batch_normalisation_learn_as_one(gpu):
    _, expected = trained(SMALL, gpu.device)
    script = Path(__file__).with_name("two_gpus.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ended = subprocess.run(
        [*command, str(script)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    found = torch.tensor(json.loads(ended.stdout.splitlines()[-1]))
    # the losses of two epochs of three steps; without synchronisation they are 5 to 20 times as far
    of_losses = [0, 1, 2, 6, 7, 8]
    torch.testing.assert_close(found[of_losses], expected[of_losses], rtol=0, atol=3e-4)


def test_generators_learn_the_same_and_the_host_waits_for_nothing(gpu):
    cfg = as_settings_of(TransferConfig, TINY, channels=2, batch_size=2)
    images = some_patches(6).images
    found = {}
    for device in (CPU, gpu.device):
        torch.manual_seed(0)
        trainer = TransferTrainer(cfg, device)
        (batch,) = draw(cfg, 1, 0, 1, images[:3], images[3:], device)
        trainer.step(*batch)  # the first one builds the optimiser's state
        with gpu.never_waiting() if device == gpu.device else contextlib.nullcontext():
            losses = trainer.step(*batch)
        found[device.type] = {name: loss.item() for name, loss in losses.items()}
    assert found[gpu.device.type] == pytest.approx(found["cpu"], rel=1e-3)
    healthy, _, _ = transfer(trainer.model["heal"].eval(), images, gpu.device)
    assert healthy.device == CPU


# ---------------------------------------------------------------- the recorded step


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
    waiting = lambda *given: losses.segmentation_loss(*given) + 0 * given[0].sum().item()  # noqa: E731
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


def leave_a_mask_on_the_cpu(monkeypatch):
    monkeypatch.setattr(
        step,
        "augment",
        lambda images, masks, _: (images.permute(0, 3, 1, 2).float(), masks.cpu().long()),
    )


def ask_for_the_loss(monkeypatch):
    def asking(*given):
        loss = losses.segmentation_loss(*given)
        return loss if loss.item() > 0 else -loss

    monkeypatch.setattr(step, "segmentation_loss", asking)


def make_a_constant_on_the_cpu(monkeypatch):
    def shifted(*given):
        return losses.segmentation_loss(*given) + torch.tensor([1.0], device=given[0].device)[0]

    monkeypatch.setattr(step, "segmentation_loss", shifted)


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


def test_a_mask_left_on_the_cpu_is_found(gpu, monkeypatch):
    leave_a_mask_on_the_cpu(monkeypatch)
    with pytest.raises(RuntimeError, match="same device"):
        test_training_gives_what_it_gives_on_the_cpu(gpu, "dice")


@pytest.mark.parametrize("fault", [ask_for_the_loss, make_a_constant_on_the_cpu])
def test_a_host_that_waits_is_found(gpu, monkeypatch, fault):
    fault(monkeypatch)
    with pytest.raises(RuntimeError, match="wait|synchroniz"):
        test_the_host_never_waits_in_an_epoch(gpu, "dice", "float32", "there")


def test_a_break_of_the_graph_is_found(monkeypatch):
    break_the_graph(monkeypatch)
    with pytest.raises(UserError, match="cannot be compiled"):
        test_one_graph_serves_every_batch_and_learning_rate(monkeypatch)


def test_a_recorded_number_is_found(gpu, uncompiled, monkeypatch):
    take_the_rate_as_a_number(monkeypatch)
    with pytest.raises(AssertionError):
        test_a_recorded_step_learns_the_same(gpu, None, Trainer)


# ---------------------------------------------------------------- determinism


def test_the_list_of_what_cannot_be_deterministic_is_torchs_own():
    listed = torch.use_deterministic_algorithms.__doc__
    refused = listed[listed.index("will throw a") :]
    for name in REFUSED.values():
        assert name in refused, name


def refused_in_a_step(gpu, cfg: Config) -> set[str]:
    """Which operations of a training step torch would refuse to make deterministic on CUDA."""
    trainer = Trainer(cfg, gpu.device)
    batch = next(iter(Loader(cfg, 1, some_patches(4, cfg.patch_size), gpu.device)))
    gpu.launches.clear()
    torch.use_deterministic_algorithms(True)  # torch has other ways for some, slower ones
    try:
        trainer.step(*batch)
    finally:
        torch.use_deterministic_algorithms(False)
    return REFUSED.keys() & set(gpu.launches)


@pytest.mark.parametrize("loss", ["dice", "dice_ce", "paper_code"])
def test_every_loss_can_be_deterministic(gpu, loss):
    if HERE:
        torch.use_deterministic_algorithms(True)
        try:
            trained(dataclasses.replace(SMALL, loss=loss), gpu.device)
        finally:
            torch.use_deterministic_algorithms(False)
    else:
        assert not refused_in_a_step(gpu, dataclasses.replace(SMALL, loss=loss))


@pytest.mark.slow
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


# ---------------------------------------------------------------- the steps of the paper


@pytest.fixture
def cuda_run(gpu, patched):
    """The settings of a workspace on the device, and those of the CPU."""
    cfg = dataclasses.replace(patched, encoder="tu-test_resnet", folds=(1,), select="val")
    return dataclasses.replace(cfg, device=str(gpu.device)), cfg


def test_every_step_runs_and_gives_what_the_cpu_gives(cuda_run, tmp_path):
    on_gpu, on_cpu = cuda_run
    for step_ in (train, rank_prune_ood, estimate_pct, train_ood, evaluate):
        step_(on_gpu)
    folder = model_folder(on_gpu, 1, ood=False)
    model = load_model(folder, on_cpu)
    assert {weight.device for weight in model.parameters()} == {CPU}

    files = ood_files(on_cpu, 1, read_fold(on_cpu, 1).train)
    seen, expected = (count_seen(cfg, model, files, "mining") for cfg in (on_gpu, on_cpu))
    assert np.abs(seen - expected).sum() <= 0.01 * expected.sum()

    write_png(tmp_path / "new.png", some_patches(1, 200).images[0].numpy())
    written = []
    for cfg, name in ((on_gpu, "gpu"), (on_cpu, "cpu")):
        out = tmp_path / name
        predict_images(
            as_settings_of(
                PredictConfig,
                cfg,
                image=(tmp_path / "new.png",),
                checkpoint=folder,
                out=out,
                image_mpp=0.5,
            )
        )
        written.append(next(out.glob("*_mask.tif")).read_bytes())
    assert len(written[0]) == len(written[1])
    if not HERE:
        assert written[0] == written[1]


def test_scores_are_those_of_the_cpu(cuda_run):
    on_gpu, on_cpu = cuda_run
    torch.manual_seed(0)
    model = network.build_model(on_cpu).eval()
    patches = some_patches(20)
    (found, _), (expected, _) = (
        tally_patches(cfg, model, patches, network.pick_device(cfg), "testing")
        for cfg in (on_gpu, on_cpu)
    )
    torch.testing.assert_close(
        found.confusion.double(), expected.confusion.double(), rtol=0.02, atol=20
    )
    torch.testing.assert_close(found.iou_paper, expected.iou_paper, rtol=0.02, atol=0.02)


def test_an_interrupted_training_goes_on_and_may_change_its_device(cuda_run, monkeypatch):
    on_gpu, on_cpu = cuda_run
    from medood.training import loop

    whole = loop.train_epoch
    logs = []
    for first, then in ((on_gpu, on_gpu), (on_gpu, on_cpu), (on_cpu, on_gpu)):
        folder = model_folder(first, 1, ood=False)

        def stop_in_the_second(trainer, loader, lr):
            if loader.epoch == 1:
                raise KeyboardInterrupt
            return whole(trainer, loader, lr)

        monkeypatch.setattr(loop, "train_epoch", stop_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            train(first)
        monkeypatch.setattr(loop, "train_epoch", whole)
        train(then)
        rows = (folder / "log.csv").read_text().splitlines()
        logs.append([float(row.split(",")[1]) for row in rows[1:]])
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    np.testing.assert_allclose(logs[1], logs[0], rtol=1e-3)
    np.testing.assert_allclose(logs[2], logs[0], rtol=1e-3)


def test_a_batch_that_does_not_fit_is_halved(gpu):
    model = network.build_model(SMALL).eval()
    predictor = inference.Predictor(SMALL, model, gpu.device)
    sizes, whole = [], predictor._probabilities

    def small(images):
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError
        return whole(images)

    predictor._probabilities = small
    assert len(predictor(some_patches(6).images)) == 6
    assert sizes == [6, 3, 3]
