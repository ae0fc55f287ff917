"""Networks from elsewhere: opened whatever they were saved with, and no code in them is run."""

import dataclasses
import functools
import json
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from config import UserError
from medood.models.checkpoints import load_model
from medood.models.foreign import PREFIXES, WRAPPERS
from medood.models.network import build_model, remove_batch_norm
from tests.conftest import TINY
from tests.small_networks import assert_same, network

# of another network than those below: they must not need the right ones
OTHER = dataclasses.replace(TINY, architecture="manet", encoder="resnet18")


def refused(path, message, cfg=TINY):
    with pytest.raises(UserError, match=message):
        load_model(path, cfg)


def saved(content, path):
    """Return the path of a file of torch.save."""
    torch.save(content, path)
    return path


def test_a_whole_network_says_itself_what_it_is_also_one_of_several_gpus_or_of_smp_0_3(tmp_path):
    """Also the rates of its convolutions, which shapes do not tell."""
    expected = network("deeplabv3plus", decoder_atrous_rates=(2, 4, 6))
    torch.save(expected, tmp_path / "whole.pth")
    torch.save(nn.DataParallel(expected), tmp_path / "parallel.pth")
    for path in tmp_path.iterdir():
        assert_same(load_model(path, OTHER), expected)
    old = network("fpn", "mobilenet_v2")
    del old._hub_mixin_config
    assert_same(load_model(saved(old, tmp_path / "old.pth"), OTHER), network("fpn", "mobilenet_v2"))


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [("linknet", "mobilenet_v2"), ("unet", "mit_b0"), ("fpn", TINY.encoder)],
)
def test_weights_alone_are_those_of_the_settings(tmp_path, architecture, encoder):
    expected = network(architecture, encoder)  # smp cannot build mit without memory
    path = saved(expected.state_dict(), tmp_path / "weights.pth")
    cfg = dataclasses.replace(TINY, architecture=architecture, encoder=encoder)
    assert_same(load_model(path, cfg), expected)
    refused(path, "do not fit manet on encoder resnet18 .*: set architecture and encoder", OTHER)


def test_a_file_is_read_as_run_json_beside_it_says(tmp_path):
    expected = remove_batch_norm(network())
    save_file(expected.state_dict(), tmp_path / "model.safetensors")
    run = {"settings": {"architecture": "unet", "encoder": TINY.encoder, "batch_norm": False}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert_same(load_model(tmp_path / "model.safetensors", OTHER), expected)


@pytest.mark.parametrize(
    ("kept", "left_out"),
    [
        ({"decoder_use_norm": False}, {"aux_params": {"classes": 4, "dropout": 0.1}}),
        ({"decoder_interpolation": "bilinear"}, {"activation": "softmax2d"}),
        ({"encoder_depth": 3, "decoder_channels": (64, 32, 16)}, {"activation": "argmax2d"}),
    ],
)
def test_options_of_a_decoder_are_kept_and_what_is_not_logits_is_left_out(tmp_path, kept, left_out):
    given, expected = network(**kept, **left_out), network(**kept)
    expected.load_state_dict(given.state_dict(), strict=False)
    given.config["encoder_weights"] = "imagenet"  # a download would fail
    given.save_pretrained(tmp_path / "folder")
    whole = saved(given, tmp_path / "whole.pth")
    weights = tmp_path / "folder" / "model.safetensors"  # with config.json beside it
    for path in (tmp_path / "folder", whole, weights):
        assert_same(load_model(path, OTHER), expected)


def test_weights_as_trainers_name_file_and_round_them_are_found(tmp_path):
    expected = network()
    state = expected.state_dict()
    for number, prefix in enumerate((*PREFIXES, "module._orig_mod.", "model.net.")):
        weights = {prefix + name: value for name, value in state.items()}
        save_file(weights, tmp_path / f"{number}.safetensors")
    for wrapper in WRAPPERS:
        beside = dict.fromkeys(set(WRAPPERS) - {wrapper}, "unet") | {"epoch": 3}
        torch.save({wrapper: weights, **beside}, tmp_path / f"{wrapper}.pt")
    wide = {n: v.double() if v.is_floating_point() else v for n, v in state.items()}
    torch.save(wide, tmp_path / "float64.pth")
    for path in tmp_path.iterdir():
        assert_same(load_model(path, TINY), expected)


IN_DECODER = "decoder.blocks.1.conv2.0.weight"


def spoilt(name, value):
    return network().state_dict() | {name: value}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"a": torch.eye(1)}, "ema": {"a": torch.eye(1)}}, "several networks"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "contains no weights"),
        ({}, "contains no weights"),
        (torch.zeros(2), "contains no weights"),
        ({"a.b.c": torch.zeros(4, dtype=torch.int8)}, "as torch.int8.* dense float32"),
        ({"a.b.c": torch.eye(4).to_sparse()}, "torch.sparse_coo.* dense float32"),
        # it may say how images were normalised: to drop it would be a guess
        (spoilt("mean", torch.zeros(3)), r"Unexpected key.* \"mean\""),
        (spoilt(IN_DECODER, torch.zeros(99, 128, 3, 3)), "size mismatch for decoder.blocks.1"),
        (spoilt(IN_DECODER, torch.zeros(1).expand(10**6, 10**6, 3, 3)), "larger than the file"),
        (spoilt("segmentation_head.0.bias", torch.full((7,), torch.nan)), "1 weight.* not finite"),
    ],
)
def test_a_file_without_the_weights_of_one_network_says_what_it_holds(tmp_path, content, message):
    refused(saved(content, tmp_path / "file.pth"), message)


def test_a_small_file_builds_no_large_network(tmp_path):
    """It would take 90 GB: the width of the decoder is only a number in the file."""
    thin = network("fpn")
    thin._hub_mixin_config = thin.config | {"decoder_pyramid_channels": 50_000}
    torch.save(thin, tmp_path / "thin.pth")
    thin.save_pretrained(tmp_path / "folder")
    for path in tmp_path.iterdir():
        refused(path, "do not fit fpn on .*size mismatch for decoder")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"in_channels": 4}, "in_channels = 4, but the images have three"),
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
        ({"_model_class": "__loader__"}, "is unknown"),
        ({"encoder_name": "tu-hf_hub:someone/net"}, "is unknown"),
        ({"in_channels": "x"}, "do not fit unet .* copy it again"),
        ({"encoder_name": "resnet18", "unheard": 1}, "unheard is not a par"),
        ({"unheard": 1}, "unheard"),
        ({"checkpoint_path": "x.pth"}, "checkpoint_path is not a parameter"),  # timm would open it
    ],
)
def test_a_folder_that_asks_for_something_else_is_refused(tmp_path, config, message):
    network().save_pretrained(tmp_path)
    config = {"_model_class": "Unet", "encoder_name": TINY.encoder} | config
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, message)


def test_a_folder_without_its_weights_is_said(tmp_path):
    network().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    refused(tmp_path, "not a complete file of weights.* copy it again")
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, r"there is no .*model\.safetensors")


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", ["alone", "in a network", "beside weights"])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path, place):
    mark, name = tmp_path / "it_ran", "posix.system"
    hostile = content = Calls(os.system, f"touch {mark}")
    if place == "in a network":
        content = network()
        content.register_buffer("extra", None)
        content.encoder.note = hostile
    elif place == "beside weights":
        content = {"state_dict": network().state_dict(), "optimiser": hostile}
    path = saved(content, tmp_path / "hostile.pth")
    refused(path, name)
    with pytest.raises(UserError, match=name):  # of an encoder of timm
        build_model(dataclasses.replace(TINY, encoder_weights=str(path)))
    assert not mark.exists()
    call, arguments = hostile.__reduce__()
    call(*arguments)
    assert mark.exists()  # an unpickler that calls what it reads would have done it


def test_names_of_parts_of_networks_do_nothing_when_they_are_called(tmp_path):
    path, content = tmp_path / "a.pth", {"state_dict": network().state_dict()}
    call = torch.nn.modules.module.register_module_forward_hook  # a name that passes
    refused(saved(content | {"x": Calls(call, print)}, path), "builtins.print")
    load_model(saved(content | {"x": Calls(call, "hook")}, path), TINY)
    assert not torch.nn.modules.module._global_forward_hooks
    refused(saved({"model": functools.partial(print)}, path), "functools.partial")


def test_what_contains_itself_has_an_end(tmp_path):
    knot = network()
    for number in range(200):
        knot.encoder._modules[f"again{number}"] = knot
    assert_same(load_model(saved(knot, tmp_path / "knot.pth"), TINY), network())
    weights = {}
    weights["model"] = weights
    refused(saved(weights, tmp_path / "filed.pth"), "contains no weights")


def test_a_compressed_file_is_refused(tmp_path):
    with (
        zipfile.ZipFile(saved({"weight": torch.zeros(9)}, tmp_path / "plain.pth")) as plain,
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
