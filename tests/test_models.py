"""Networks: every pair of the paper's Table 1, their weights and their normalisation."""

import dataclasses
import socket

import pytest
import safetensors.torch
import torch

from config import UserError
from medood.models.network import (
    IMAGENET,
    Normalise,
    batch_norms,
    build_model,
    folded,
    for_training,
    normalisation,
    pick_device,
)
from medood.training.losses import segmentation_loss
from studies import paper
from tests.conftest import TINY


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("there is no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("encoder", "mean"),
    [
        ("vgg11_bn", IMAGENET[0]),
        ("tu-resnet50d", IMAGENET[0]),
        ("tu-tinynet_d", IMAGENET[0]),
        ("inceptionv4", (0.5, 0.5, 0.5)),
        ("xception", (0.5, 0.5, 0.5)),
        ("tu-tf_efficientnet_b0.ap_in1k", (0.5, 0.5, 0.5)),
    ],
)
def test_normalisation_constants_come_without_the_network(no_network, encoder, mean):
    assert normalisation(encoder)[0] == mean


def test_normalise_takes_0_to_255():
    out = Normalise("vgg11_bn")(torch.tensor([255.0, 0.0, 255.0]).view(1, 3, 1, 1))
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert out.flatten().tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder": "vgg11bn"},
            "encoder = 'vgg11bn' is unknown: the nearest names are .*vgg11_bn",
        ),
        ({"encoder": "tu-tinynetd"}, "nearest names are .*tu-tinynet_d"),
        ({"architecture": "unett"}, "architecture = 'unett' is unknown: .*unet"),
        ({"encoder_weights": "nowhere.pth"}, "there is no file nowhere.pth"),
        (
            {"encoder_weights": "imagnet"},
            "tu-test_resnet has imagenet: give one of them, or none, or the path",
        ),
        (
            {"architecture": "unetplusplus", "encoder": "mit_b0"},
            "unetplusplus cannot be built on encoder mit_b0",
        ),
    ],
)
def test_what_cannot_be_built_is_said_with_the_cure(no_network, change, message):
    with pytest.raises(UserError, match=message):
        build_model(dataclasses.replace(TINY, **change))


@pytest.mark.parametrize("encoder", ["mobilenet_v2", "tu-tinynet_d"])
def test_a_download_that_is_impossible_names_the_two_ways_out(
    no_network, monkeypatch, tmp_path, encoder
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it retries otherwise
    cfg = dataclasses.replace(TINY, encoder=encoder, encoder_weights="imagenet")
    with pytest.raises(UserError, match=r"could not be downloaded .*path of a .*or to none"):
        build_model(cfg)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_local_encoder_weights_are_loaded(tmp_path, ending):
    torch.manual_seed(1)
    state = build_model(TINY).encoder.state_dict()
    path = tmp_path / f"weights{ending}"
    torch.save(state, path) if ending == ".pth" else safetensors.torch.save_file(state, path)
    torch.manual_seed(2)
    model = build_model(dataclasses.replace(TINY, encoder_weights=str(path)))
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_torchvision_file_with_its_classifier_is_loaded(tmp_path):
    cfg = dataclasses.replace(TINY, encoder="mobilenet_v2")
    state = dict(build_model(cfg).encoder.state_dict())
    state |= {
        "classifier.1.weight": torch.zeros(1000, 1280),
        "classifier.1.bias": torch.zeros(1000),
    }
    torch.save(state, tmp_path / "mobilenet_v2.pth")
    build_model(dataclasses.replace(cfg, encoder_weights=str(tmp_path / "mobilenet_v2.pth")))


def test_a_timm_file_is_loaded_into_a_tu_encoder(no_network, tmp_path):
    import timm

    torch.manual_seed(1)
    source = timm.create_model("tinynet_d")
    path = tmp_path / "tinynet_d.safetensors"
    safetensors.torch.save_file(source.state_dict(), path)
    cfg = dataclasses.replace(TINY, encoder="tu-tinynet_d", encoder_weights=str(path))
    stem = build_model(cfg).encoder.model.conv_stem.weight
    assert torch.equal(stem, source.conv_stem.weight)


@pytest.mark.parametrize("content", ["another encoder", "not weights"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    if content == "another encoder":
        other = dataclasses.replace(TINY, encoder="resnet18")
        torch.save(build_model(other).encoder.state_dict(), path)
    else:
        path.write_bytes(b"html says 404")
    reason = (
        "not a whole file"
        if content == "not weights"
        else "not hold weights of encoder tu-test_"
        if content == "not weights"
        else "not hold weights of encoder tu-test_resnet"
    )
    with pytest.raises(UserError, match=rf"weights\.pth (is|does) {reason}"):
        build_model(dataclasses.replace(TINY, encoder_weights=str(path)))


def test_the_encoder_of_a_network_that_was_saved_whole_is_taken(tmp_path):
    torch.manual_seed(1)
    whole = build_model(TINY)
    torch.save(whole, tmp_path / "whole.pth")
    found = build_model(dataclasses.replace(TINY, encoder_weights=str(tmp_path / "whole.pth")))
    for name, value in found.encoder.state_dict().items():
        assert torch.equal(value, whole.encoder.state_dict()[name]), name


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(UserError, match="device = 'cuda:99' is not there"):
        pick_device(dataclasses.replace(TINY, device="cuda:99"))
    with pytest.raises(UserError, match="device = 'gpu' is not there"):
        pick_device(dataclasses.replace(TINY, device="gpu"))


@pytest.mark.parametrize("encoder", ["mobilenet_v2", "tu-tinynet_d", "resnet18"])
def test_without_batch_norm_all_else_stays(encoder):
    cfg = dataclasses.replace(TINY, encoder=encoder)
    whole, bare = build_model(cfg), build_model(dataclasses.replace(cfg, batch_norm=False))
    assert len(batch_norms(whole)) > 10
    assert batch_norms(bare) == []
    norms = {
        f"{name}.{part}"
        for name, module in whole.named_modules()
        if module in batch_norms(whole)
        for part in module.state_dict()
    }
    assert set(bare.state_dict()) == set(whole.state_dict()) - norms

    # with normalisations that change nothing, both compute the same: activations are still there
    for module in batch_norms(whole):
        module.eps = 0
    kept = {name: value for name, value in whole.state_dict().items() if name not in norms}
    bare.load_state_dict(kept)
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(bare.eval()(x), whole.eval()(x), rtol=1e-4, atol=1e-6)


def test_training_avoids_the_convolution_that_breaks_memory_and_computes_the_same():
    """Its backward pass ended other tests at random, or crashed this one: see for_training."""
    cfg = dataclasses.replace(TINY, encoder="mobileone_s0")
    plain = build_model(cfg).eval()
    safe = build_model(cfg)
    safe.load_state_dict(plain.state_dict())
    safe = for_training(safe, torch.device("cpu")).eval()

    def broken(model):
        convolutions = [part for part in model.modules() if isinstance(part, torch.nn.Conv2d)]
        found = [c for c in convolutions if c.kernel_size == (1, 1) and c.stride != (1, 1)]
        return [c for c in found if c.in_channels < 16]

    assert len(broken(plain)) == 1
    assert broken(safe) == []
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        ours, theirs = safe(x), plain(x)
    # the logits of this network reach 1e5 where its weights are random
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert safe.state_dict().keys() == plain.state_dict().keys()


def test_a_strided_depthwise_convolution_trains_in_float32_and_keeps_the_precision():
    """In bfloat16 its backward pass takes up to 30 times as long on a CPU: see for_training."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
    images = torch.randn(2, 8, 16, 16)
    exact = layer(images)
    for_training(layer, torch.device("cpu"))
    torch.testing.assert_close(layer(images), exact)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(images.bfloat16())
    assert output.dtype is torch.bfloat16
    assert torch.equal(output, layer(images.bfloat16().float()).bfloat16())  # rounded once, at last


@pytest.mark.parametrize("encoder", ["vgg11_bn", "mobilenet_v2", "resnet18", "mobileone_s0"])
def test_folding_leaves_the_outputs_and_the_network_as_they_were(encoder):
    torch.manual_seed(0)
    model = for_training(
        build_model(dataclasses.replace(TINY, encoder=encoder)), torch.device("cpu")
    )
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
