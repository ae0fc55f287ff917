"""Maps of classes: CAM, Grad-CAM and Grad-CAM++, worked by hand and against the library."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import TINY, as_settings_of
from weak.classifier import Classifier
from weak.maps import cam, grad_cam, grad_cam_pp, maps_of, normalised, placed, resized
from weak.settings import MapsConfig


class TwoLayers(nn.Module):
    """An encoder of one 1 x 1 convolution to two channels, at full size."""

    out_channels = [3, 2]

    def __init__(self, weight):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1, bias=False)
        self.layer.weight.data = torch.tensor(weight).view(2, 3, 1, 1)

    def forward(self, images):
        return [images, self.layer(images).relu()]


def classifier_of(weight, head):
    classifier = Classifier(TwoLayers(weight), [0.0], len(head))
    classifier.head.weight.data = torch.tensor(head)[..., None, None]
    return classifier.eval()


def test_grad_cam_pp_by_hand():
    """Two channels on 1 x 2 pixels: A = (1, 3) and (2, 0), the head's weights 1 and -1."""
    features = torch.tensor([[[[1.0, 3.0]], [[2.0, 0.0]]]])
    weight = torch.tensor([[1.0, -1.0]])
    # g = 1/2 and -1/2; ReLU drops the second. alpha = .25 / (.5 + 4 * .125) = .25; its sum over
    # both pixels times g: 2 * .25 * .5 = .25, so the map is .25 A_1
    torch.testing.assert_close(grad_cam_pp(features, weight), torch.tensor([[[[0.25, 0.75]]]]))
    # Grad-CAM keeps the negative one: (1 - 2, 3 - 0) / 2, and ReLU
    torch.testing.assert_close(grad_cam(features, weight), torch.tensor([[[[0.0, 1.5]]]]))


@pytest.mark.parametrize("name", ["GradCAM", "GradCAMPlusPlus"])
def test_they_are_the_librarys_where_its_constant_is_small(name):
    """It adds 1e-6 to the denominator of alpha: the weights here are large beside it."""
    library = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    head = [[30.0, -20.0], [10.0, 25.0]]
    classifier = classifier_of([1.0, 0.5, 0, 0, 1.0, -0.5], head)
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    features = classifier.features(images)[-1].detach()
    function = grad_cam if name == "GradCAM" else grad_cam_pp
    own = function(features, torch.tensor(head)).numpy()
    logits = classifier.head, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(classifier.encoder.layer, nn.ReLU(), *logits)
    with getattr(library, name)(model=model, target_layers=[model[1]]) as method:
        for value in range(2):
            theirs = method(images, [ClassifierOutputTarget(value)] * 3)
            low = own[:, value].min((1, 2), keepdims=True)  # the library spreads maps over 0..1
            spread = own[:, value].max((1, 2), keepdims=True) - low
            np.testing.assert_allclose((own[:, value] - low) / spread, theirs, atol=1e-5)


def test_cam_of_a_mirror_image_is_the_mirror_image_of_cam():
    classifier = classifier_of([1.0, 0, 0, 0, 1.0, 0], [[1.0, -0.5]])
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own, mirrored = (cam(classifier, of, (1.0, 0.5)) for of in (images, images.flip(3)))
    assert own.shape == (1, 1, 4, 4)
    torch.testing.assert_close(own.flip(3), mirrored)


def test_a_feature_map_is_placed_where_its_pixels_look():
    """Two pixels of stride 4 that look at pixels 0 and 4 of 8, not at 1.5 and 5.5."""
    features = torch.tensor([0.0, 8.0]).expand(1, 1, 2, 2)
    along = torch.tensor([0.0, 2, 4, 6, 8, 8, 8, 8])
    expected = along.expand(1, 1, 8, 8)
    torch.testing.assert_close(placed(features, [8, 8], 1.5 / 4), expected)
    torch.testing.assert_close(placed(features.mT, [8, 8], 1.5 / 4), expected.mT)
    features = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(placed(features, [20, 16], 0), resized(features, [20, 16]))


def test_only_maps_of_held_classes_stay_and_their_maximum_is_one():
    maps = torch.tensor([[[[1.0, 4.0]], [[2.0, 2.0]]], [[[0.0, 0.0]], [[3.0, 6.0]]]])
    held = torch.tensor([[True, False], [True, True]])
    expected = torch.tensor([[[[0.25, 1.0]], [[0.0, 0.0]]], [[[0.0, 0.0]], [[0.5, 1.0]]]])
    torch.testing.assert_close(normalised(maps, held), expected)


def test_maps_and_logits_of_several_classifiers_are_their_mean():
    cfg, cpu = as_settings_of(MapsConfig, TINY, scales=(1.0,)), torch.device("cpu")
    both = [
        classifier_of([1.0, 0, 0, 0, 1.0, 0], [[1.0, -0.5], [0.2, 0.8]]),
        classifier_of([0, 1.0, 0, 0.5, 0, 1.0], [[0.3, 0.5], [-0.2, 1.8]]),
    ]
    images = torch.randint(0, 256, (9, 32, 32, 3), dtype=torch.uint8)
    (mean, logits), (first, said), (second, also) = (
        maps_of(cfg, {"plain": some, "contrast": some}, images, cpu)
        for some in (both, both[:1], both[1:])
    )
    torch.testing.assert_close(logits, (said + also) / 2)
    for name, maps in mean.items():
        torch.testing.assert_close(maps, (first[name] + second[name]) / 2)
        assert not torch.equal(first[name], second[name])
