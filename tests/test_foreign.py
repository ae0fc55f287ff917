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
from segmentation_models_pytorch.encoders import get_encoder_names
from torch import nn

from config import Config, UserError
from medood.models.checkpoints import encoder_shapes, load_model
from medood.models.foreign import PREFIXES, WRAPPERS
from medood.models.network import build_model, remove_batch_norm
from tests.conftest import TINY
from tests.small_networks import assert_same, network


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [("unet", "mobilenet_v2"), ("fpn", "resnet18"), ("deeplabv3plus", "resnet18")],
)
def test_a_whole_network_says_itself_what_it_is(tmp_path, architecture, encoder):
    expected = network(architecture, encoder)
    torch.save(expected, tmp_path / "whole.pth")
    settings = Config(architecture="manet", encoder="vgg11_bn", encoder_weights="none")
    found = load_model(tmp_path / "whole.pth", settings)
    assert type(found) is type(expected)
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [("unet", "resnet18"), ("linknet", "mobilenet_v2"), ("unetplusplus", "efficientnet-b0")],
)
def test_weights_alone_are_recognised(tmp_path, architecture, encoder):
    expected = network(architecture, encoder)
    torch.save(expected.state_dict(), tmp_path / "weights.pth")
    save_file(expected.state_dict(), tmp_path / "weights.safetensors")
    for path in tmp_path.iterdir():
        assert_same(load_model(path, TINY), expected)


@pytest.mark.parametrize(
    ("architecture", "widths"),
    [
        ("unet", {"decoder_channels": (40, 24, 20, 12, 8)}),
        ("unet", {"decoder_channels": (40, 24, 20), "encoder_depth": 3}),
        ("unetplusplus", {"decoder_channels": (40, 24, 20, 12, 8)}),
        ("unetplusplus", {"decoder_channels": (40, 24, 20, 12), "encoder_depth": 4}),
        ("manet", {"decoder_channels": (40, 24, 20, 12, 8), "decoder_pab_channels": 16}),
        ("manet", {"decoder_channels": (40, 24, 20, 12), "encoder_depth": 4}),
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
    torch.save(expected, tmp_path / "whole.pth")
    del expected._hub_mixin_config  # smp 0.3 had none
    torch.save(expected, tmp_path / "old.pth")
    torch.save(expected.state_dict(), tmp_path / "weights.pth")
    for path in tmp_path.iterdir():
        side = 128 if architecture == "pan" else 64  # pan takes no less
        found = load_model(path, dataclasses.replace(TINY, patch_size=side))
        assert type(found) is type(expected)
        assert_same(found, expected, side)


def test_a_network_that_was_saved_whole_says_what_shapes_do_not(tmp_path):
    expected = network("deeplabv3plus", "resnet18", decoder_atrous_rates=(2, 4, 6))
    torch.save(expected, tmp_path / "whole.pth")
    assert_same(load_model(tmp_path / "whole.pth", TINY), expected)


@pytest.mark.parametrize("encoder", ["mobilenet_v2", "mit_b0"])
def test_widths_that_no_network_has_are_refused(tmp_path, encoder):
    weights = network(encoder=encoder).state_dict()
    weights["decoder.blocks.1.conv2.0.weight"] = torch.zeros(99, 128, 3, 3)
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="do not fit .* another shape .*set architecture"):
        load_model(tmp_path / "odd.pth", TINY)


def test_weights_that_claim_more_than_their_file_holds_are_refused(tmp_path):
    weights = network().state_dict()
    weights["decoder.blocks.1.conv2.0.weight"] = torch.zeros(1).expand(10**6, 10**6, 3, 3)
    torch.save(weights, tmp_path / "claim.pth")
    with pytest.raises(UserError, match="larger than the file"):
        load_model(tmp_path / "claim.pth", TINY)


def test_a_small_file_builds_no_large_network(tmp_path):
    """It would take 90 GB: the width of one thin layer is the width of all."""
    weights = network("fpn", "resnet18").state_dict()
    weights["decoder.p5.weight"] = torch.zeros(50_000, 1, 1, 1)
    weights["decoder.seg_blocks.0.block.0.block.0.weight"] = torch.zeros(50_000, 1, 1, 1)
    torch.save(weights, tmp_path / "thin.pth")
    with pytest.raises(UserError, match="do not fit"):
        load_model(tmp_path / "thin.pth", TINY)


def test_a_folder_cannot_make_timm_open_another_file(tmp_path):
    network().save_pretrained(tmp_path)
    config = {"_model_class": "Unet", "encoder_name": "tu-resnet10t", "checkpoint_path": "x.pth"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="checkpoint_path is no parameter"):
        load_model(tmp_path, TINY)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_as_trainers_file_them_are_found(tmp_path, wrapper):
    expected = network()
    weights = {f"module.{name}": value for name, value in expected.state_dict().items()}
    beside = dict.fromkeys(set(WRAPPERS) - {wrapper}, "unet") | {"epoch": 3}
    torch.save({wrapper: weights, **beside}, tmp_path / "weights.pt")
    assert_same(load_model(tmp_path / "weights.pt", TINY), expected)


@pytest.mark.parametrize(
    "prefix", [*PREFIXES, "module._orig_mod.", "_orig_mod.module.", "model.net.", "network.model."]
)
def test_prefixes_of_whatever_wrapped_a_network_are_taken_off(tmp_path, prefix):
    expected = network()
    weights = {prefix + name: value for name, value in expected.state_dict().items()}
    torch.save(weights, tmp_path / "weights.pth")
    save_file(weights, tmp_path / "weights.safetensors")
    for path in tmp_path.iterdir():
        assert_same(load_model(path, TINY), expected)


def test_what_stands_beside_a_network_in_a_file_is_named(tmp_path):
    """It may say how images were normalised: to drop it would be a guess."""
    weights = {f"model.{name}": value for name, value in network().state_dict().items()}
    beside = {"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}
    torch.save({"state_dict": weights | beside}, tmp_path / "lightning.ckpt")
    with pytest.raises(UserError, match=r"2 of \d+ weights are no part of it \(mean; std\).*alone"):
        load_model(tmp_path / "lightning.ckpt", TINY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": {"a.b.c": torch.zeros(1)}, "ema": {"a.b.c": torch.zeros(1)}},
            "several networks",
        ),
        ({"optimizer": {"state": {}, "param_groups": []}}, "holds no weights"),
        ({"state_dict": {}}, "holds no weights"),
        ({}, "holds no weights"),
        ({"a.b.c": torch.zeros(4, dtype=torch.complex64)}, "as torch.complex64.* dense float32"),
        ({"a.b.c": torch.eye(4).to_sparse()}, "torch.sparse_coo.* dense float32"),
    ],
)
def test_a_file_without_the_weights_of_one_network_says_what_it_holds(tmp_path, content, message):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "file.pth", TINY)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_rounded_to_float32(tmp_path, dtype):
    weights = {
        n: v.to(dtype) if v.is_floating_point() else v for n, v in network().state_dict().items()
    }
    torch.save(weights, tmp_path / "weights.pth")
    for name, value in load_model(tmp_path / "weights.pth", TINY).state_dict().items():
        assert torch.equal(value, weights[name].to(value.dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    expected = network()
    expected.decoder.blocks[0].conv1[0].weight.data[0, 0, 0, 0] = value
    torch.save(expected.state_dict(), tmp_path / "weights.pth")
    expected.save_pretrained(tmp_path / "folder")
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match=r"1 weight.* not finite .decoder\.blocks\.0\.conv1"):
            load_model(path, TINY)


def test_no_two_encoders_are_confused():
    names = get_encoder_names()
    shapes = [tuple(sorted(encoder_shapes(name).items())) for name in names]
    assert len(set(shapes)) == len(names) > 60


def test_weights_that_fit_nothing_are_said_with_the_settings_to_give(tmp_path):
    save_file(network(classes=3).state_dict(), tmp_path / "three.safetensors")
    with pytest.raises(UserError, match=r"knows other classes \(3 with background\)"):
        load_model(tmp_path / "three.safetensors", TINY)
    weights = network("unet", "tu-resnet10t").state_dict()  # not one of smp's own encoders
    save_file(weights, tmp_path / "timm.safetensors")
    with pytest.raises(UserError, match="set architecture and encoder to those"):
        load_model(tmp_path / "timm.safetensors", TINY)


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "posix.system"), (eval, "builtins.eval"), (exec, "builtins.exec")],
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
    torch.save(content, tmp_path / "hostile.pth")
    with pytest.raises(UserError, match=name):
        load_model(tmp_path / "hostile.pth", TINY)
    assert not mark.exists()
    torch.load(tmp_path / "hostile.pth", weights_only=False)
    assert mark.exists()  # the file would have done it


def test_names_of_parts_of_networks_do_nothing_when_they_are_called(tmp_path):
    # a name that passes, and would load a file if it were the real one
    hostile = Calls(torch.nn.modules.module.register_module_forward_hook, print)
    torch.save({"state_dict": network().state_dict(), "x": hostile}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="builtins.print"):
        load_model(tmp_path / "a.pth", TINY)
    hostile = Calls(torch.nn.modules.module.register_module_forward_hook, "hook")
    torch.save({"state_dict": network().state_dict(), "x": hostile}, tmp_path / "b.pth")
    load_model(tmp_path / "b.pth", TINY)
    assert not torch.nn.modules.module._global_forward_hooks


def test_a_partial_function_is_no_part_of_a_network(tmp_path):
    torch.save({"model": functools.partial(print)}, tmp_path / "partial.pth")
    with pytest.raises(UserError, match="functools.partial"):
        load_model(tmp_path / "partial.pth", TINY)


@pytest.mark.parametrize("children", [1, 200])
def test_a_network_that_holds_itself_is_refused(tmp_path, children):
    knot = network()
    for number in range(children):
        knot.encoder._modules[f"again{number}"] = knot
    torch.save(knot, tmp_path / "knot.pth")
    with pytest.raises(UserError, match="more parts than any"):
        load_model(tmp_path / "knot.pth", TINY)


def test_weights_filed_in_themselves_are_refused(tmp_path):
    knot = {}
    knot["model"] = knot
    torch.save(knot, tmp_path / "knot.pth")
    with pytest.raises(UserError, match="holds no weights"):
        load_model(tmp_path / "knot.pth", TINY)


def test_a_whole_network_of_several_gpus_is_opened(tmp_path):
    expected = network("fpn", "resnet18")
    torch.save(nn.DataParallel(expected), tmp_path / "parallel.pth")
    assert_same(load_model(tmp_path / "parallel.pth", TINY), expected)


def test_a_file_is_read_as_run_json_beside_it_says(tmp_path):
    expected = remove_batch_norm(network("unet", "tu-resnet10t"))
    save_file(expected.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds weights that do not fit"):
        load_model(tmp_path / "model.safetensors", TINY)
    run = {"settings": {"encoder": "tu-resnet10t", "batch_norm": False}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert_same(load_model(tmp_path / "model.safetensors", TINY), expected)


def test_weights_of_an_encoder_of_timm_are_read_without_their_code(tmp_path):
    mark = tmp_path / "it_ran"
    torch.save({"x": Calls(os.system, f"touch {mark}")}, tmp_path / "hostile.pth")
    cfg = dataclasses.replace(
        TINY, encoder="tu-resnet10t", encoder_weights=str(tmp_path / "hostile.pth")
    )
    with pytest.raises(UserError, match="posix.system"):
        build_model(cfg)
    assert not mark.exists()


def test_a_compressed_file_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(9)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(UserError, match="is compressed"):
        load_model(tmp_path / "bomb.pth", TINY)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "architecture = '' is unknown"),
        ('{"_model_class": "__loader__", "encoder_name": "resnet18"}', "is unknown"),
        ('{"_model_class": "Unet", "encoder_name": "tu-hf_hub:someone/net"}', "is unknown"),
        ('{"_model_class": "Unet", "encoder_name": "resnet18", "in_channels": "x"}', "no usable"),
        ('{"_model_class": "Unet", "encoder_name": "resnet18", "unheard": 1}', "unheard is no par"),
        ('{"_model_class": "Unet", "encoder_name": "tu-resnet10t", "unheard": 1}', "unheard"),
    ],
)
def test_a_folder_that_asks_for_something_else_is_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path, TINY)


def test_pretrained_weights_that_a_folder_names_are_not_downloaded(tmp_path):
    expected = network()
    expected.config["encoder_weights"] = "imagenet"
    expected.save_pretrained(tmp_path)
    assert_same(load_model(tmp_path, TINY), expected)


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
