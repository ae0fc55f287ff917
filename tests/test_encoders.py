"""Encoders: every weight comes from the file, or it is said; names of old versions; fixed sides."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch

from config import UserError
from medood.data.images import write_png
from medood.models.checkpoints import load_model
from medood.models.network import Normalise, build_model, normalisation
from predict import PredictConfig, predict_images
from tests.conftest import TINY, as_settings_of

FIXED = "tu-efficientformerv2_s0"  # takes images of 224 x 224 pixels


@functools.cache
def timm_weights(name, seed=1):
    """The weights of a classifier of timm, batch statistics other than those of a start."""
    torch.manual_seed(seed)
    state = timm.create_model(name).state_dict()
    return {n: v + torch.rand_like(v) if v.is_floating_point() else v for n, v in state.items()}


def built(tmp_path, encoder, weights):
    """The network with the encoder's weights from a file."""
    path = tmp_path / "weights.pth"
    torch.save(weights, path)
    torch.manual_seed(2)
    return build_model(dataclasses.replace(TINY, encoder=encoder, encoder_weights=str(path)))


@functools.cache
def without_classifier(name):
    """What timm's own network of features makes of these weights."""
    weights = timm_weights(name).items()
    as_features = {n.replace(".", "_", 1) if n[0] == "s" else n: v for n, v in weights}
    wanted = timm.create_model(name, features_only=True).state_dict()
    return {f"model.{n}": as_features[n] for n in wanted if wanted[n].is_floating_point()}


def assert_from_file(model, expected):
    found = model.encoder.state_dict()
    numbers = {name for name, value in found.items() if value.is_floating_point()}
    assert numbers == {name for name, value in expected.items() if value.is_floating_point()}
    for name in numbers:
        assert torch.equal(found[name], expected[name].float()), name


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("test_resnet", ""),
        ("test_efficientnet", "module._orig_mod."),
        ("test_convnext", "backbone."),
    ],
)
@pytest.mark.parametrize("heads", [(), ("fc.", "classifier.", "head.fc.")])
def test_every_weight_of_a_timm_file_reaches_its_encoder_without_its_heads_too(
    tmp_path, name, prefix, heads
):
    given = {prefix + n: v for n, v in timm_weights(name).items() if not n.startswith(heads)}
    assert_from_file(built(tmp_path, f"tu-{name}", given), without_classifier(name))


@pytest.mark.parametrize(
    ("encoder", "prefix"),
    [("tu-test_resnet", "module._orig_mod."), ("mobilenet_v2", ""), ("mit_b0", "")],
)
@pytest.mark.parametrize("kind", ["whole", "its weights", "the encoder's", "with a classifier"])
def test_an_encoder_of_smp_and_that_of_a_whole_network_are_taken(tmp_path, encoder, prefix, kind):
    torch.manual_seed(3)
    source = build_model(dataclasses.replace(TINY, encoder=encoder))
    weights = (source if kind == "its weights" else source.encoder).state_dict()
    weights = {prefix + n: v for n, v in weights.items()}
    if kind == "with a classifier" and encoder == "mobilenet_v2":  # of torchvision
        weights |= {"classifier.1.weight": torch.zeros(9, 1280), "classifier.1.bias": torch.ones(9)}
    found = built(tmp_path, encoder, source if kind == "whole" else weights)
    assert_from_file(found, source.encoder.state_dict())


@pytest.mark.parametrize("encoder", ["tu-test_resnet", "resnet18"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {f"x.{n}": v for n, v in w.items()}, "Missing key"),
        (lambda w: {n: v for n, v in w.items() if "layer2" not in n}, r"Missing key.* .layer2\.0"),
        (lambda w: {n: v for n, v in w.items() if "running_var" not in n}, "running_var"),
        (lambda w: {n: (9 * v).to(torch.int8) for n, v in w.items()}, "as torch.int8"),
        (lambda w: {n: v / (n[:7] != "layer2.") for n, v in w.items()}, "are not finite"),
    ],
)
def test_weights_that_an_encoder_would_not_get_are_named(tmp_path, encoder, change, message):
    weights = timm_weights(encoder.removeprefix("tu-"))
    with pytest.raises(UserError, match=message):
        built(tmp_path, encoder, change(weights))


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_the_first_blocks_of_a_deeper_encoder_are_not_taken_for_a_flatter_one(tmp_path, encoder):
    with pytest.raises(UserError, match=r"layer1\.2.* set encoder to that of the file"):
        built(tmp_path, encoder, timm_weights("resnet34"))


def test_a_download_is_never_tried_for_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", pytest.fail)
    built(tmp_path, "timm-gernet_s", timm_weights("gernet_s"))


@pytest.mark.parametrize(
    ("encoder", "name"),
    [
        ("timm-regnetx_002", "regnetx_002"),
        ("timm-mobilenetv3_large_075", "tf_mobilenetv3_large_075"),
    ],
)
def test_a_network_with_an_old_name_of_its_encoder_is_opened(tmp_path, encoder, name):
    torch.manual_seed(0)
    expected = smp.Unet(encoder, encoder_weights=None, classes=7).eval()
    expected.save_pretrained(tmp_path)
    found = load_model(tmp_path, TINY)
    assert found.config["encoder_name"] == encoder
    known = timm.get_pretrained_cfg(name)
    assert normalisation(encoder) == (known.mean, known.std)
    images = Normalise(encoder)(torch.rand(1, 3, 64, 64) * 255)
    with torch.inference_mode():
        assert torch.equal(found(images), expected(images))
    cfg = dataclasses.replace(TINY, encoder=encoder)
    assert cfg.model_name == f"unet_{encoder}"
    assert build_model(cfg).state_dict().keys() == expected.state_dict().keys()


@pytest.mark.parametrize(
    ("encoder", "mean"),
    [
        ("inceptionv4", 0.5),
        ("xception", 0.5),
        ("tu-resnet50d", 0.485),
        ("timm-skresnet18", 0.485),
        ("timm-tf_efficientnet_lite0", 0.5),
        ("tu-tf_efficientnet_b0.ap_in1k", 0.5),
    ],
)
def test_the_constants_are_those_of_the_weights(encoder, mean):
    assert normalisation(encoder)[0][0] == mean


@pytest.mark.parametrize(
    ("architecture", "encoder", "side"),
    [
        ("unet", FIXED, 224),
        pytest.param("dpt", "tu-vit_tiny_patch16_224", 224, marks=pytest.mark.long),
        ("pan", TINY.encoder, 160),
    ],
)
def test_patches_of_a_size_that_a_network_does_not_take_are_said(
    tmp_path, architecture, encoder, side
):
    cfg = dataclasses.replace(TINY, architecture=architecture, encoder=encoder)
    fits = dataclasses.replace(cfg, patch_size=side)
    build_model(fits).save_pretrained(tmp_path)
    assert load_model(tmp_path, fits)
    for attempt in (lambda: build_model(cfg), lambda: load_model(tmp_path, cfg)):
        with pytest.raises(UserError, match="takes no images of 32 x 32 pixels .*set patch_size"):
            attempt()


def test_a_network_whose_output_is_smaller_than_the_image_is_said(tmp_path):
    smp.FPN(TINY.encoder, encoder_weights=None, classes=7, upsampling=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its output has 8 x 8 pixels"):
        load_model(tmp_path, TINY)


@pytest.mark.parametrize("encoder", ["tu-test_vit", "tu-levit_128s", "tu-resnet18.nonsense"])
def test_an_encoder_that_smp_cannot_use_is_said(encoder):
    with pytest.raises(UserError, match=f"unet cannot be built on encoder {encoder} .*choose"):
        build_model(dataclasses.replace(TINY, encoder=encoder, patch_size=224))


def test_tiles_follow_the_side_that_a_network_takes(tmp_path, capsys):
    torch.manual_seed(0)
    smp.Unet(FIXED, encoder_weights=None, classes=7).save_pretrained(tmp_path / "network")
    noise = np.random.default_rng(0).integers(0, 256, (250, 300, 3), np.uint8)
    images = tmp_path / "large.png", tmp_path / "small.png"
    write_png(images[0], noise)
    write_png(images[1], noise[:90, :100])
    places = {"checkpoint": tmp_path / "network", "out": tmp_path / "out", "image": images}
    cfg = dataclasses.replace(TINY, patch_size=224)
    predict_images(as_settings_of(PredictConfig, cfg, image_mpp=0.5, **places))
    assert "tile = 224: the network takes no images of 512" in capsys.readouterr().out
    for image in images:
        made_from = json.loads((tmp_path / "out" / f"{image.stem}.json").read_text())["made_from"]
        assert made_from["settings"]["tile"] == 224
