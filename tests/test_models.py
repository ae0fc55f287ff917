"""Networks: every pair of the paper's Table 1, their weights and their normalisation."""

import copy
import dataclasses
import socket

import pytest
import torch

from config import UserError
from medood.models.network import (
    Normalise,
    batch_norms,
    build_model,
    folded,
    for_training,
    pick_device,
)
from medood.training.losses import segmentation_loss
from studies import paper
from tests.conftest import TINY

CPU = torch.device("cpu")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("there is no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.long
@pytest.mark.parametrize(("architecture", "encoder"), paper.TABLE1)
def test_every_pair_of_table_1_trains_a_step(no_network, architecture, encoder):
    cfg = dataclasses.replace(TINY, architecture=architecture, encoder=encoder)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    logits = model(Normalise(encoder)(torch.rand(2, 3, 64, 64) * 255))
    assert logits.shape == (2, 7, 64, 64)
    loss = segmentation_loss(logits, torch.randint(0, 7, (2, 64, 64)), torch.ones(2), "dice")
    loss.backward()
    torch.optim.Adam(model.parameters(), 1e-3).step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert loss.isfinite()
    # not all: timm starts each residual block's last scale at 0, which shields what is before it
    assert sum(moved) > len(moved) / 2


def test_normalise_takes_0_to_255():
    out = Normalise("vgg11_bn")(torch.tensor([255.0, 0.0, 255.0]).view(1, 3, 1, 1))
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert out.flatten().tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "vgg11bn"}, "'vgg11bn' is unknown: the nearest names are .*vgg11_bn"),
        ({"encoder": "timm-regnetx_0002"}, "'tu-regnetx_0002' is unknown: .*tu-regnetx_002"),
        ({"architecture": "unett"}, "architecture = 'unett' is unknown: .*unet"),
        ({"encoder_weights": "nowhere.pth"}, "there is no file nowhere.pth"),
        ({"encoder_weights": "imagnet"}, "could not be .*only imagenet can.: set .* to the path"),
        ({"architecture": "unetplusplus", "encoder": "mit_b0"}, "unetplusplus cannot be built on"),
    ],
)
def test_what_cannot_be_built_is_said_with_the_cure(no_network, change, message):
    with pytest.raises(UserError, match=message):
        build_model(dataclasses.replace(TINY, **change))


@pytest.mark.parametrize("encoder", ["mobilenet_v2", "tu-test_resnet"])
def test_a_download_that_is_impossible_names_the_two_ways_out(
    no_network, monkeypatch, tmp_path, encoder
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it retries otherwise
    cfg = dataclasses.replace(TINY, encoder=encoder, encoder_weights="imagenet")
    with pytest.raises(UserError, match=r"could not be downloaded .*path of a .*or to none"):
        build_model(cfg)


@pytest.mark.parametrize("name", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(UserError, match=f"device = '{name}' cannot be used"):
        pick_device(name)


@pytest.mark.parametrize("encoder", ["resnet18", "tu-test_efficientnet"])
def test_without_batch_norm_all_else_stays(encoder):
    cfg = dataclasses.replace(TINY, encoder=encoder)
    whole, bare = build_model(cfg), build_model(dataclasses.replace(cfg, batch_norm=False))
    assert len(batch_norms(whole)) > 10
    assert batch_norms(bare) == []
    # with normalisations that change nothing, both compute the same: activations are still there
    for module in batch_norms(whole):
        module.eps = 0
    lost, more = bare.load_state_dict(whole.state_dict(), strict=False)
    assert not lost
    assert len(more) == 5 * len(batch_norms(whole))  # weight, bias and the three of its statistics
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(bare.eval()(x), whole.eval()(x), rtol=1e-4, atol=1e-6)


def test_training_avoids_the_convolution_that_breaks_memory_and_computes_the_same():
    """Its backward pass ended other tests at random, or crashed this one: see for_training."""
    plain = build_model(dataclasses.replace(TINY, encoder="mobileone_s0")).eval()
    safe = for_training(copy.deepcopy(plain), CPU).eval()
    for model, count in ((plain, 1), (safe, 0)):
        convolutions = [part for part in model.modules() if isinstance(part, torch.nn.Conv2d)]
        narrow = [c for c in convolutions if c.kernel_size == (1, 1) and c.in_channels < 16]
        assert sum(c.stride != (1, 1) for c in narrow) == count
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        ours, theirs = safe(x), plain(x)
    # the logits of this network reach 1e5 where its weights are random
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_a_strided_depthwise_convolution_trains_in_float32_and_keeps_the_precision():
    """In bfloat16 its backward pass takes up to 30 times as long on a CPU: see for_training."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
    images = torch.randn(2, 8, 16, 16)
    exact = layer(images)
    for_training(layer, CPU)
    torch.testing.assert_close(layer(images), exact)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(images.bfloat16())
    assert output.dtype is torch.bfloat16
    assert torch.equal(output, layer(images.bfloat16().float()).bfloat16())  # rounded once, at last


@pytest.mark.parametrize("encoder", ["tu-test_resnet", "mobilenet_v2", "mobileone_s0"])
def test_folding_leaves_the_outputs_and_the_network_as_they_were(encoder):
    torch.manual_seed(0)
    model = for_training(build_model(dataclasses.replace(TINY, encoder=encoder)), CPU)
    x = torch.rand(4, 3, 32, 32)
    for part in batch_norms(model):
        torch.nn.init.uniform_(part.weight, 0.5, 1.5)
        torch.nn.init.uniform_(part.bias, -0.5, 0.5)
    model(x)  # running statistics of its own
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ours = folded(model)
    with torch.inference_mode():
        theirs = model(x)
        assert (ours(x) - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert len(batch_norms(ours)) < len(batch_norms(model))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_a_batch_normalisation_that_is_sure_to_follow_is_folded():
    class Apart(torch.nn.Module):
        """Its layers stand in another order than they are called in."""

        def __init__(self):
            super().__init__()
            self.convolution, self.norm = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)

        def forward(self, images):
            return self.convolution(self.norm(images))

    assert len(batch_norms(folded(Apart().eval()))) == 1
