"""Networks for others: ONNX with the same output, and a card that says what they are."""

import dataclasses
import importlib
import json
from unittest import mock

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file
from torch import nn

from config import UserError
from medood.data.workspace import SAMPLE_NAME, model_folder
from medood.evaluation.model_card import write_card
from medood.models.checkpoints import load_model, read_run
from medood.models.inference import Predictor
from tests.conftest import TINY
from train import train


@pytest.fixture
def export():
    """The module, where what it needs is installed."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    return importlib.import_module("export")


@pytest.fixture
def network(one_trained):
    """The settings of a workspace with a trained network, and its folder."""
    return one_trained, model_folder(one_trained, 1, ood=False)


def test_onnx_gives_the_probabilities_of_the_logits_for_any_number_of_patches(export, network):
    import onnxruntime

    cfg, folder = network
    predictor = Predictor(cfg, load_model(folder, cfg))
    unused = {"activation": "softmax2d", "aux_params": {"classes": 3}}  # both are left out
    other = smp.Unet(cfg.encoder, encoder_weights=None, classes=7, **unused)
    other.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    other.save_pretrained(folder)
    session = onnxruntime.InferenceSession(export.export(cfg, folder))
    for count in (1, 5):
        images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
        given = images.transpose(0, 3, 1, 2).astype(np.float32)
        (found,) = session.run(None, {"images": given})
        np.testing.assert_allclose(found, predictor(torch.from_numpy(images)), atol=1e-4)
    names = session.get_modelmeta().custom_metadata_map["classes"]
    assert json.loads(names) == list(TINY.class_names)


def test_a_version_that_differs_or_cannot_be_made_is_not_kept(export, network, monkeypatch):
    cfg, folder = network
    network = nn.Conv2d(3, len(cfg.class_names), 1)  # the smallest: an export takes seconds
    network.config = {"encoder_name": cfg.encoder}
    monkeypatch.setattr("medood.models.checkpoints.load_model", lambda *_: network)
    export.export(cfg, folder).unlink()
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="a probability differs by"):
        export.export(cfg, folder)
    assert not list(folder.glob("*model.onnx*"))
    error = torch.onnx.OnnxExporterError("no such operator\nmore")
    monkeypatch.setattr(torch.onnx, "export", mock.Mock(side_effect=error))
    with pytest.raises(UserError, match=r"cannot be exported \(no such operator\)"):
        export.export(cfg, folder)
    assert not list(folder.glob("*model.onnx*"))


def test_the_card_says_on_what_a_network_was_trained_and_what_it_scored(network, quick_report):
    from test import evaluate

    cfg, folder = network
    run = read_run(folder)
    untested = (folder / "README.md").read_text()
    assert "# unet on tu-test_resnet, without OoD patches" in untested
    assert f"{run['id_patches']} patches of 32 x 32 pixels" in untested
    assert "Not tested yet" in untested
    assert str(cfg.workspace) not in untested  # a path of this machine says nothing to others
    evaluate(cfg)
    tested = (folder / "README.md").read_text()
    miou = read_run(folder)["scores"]["miou"]
    assert f"| `miou` | {100 * miou:.1f} |" in tested
    write_card(folder, run | {"data": SAMPLE_NAME})
    assert "it knows nothing about real tissue" in (folder / "README.md").read_text()


def test_tensorboard_gets_losses_and_changes_no_weight(network):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    cfg, folder = network
    before, shown = (folder / "model.safetensors").read_bytes(), cfg.workspace / "tensorboard"
    watched = dataclasses.replace(cfg, tensorboard=True, epochs=1)
    train(watched)
    events = reader.EventAccumulator(str(shown / folder.name)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1]
    train(dataclasses.replace(cfg, tensorboard=True))
    assert (folder / "model.safetensors").read_bytes() == before
    train(dataclasses.replace(watched, tensorboard=False))  # another network, of the same name
    assert not (shown / folder.name).exists()
