"""Networks give logits of pixels, whatever else they were saved with, or they are refused."""

import dataclasses

import pytest
import segmentation_models_pytorch as smp
import torch

from config import UserError
from medood.models.checkpoints import load_model
from medood.models.inference import Predictor
from tests.conftest import TINY
from tests.small_networks import assert_same, network

ACTIVATIONS = ["sigmoid", "softmax2d", "logsoftmax", "argmax2d"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_is_left_out(tmp_path, activation):
    expected = network()
    other = network(activation=activation)
    other.load_state_dict(expected.state_dict())
    other.save_pretrained(tmp_path / "folder")
    torch.save(other, tmp_path / "whole.pth")
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    probabilities = Predictor(TINY, expected, torch.device("cpu"))(images)
    for path in tmp_path.iterdir():
        found = load_model(path, TINY)
        assert_same(found, expected)
        assert torch.equal(Predictor(TINY, found, torch.device("cpu"))(images), probabilities)


def test_a_head_that_classifies_images_is_left_out(tmp_path):
    expected = network()
    head = {"classes": 4, "dropout": 0.1}
    other = smp.Unet("mobilenet_v2", encoder_weights=None, classes=7, aux_params=head).eval()
    expected.load_state_dict(other.state_dict(), strict=False)
    other.save_pretrained(tmp_path / "folder")
    torch.save(other, tmp_path / "whole.pth")
    torch.save(other.state_dict(), tmp_path / "weights.pth")
    for path in tmp_path.iterdir():
        assert_same(load_model(path, TINY), expected)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"in_channels": 1}, "in_channels = 1, here they have three"),
        ({"in_channels": 4}, "in_channels = 4, here they have three"),
        ({"classes": 1}, "one output: .* a sigmoid"),
        ({"classes": 6}, r"knows other classes \(6 with background\)"),
    ],
)
def test_a_network_of_other_inputs_or_outputs_is_said(tmp_path, parameters, message):
    other = network("unet", "resnet18", **parameters)
    other.save_pretrained(tmp_path / "folder")
    torch.save(other, tmp_path / "whole.pth")
    torch.save(other.state_dict(), tmp_path / "weights.pth")
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match=message):
            load_model(path, dataclasses.replace(TINY, encoder="resnet18"))


@pytest.mark.parametrize(
    "options",
    [
        {"decoder_attention_type": "scse"},
        {"decoder_use_norm": False},
        {"decoder_interpolation": "bilinear"},
        {"encoder_depth": 4, "decoder_channels": (64, 32, 16, 8)},
        {"encoder_depth": 3, "decoder_channels": (64, 32, 16)},
    ],
)
def test_options_of_a_decoder_are_kept(tmp_path, options):
    expected = network("unet", "resnet18", **options)
    expected.save_pretrained(tmp_path / "folder")
    torch.save(expected, tmp_path / "whole.pth")
    weights = tmp_path / "folder" / "model.safetensors"  # with config.json beside it
    for path in (tmp_path / "folder", tmp_path / "whole.pth", weights):
        assert_same(load_model(path, TINY), expected)


def test_weights_alone_of_a_decoder_without_normalisation_are_said(tmp_path):
    torch.save(network("unet", "resnet18", decoder_use_norm=False).state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"fit unet on encoder resnet18 .*decoder\.blocks.*folder"):
        load_model(tmp_path / "x.pth", TINY)


def test_a_folder_without_its_weights_is_said(tmp_path):
    network().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="no whole file of weights .* copy it again"):
        load_model(tmp_path, TINY)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"there is no .*model\.safetensors"):
        load_model(tmp_path, TINY)
