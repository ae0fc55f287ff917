"""Small networks to attack, of images and of volumes, and images for them; networks of smp."""

import functools

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import nn

from medood.attacks.iterates import image_dice

SPACES = {"image": (9, 7), "volume": (5, 6, 4)}
in_every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def some_network(space, channels=3, classes=3):
    """An untrained network: two convolutions, of images or volumes, that see contrasts alone."""
    torch.manual_seed(0)
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[len(space)]
    wide = convolution(channels, 8, 3, padding=1, bias=False)
    wide.weight.data -= wide.weight.mean((1, *range(2, 2 + len(space))), keepdim=True)
    return nn.Sequential(wide, nn.Tanh(), convolution(8, classes, 1, bias=False)).eval()


def some_images(space, count=3, channels=3):
    """Images that touch both ends of 0..1, and the truth as the network sees it, but for a row."""
    images = (1.2 * torch.rand(count, channels, *space, generator=seeded()) - 0.1).clamp(0, 1)
    target = some_network(space)(images).argmax(1)
    target[:, 0] = 1
    return images, target


def attacked(space=(9, 7), count=3):
    """Such a network, images and the truth."""
    return some_network(space), *some_images(space, count)


def linear(weight, bias):
    """A network of one 1 x 1 convolution: weight (K, C), bias (K,)."""
    weight, bias = torch.tensor(weight), torch.tensor(bias)

    def model(images):
        logits = torch.einsum("kc,nc...->nk...", weight, images)
        return logits + bias.view(-1, *[1] * (images.dim() - 2))

    return model


def draw_discs(count, seed):
    """Bright and dark discs in noise, (N, 3, 20, 20), and their classes 1 and 2."""
    generator = seeded(seed)
    rows, columns = torch.meshgrid(torch.arange(20), torch.arange(20), indexing="ij")
    images = 0.5 + 0.03 * torch.randn(count, 3, 20, 20, generator=generator)
    target = torch.zeros(count, 20, 20, dtype=torch.long)
    for number in range(count):
        for value in (1, 2):
            y, x = torch.randint(4, 16, (2,), generator=generator)
            disc = (rows - y) ** 2 + (columns - x) ** 2 < 14
            images[number][:, disc & (target[number] == 0)] += 0.09 * (3 - 2 * value)
            target[number][disc & (target[number] == 0)] = value
    return images.clamp(0, 1), target


@functools.cache
def trained():
    """A small network that tells bright and dark discs, with test images and truth."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.BatchNorm2d(3), nn.Conv2d(3, 12, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 3, 1)),
    )
    optimiser = torch.optim.Adam(model.parameters(), 2e-2)
    images, target = draw_discs(16, 0)
    for _ in range(100):
        optimiser.zero_grad()
        F.cross_entropy(model(images), target).backward()
        optimiser.step()
    return model.eval().requires_grad_(False), *draw_discs(8, 1)


def scores(model, images, target):
    logits = model(images)
    return image_dice(logits.argmax(1), target, logits.shape[1])


def network(architecture="unet", encoder="tu-test_resnet", classes=7, **parameters):
    """A network of smp in eval mode whose normalisations do something."""
    torch.manual_seed(0)
    model = smp.create_model(architecture, encoder, None, classes=classes, **parameters).eval()
    for weights in model.parameters():
        if weights.ndim == 1:
            nn.init.normal_(weights, 1, 0.1)
    return model


def assert_same(found, expected, size=64):
    images = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(found(images), expected(images), rtol=0, atol=0)
