"""Networks from elsewhere: opened whatever they were saved with, and no code in them is run."""

import dataclasses
import functools
import json
import os
import pickle
import zipfile

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file
from segmentation_models_pytorch.encoders import get_encoder_names
from torch import nn

from config import UserError
from medood.models.checkpoints import encoder_shapes, load_model
from medood.models.foreign import PREFIXES, WRAPPERS
from medood.models.network import build_model, remove_batch_norm
from tests.conftest import TINY
from tests.small_networks import assert_same, network

# of another network than those below: they must not need the right ones
OTHER = dataclasses.replace(TINY, architecture="manet", encoder="resnet18")


@pytest.fixture(autouse=True)
def few_encoders(request, monkeypatch):
    """Weights that fit nothing are tried on three encoders: on all of them, it takes 10 s."""
    if request.node.get_closest_marker("long") is None:
        few = ["vgg11", "resnet18", "mobilenet_v2", "mit_b0"]
        monkeypatch.setattr("medood.models.checkpoints.get_encoder_names", lambda: few)


def refused(path, message, cfg=TINY):
    with pytest.raises(UserError, match=message):
        load_model(path, cfg)


def test_a_whole_network_says_itself_what_it_is_also_one_of_several_gpus(tmp_path):
    """Also what shapes do not tell."""
    expected = network("deeplabv3plus", decoder_atrous_rates=(2, 4, 6))
    torch.save(expected, tmp_path / "whole.pth")
    torch.save(nn.DataParallel(expected), tmp_path / "parallel.pth")
    for path in tmp_path.iterdir():
        found = load_model(path, OTHER)
        assert type(found) is type(expected)
        assert_same(found, expected)


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [
        ("linknet", "mobilenet_v2"),
        ("unet", "mit_b0"),  # smp cannot build it without memory
        pytest.param("unet", "resnet34", marks=pytest.mark.long),
        pytest.param("unetplusplus", "efficientnet-b0", marks=pytest.mark.long),
    ],
)
def test_weights_alone_are_recognised(tmp_path, architecture, encoder):
    expected = network(architecture, encoder)
    torch.save(expected.state_dict(), tmp_path / "weights.pth")
    assert_same(load_model(tmp_path / "weights.pth", TINY), expected)


@pytest.mark.long
def test_no_two_encoders_are_confused():
    names = get_encoder_names()
    shapes = [tuple(sorted(encoder_shapes(name).items())) for name in names]
    assert len(set(shapes)) == len(names) > 60


@pytest.mark.parametrize(
    ("architecture", "widths"),
    [
        ("unet", {"decoder_channels": (40, 24, 20), "encoder_depth": 3}),
        ("unet", {"decoder_attention_type": "scse"}),
        ("unetplusplus", {"decoder_channels": (40, 24, 20, 12), "encoder_depth": 4}),
        ("manet", {"decoder_channels": (40, 24, 20, 12, 8), "decoder_pab_channels": 16}),
        ("fpn", {"decoder_pyramid_channels": 48, "decoder_segmentation_channels": 32}),
        ("pspnet", {"psp_out_channels": 64}),
        ("deeplabv3", {"decoder_channels": 32}),
        ("deeplabv3plus", {"decoder_channels": 32}),
        ("pan", {"decoder_channels": 16}),
        ("upernet", {"decoder_channels": 32}),
        ("segformer", {"decoder_segmentation_channels": 32}),
        ("linknet", {}),
    ],
)
def test_a_decoder_of_other_widths_is_read_from_the_shapes(tmp_path, architecture, widths):
    expected = network(architecture, **widths)
    del expected._hub_mixin_config  # smp 0.3 had none
    torch.save(expected, tmp_path / "old.pth")
    side = 128 if architecture == "pan" else 64  # pan takes no less
    found = load_model(tmp_path / "old.pth", dataclasses.replace(TINY, patch_size=side))
    assert type(found) is type(expected)
    assert_same(found, expected, side)


@pytest.mark.parametrize(
    "options",
    [
        {"decoder_use_norm": False},
        {"decoder_interpolation": "bilinear", "activation": "softmax2d"},
        {"encoder_depth": 3, "decoder_channels": (64, 32, 16), "activation": "argmax2d"},
    ],
)
def test_options_of_a_decoder_are_kept_and_an_activation_is_left_out(tmp_path, options):
    plain = {name: value for name, value in options.items() if name != "activation"}
    saved, expected = network(**options), network(**plain)
    expected.load_state_dict(saved.state_dict())
    saved.save_pretrained(tmp_path / "folder")
    torch.save(saved, tmp_path / "whole.pth")
    weights = tmp_path / "folder" / "model.safetensors"  # with config.json beside it
    for path in (tmp_path / "folder", tmp_path / "whole.pth", weights):
        assert_same(load_model(path, OTHER), expected)


def test_a_head_that_classifies_images_is_left_out(tmp_path):
    expected = network()
    head = {"classes": 4, "dropout": 0.1}
    other = smp.Unet(TINY.encoder, encoder_weights=None, classes=7, aux_params=head).eval()
    expected.load_state_dict(other.state_dict(), strict=False)
    other.save_pretrained(tmp_path / "folder")
    torch.save(other, tmp_path / "whole.pth")
    torch.save(other.state_dict(), tmp_path / "weights.pth")
    for path in tmp_path.iterdir():
        assert_same(load_model(path, TINY), expected)


def test_a_file_is_read_as_run_json_beside_it_says(tmp_path):
    expected = remove_batch_norm(network())
    path = tmp_path / "model.safetensors"
    save_file(expected.state_dict(), path)
    refused(path, "contains weights that do not fit .*set its architecture and encoder", OTHER)
    run = {"settings": {"architecture": "unet", "encoder": TINY.encoder, "batch_norm": False}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert_same(load_model(path, OTHER), expected)


def test_pretrained_weights_that_a_folder_names_are_not_downloaded(tmp_path):
    expected = network()
    expected.config["encoder_weights"] = "imagenet"
    expected.save_pretrained(tmp_path)
    assert_same(load_model(tmp_path, TINY), expected)


@pytest.mark.parametrize("prefix", [*PREFIXES, "module._orig_mod.", "model.net."])
def test_weights_as_trainers_name_and_file_them_are_found(tmp_path, prefix):
    expected = network()
    weights = {prefix + name: value for name, value in expected.state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    for wrapper in WRAPPERS if prefix == "module." else ():
        beside = dict.fromkeys(set(WRAPPERS) - {wrapper}, "unet") | {"epoch": 3}
        torch.save({wrapper: weights, **beside}, tmp_path / f"{wrapper}.pt")
    for path in tmp_path.iterdir():
        assert_same(load_model(path, TINY), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_rounded_to_float32(tmp_path, dtype):
    weights = {
        n: v.to(dtype) if v.is_floating_point() else v for n, v in network().state_dict().items()
    }
    torch.save(weights, tmp_path / "weights.pth")
    for name, value in load_model(tmp_path / "weights.pth", TINY).state_dict().items():
        assert torch.equal(value, weights[name].to(value.dtype))


def spoilt(**changes):
    return network().state_dict() | {name.replace("__", "."): v for name, v in changes.items()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": {"a.b.c": torch.zeros(1)}, "ema": {"a.b.c": torch.zeros(1)}},
            "several networks",
        ),
        ({"optimizer": {"state": {}, "param_groups": []}}, "contains no weights"),
        ({"state_dict": {}}, "contains no weights"),
        ({}, "contains no weights"),
        ({"a.b.c": torch.zeros(4, dtype=torch.complex64)}, "as torch.complex64.* dense float32"),
        ({"a.b.c": torch.zeros(4, dtype=torch.int8)}, "as torch.int8.* dense float32"),
        ({"a.b.c": torch.eye(4).to_sparse()}, "torch.sparse_coo.* dense float32"),
        # it may say how images were normalised: to drop it would be a guess
        (
            spoilt(mean=torch.zeros(3), std=torch.ones(3)),
            r"Unexpected key.* \"mean\", \"std\"",
        ),
        (
            spoilt(decoder__blocks__1__conv2__0__weight=torch.zeros(99, 128, 3, 3)),
            "do not fit .*size mismatch for decoder.blocks.1",
        ),
        (
            spoilt(decoder__blocks__1__conv2__0__weight=torch.zeros(1).expand(10**6, 10**6, 3, 3)),
            "larger than the file",
        ),
        (spoilt(segmentation_head__0__bias=torch.full((7,), torch.nan)), r"1 weight.* not finite"),
    ],
)
def test_a_file_without_the_weights_of_one_network_says_what_it_holds(tmp_path, content, message):
    torch.save(content, tmp_path / "file.pth")
    refused(tmp_path / "file.pth", message)


def test_a_small_file_builds_no_large_network(tmp_path):
    """It would take 90 GB: the width of one thin layer is the width of all."""
    weights = network("fpn").state_dict()
    weights["decoder.p5.weight"] = torch.zeros(50_000, 1, 1, 1)
    weights["decoder.seg_blocks.0.block.0.block.0.weight"] = torch.zeros(50_000, 1, 1, 1)
    torch.save(weights, tmp_path / "thin.pth")
    refused(tmp_path / "thin.pth", "do not fit", dataclasses.replace(TINY, architecture="fpn"))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"in_channels": 4}, "in_channels = 4, but the images have three"),
        ({"classes": 1}, "has other classes .1 outputs"),
        ({"classes": 6}, "has other classes .6 outputs"),
    ],
)
def test_a_network_of_other_inputs_or_outputs_is_said(tmp_path, parameters, message):
    other = network(**parameters)
    other.save_pretrained(tmp_path / "folder")
    torch.save(other, tmp_path / "whole.pth")
    torch.save(other.state_dict(), tmp_path / "weights.pth")
    for path in tmp_path.iterdir():
        refused(path, message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "architecture = '' is unknown"),
        ({"_model_class": "__loader__"}, "is unknown"),
        ({"encoder_name": "tu-hf_hub:someone/net"}, "is unknown"),
        ({"in_channels": "x"}, "no usable"),
        ({"encoder_name": "resnet18", "unheard": 1}, "unheard is not a par"),
        ({"unheard": 1}, "unheard"),
        ({"checkpoint_path": "x.pth"}, "checkpoint_path is not a parameter"),  # timm would open it
    ],
)
def test_a_folder_that_asks_for_something_else_is_refused(tmp_path, config, message):
    network().save_pretrained(tmp_path)
    if isinstance(config, dict):
        config = {"_model_class": "Unet", "encoder_name": TINY.encoder} | config
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, message)


def test_a_folder_without_its_weights_is_said(tmp_path):
    network().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    refused(tmp_path, "not a complete file of weights .* copy it again")
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, r"there is no .*model\.safetensors")


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "name"), [(os.system, "posix.system"), (eval, "builtins.eval")]
)
@pytest.mark.parametrize("place", ["alone", "in a network", "beside weights"])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path, function, name, place):
    mark = tmp_path / "it_ran"
    text = f"touch {mark}" if function is os.system else f"open({str(mark)!r}, 'w')"
    hostile = content = Calls(function, text)
    if place == "in a network":
        content = network()
        content.register_buffer("extra", None)
        content.encoder.note = hostile
    elif place == "beside weights":
        content = {"state_dict": network().state_dict(), "optimiser": hostile}
    path = tmp_path / "hostile.pth"
    torch.save(content, path)
    refused(path, name)
    with pytest.raises(UserError, match=name):  # of an encoder of timm
        build_model(dataclasses.replace(TINY, encoder_weights=str(path)))
    assert not mark.exists()
    call, arguments = hostile.__reduce__()
    call(*arguments)
    assert mark.exists()  # an unpickler that calls what it reads would have done it


def test_names_of_parts_of_networks_do_nothing_when_they_are_called(tmp_path):
    # a name that passes, and would load a file if it were the real one
    hostile = Calls(torch.nn.modules.module.register_module_forward_hook, print)
    torch.save({"state_dict": network().state_dict(), "x": hostile}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "builtins.print")
    hostile = Calls(torch.nn.modules.module.register_module_forward_hook, "hook")
    torch.save({"state_dict": network().state_dict(), "x": hostile}, tmp_path / "b.pth")
    load_model(tmp_path / "b.pth", TINY)
    assert not torch.nn.modules.module._global_forward_hooks
    torch.save({"model": functools.partial(print)}, tmp_path / "c.pth")
    refused(tmp_path / "c.pth", "functools.partial")


def test_what_holds_itself_has_an_end(tmp_path):
    knot = network()
    for number in range(200):
        knot.encoder._modules[f"again{number}"] = knot
    torch.save(knot, tmp_path / "knot.pth")
    assert_same(load_model(tmp_path / "knot.pth", TINY), network())
    weights = {}
    weights["model"] = weights
    torch.save(weights, tmp_path / "filed.pth")
    refused(tmp_path / "filed.pth", "contains no weights")


def test_a_compressed_file_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(9)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    refused(tmp_path / "bomb.pth", "is compressed")


@pytest.mark.parametrize("content", [b"", b"only text", "pickle"])
def test_what_torch_cannot_open_is_said_without_its_advice(tmp_path, content):
    mark = tmp_path / "it_ran"
    if content == "pickle":
        content = pickle.dumps(Calls(os.system, f"touch {mark}"))
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(UserError, match="was not opened") as caught:
        load_model(tmp_path / "file.pth", TINY)
    assert "weights_only" not in str(caught.value)
    assert not mark.exists()
