"""The classifier of image labels: its maps, its output stride, its training and its scores."""

import dataclasses

import numpy as np
import pytest
import torch

from config import UserError
from medood.models.network import Normalise
from medood.training.batches import balanced
from medood.training.loop import fit
from tests.small_weak import of_two_classes, painted
from weak.arrays import save_weights
from weak.classifier import EMPTY, build_classifier, contrast_loss, image_scores, plain_loss
from weak.maps import placed
from weak.pooled import logits_by
from weak.train_classifier import ClassifierTraining

CPU = torch.device("cpu")


@pytest.fixture
def cfg(tmp_path):
    return of_two_classes(tmp_path, classifier_epochs=2, classifier_lr=1e-3)


@pytest.mark.parametrize(
    "encoder",
    [
        *("mobilenet_v2", "tu-resnet10t", "tu-tf_mobilenetv3_small_100"),
        pytest.param("vgg11_bn", marks=pytest.mark.long),
        pytest.param("densenet121", marks=pytest.mark.long),
    ],
)
def test_a_spot_lies_on_every_map_where_it_lies_on_the_image(cfg, encoder):
    """With convolutions that take the mean, the spread of a spot is even to all sides of it."""
    classifier = build_classifier(dataclasses.replace(cfg, encoder=encoder))
    for layer in classifier.eval().modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.data.fill_(1 / layer.weight[0].numel())
            if layer.bias is not None:
                layer.bias.data.zero_()
    at = torch.tensor([130.0, 122.0])
    places = torch.arange(256) + 0.5
    down, right = (torch.exp(-((places - place) ** 2) / 72) for place in at)
    with torch.no_grad():
        features = classifier.features(torch.outer(down, right).expand(1, 3, 256, 256))
    for level, found in zip(classifier.levels, features, strict=True):
        of_image = placed(found.mean(1, keepdim=True), [256, 256], level.grid_shift)[0, 0]
        shares = of_image / of_image.sum()
        centre = torch.stack([shares.sum(1) @ places, shares.sum(0) @ places])
        torch.testing.assert_close(centre, at, atol=0.1, rtol=0)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps, logits = classifier.maps(images), classifier(images)
    assert maps.shape == (2, 2, 8, 8)
    torch.testing.assert_close(maps.mean((2, 3)), logits)


def test_an_encoder_of_one_size_of_images_is_refused(cfg):
    cfg = dataclasses.replace(cfg, encoder="tu-efficientformerv2_s0", image_size=224)
    with pytest.raises(UserError, match="cannot keep an output stride of 8"):
        build_classifier(cfg)


def test_images_are_drawn_as_their_labels_are_rare():
    # class a is held by 1 of 4, class b by 2 of 4
    labels = np.array([[1, 0], [0, 0], [0, 1], [0, 1]])
    # 1 / held and 1 / not held, the mean over classes: a: 4, 4/3; b: 2, 2
    weight = np.array([4 + 2, *[4 / 3 + 2] * 3]) / 2
    np.testing.assert_allclose(balanced(labels), weight / weight.sum())


def trained(*arguments):
    """A classifier after its training, and the log."""
    training = ClassifierTraining(*arguments)
    fit(training)
    return training.model.eval(), training.log


def test_the_plain_and_the_contrast_loss_by_hand():
    """Two pixels; an image of class a, and one without any class."""
    maps = torch.tensor([[[[1.0, 3.0]], [[9.0, 9.0]]], [[[0.0, -4.0]], [[1.0, -1.0]]]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    softplus = np.logaddexp(0, [0.0, -4.0, 1.0, -1.0])
    known = np.log1p(np.exp(-2))  # class b is not known of the image of class a: 9 costs nothing
    means = np.logaddexp(0, -2.0) + np.logaddexp(0, 0.0)
    pixels = softplus[:2].mean() + softplus[2:].mean()
    expected = (known + means + EMPTY * pixels) / 3
    assert contrast_loss(maps, labels).item() == pytest.approx(expected)
    plain = (known + np.logaddexp(0, 9.0) + means) / 4  # that class is known to be absent
    assert plain_loss(maps, labels).item() == pytest.approx(plain)


def test_a_contrast_classifier_looks_at_what_two_classes_share(cfg):
    """Images of a class show an organ, a red square; those of class a are green beside it.

    So are half of those that hold no class. The green tells a from b, and a plain classifier looks
    at it; only the organ tells either from nothing.
    """
    rng = np.random.default_rng(0)
    labels = np.array([[1, 0], [0, 1], [0, 0], [0, 0]] * 16)
    images = rng.integers(100, 150, (64, 32, 32, 3))
    for number, (image, held) in enumerate(zip(images, labels, strict=True)):
        if held.any():
            image[4:12, 4:12] = 255, 0, 0
        if held[0] or number % 4 == 3:
            image[18:28, 18:28] = 0, 255, 0
    images = torch.from_numpy(images.astype(np.uint8))
    few = {"stages": 3, "classifier_epochs": 8, "contrast_epochs": 8}
    cfg = dataclasses.replace(cfg, **few, classifier_lr=1e-2)
    normalised = Normalise(cfg.encoder)(images[::4].permute(0, 3, 1, 2).float())
    share, classifier, truth = {}, None, torch.tensor(labels).float()
    for kind in ("plain", "contrast"):
        classifier, _ = trained(cfg, 1, kind, 0, images, truth, CPU, classifier)
        with torch.no_grad():
            found = classifier.maps(normalised)[:, 0].relu().mean(0)
        share[kind] = (found[:2, :2].sum() / found.sum()).item()
    assert share["contrast"] > 0.7 > share["plain"], share
    head = classifier.head.weight.clone()
    ClassifierTraining(cfg, 1, "contrast", 1, images, truth, CPU, classifier)
    assert not torch.equal(classifier.head.weight, head)  # it begins with a new one


def test_it_learns_and_the_same_seed_gives_the_same_bytes(cfg, tmp_path):
    cfg = dataclasses.replace(cfg, classifier_epochs=4, classifier_lr=1e-2)
    images, labels = painted(48)
    classifier, log = trained(cfg, 1, "plain", 0, images, labels, CPU)
    assert log[-1]["loss"] < log[0]["loss"]
    short = dataclasses.replace(cfg, classifier_epochs=1)
    ours, again, another = (
        trained(short, 1, "plain", number, images[:16], labels[:16], CPU)[0] for number in (0, 0, 1)
    )
    for own, other in zip(ours.parameters(), again.parameters(), strict=True):
        assert torch.equal(own, other)
    assert not torch.equal(ours.head.weight, another.head.weight)
    _, log = trained(short, 1, "plain", 0, images[:2], torch.eye(2), CPU)
    assert len(log) == 1  # of fewer images than a batch
    held_out, truth = painted(40, seed=1)
    save_weights(classifier, tmp_path / "plain_1.safetensors")
    one = dataclasses.replace(cfg, classifiers=1)
    logits = logits_by(one, tmp_path, held_out)
    assert min(image_scores(logits.numpy(), truth.numpy())["auc"]) > 0.9
    save_weights(another, tmp_path / "plain_2.safetensors")
    both = logits_by(dataclasses.replace(cfg, classifiers=2), tmp_path, held_out)
    with torch.no_grad():
        images = Normalise(cfg.encoder)(held_out.permute(0, 3, 1, 2).float())
        torch.testing.assert_close(both, (logits + another(images)) / 2, atol=1e-5, rtol=1e-5)


def test_auc_and_f1_by_hand():
    labels = np.array([[1], [0], [1], [0]])
    logits = np.array([[2.0], [1.0], [-1.0], [-2.0]])
    # of the four pairs (2 > 1, 2 > -2, -1 < 1, -1 > -2) three are right; called: one right of two
    assert image_scores(logits, labels) == {"auc": [0.75], "f1": [0.5]}
    # a tie is half a pair
    assert image_scores(np.zeros((4, 1)), labels)["auc"] == [0.5]
    # not defined where all or none have the class
    scores = image_scores(np.array([[1.0, -1.0], [2.0, -1.0]]), np.array([[1, 0], [1, 0]]))
    assert scores == {"auc": [None, None], "f1": [1.0, None]}
