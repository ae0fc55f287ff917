"""IRNet's branches: what they learn, and what training leaves alone."""

import copy

import torch
from torch import nn

from medood.data.labels import UNSURE
from medood.training.loop import fit
from tests.conftest import TINY, as_settings_of
from weak import irnet as module
from weak.classifier import Level
from weak.irnet import IRNet, boundaries
from weak.maps import MAP_STRIDE
from weak.settings import IRNetConfig
from weak.train_irnet import IRNetTraining

CPU = torch.device("cpu")
LEVELS = Level(8, 0), Level(12, 1 / 4)  # the 3 x 3 convolution of stride 2 moves its map
SIDE = 64


class Encoder(nn.Module):
    """Random convolutions: maps of 8 channels at stride 4 and of 12 at stride 8."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(
            nn.AvgPool2d(4), nn.Conv2d(3, 8, 5, padding=2), nn.BatchNorm2d(8)
        )
        self.second = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12))

    def forward(self, images):
        first = self.first((images - 128) / 64)
        return [first, self.second(first)]


def networks(seed=0):
    torch.manual_seed(seed)
    return Encoder().eval(), IRNet(LEVELS)


def halves(count=24):
    """Images of a dark and a bright half, and their labels; columns at the edge are unsure."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(5, 12, (count,), generator=generator)  # the first bright column
    columns = torch.arange(SIDE // MAP_STRIDE)
    labels = (columns >= edges[:, None]).to(torch.uint8)
    pixels = labels.repeat_interleave(MAP_STRIDE, 1)[:, None, :, None].expand(-1, SIDE, -1, 3)
    noise = torch.randint(0, 40, (count, SIDE, SIDE, 3), generator=generator)
    labels[(columns - edges[:, None] + 0.5).abs() < 1] = UNSURE
    return (60 + 110 * pixels + noise).to(torch.uint8), labels[:, None].repeat(1, 16, 1), edges


def train(encoder, irnet, images, labels, **settings):
    """The losses of all epochs."""
    chosen = {"irnet_epochs": 1, "irnet_lr": 0.1, "batch_size": 8, "seed": 0} | settings
    cfg = as_settings_of(IRNetConfig, TINY, **chosen)
    training = IRNetTraining(cfg, 1, encoder, irnet, images, labels, CPU)
    fit(training)
    return [row["loss"] for row in training.log]


def state_bytes(network):
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}


def test_the_boundary_is_learnt_where_two_halves_meet():
    encoder, irnet = networks()
    images, labels, edges = halves()
    before, untrained = copy.deepcopy(state_bytes(encoder)), state_bytes(irnet)
    log = train(encoder, irnet, images[:16], labels[:16], irnet_epochs=10)
    assert state_bytes(encoder) == before  # it is frozen
    assert all(value != untrained[name] for name, value in state_bytes(irnet).items())
    assert len(log) == 10
    assert log[-1] < 0.6 * log[0]
    found = boundaries(encoder, irnet, images[16:], CPU)
    assert found.dtype == torch.float32
    assert found.shape == (8, 16, 16)
    for boundary, edge in zip(found, edges[16:].tolist(), strict=True):
        # an image and its mirror image may put it on two sides of the edge: half a boundary each
        at_edge = boundary[:, edge - 2 : edge + 2].amax(1)
        far = torch.cat([boundary[:, : edge - 3], boundary[:, edge + 3 :]], 1)
        assert at_edge.mean() > 0.45
        assert far.mean() < 0.05
        assert (boundary.argmax(1) - (edge - 0.5)).abs().max() <= 1.5


def test_boundaries_of_mirrored_images_are_mirrored():
    encoder, irnet = networks()
    images, _, _ = halves(10)  # more than a batch
    straight, mirrored = (
        boundaries(encoder, irnet, part, CPU) for part in (images, images.flip(2))
    )
    torch.testing.assert_close(mirrored.flip(2), straight)
    assert straight.min() > 0
    assert straight.max() < 1


def test_the_encoder_sees_images_and_mirror_images_with_their_labels(monkeypatch):
    images = torch.arange(8, dtype=torch.uint8).repeat_interleave(8).view(1, 1, 64, 1)
    images = images.expand(6, 64, 64, 3)
    labels = images[:, ::4, ::4, 0]
    _, irnet = networks()
    seen = []

    def encoder(batch):
        seen.append(batch)
        return [batch.repeat(1, 3, 1, 1)[:, :8] / 64, batch.repeat(1, 4, 1, 1) / 64]

    def pairs(batch, radius):
        assert torch.equal(seen[-1][:, 0, ::4, ::4], batch.float())
        return module.pairs(batch, radius)

    monkeypatch.setattr("weak.train_irnet.pairs", pairs)
    train(encoder, irnet, images, labels, irnet_epochs=4, batch_size=4)
    assert [len(batch) for batch in seen] == [4, 2] * 4
    is_mirrored = torch.cat([batch[:, 0, 0, 0] > batch[:, 0, 0, -1] for batch in seen])
    assert 4 < is_mirrored.sum() < 20
