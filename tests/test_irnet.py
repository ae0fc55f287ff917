"""IRNet: pairs, losses and random walk, against brute force and by hand, and what it learns."""

from fractions import Fraction
from math import log

import numpy as np
import pytest
import torch
from torch import nn

from medood.data.labels import UNSURE
from medood.training.loop import fit
from tests.conftest import TINY, as_settings_of
from weak.classifier import Level
from weak.irnet import IRNet, affinity_loss, boundaries, half_plane, pairs, transition, walk
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


def state_bytes(network):
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}


def test_the_boundary_is_learnt_where_two_halves_meet():
    torch.manual_seed(0)
    encoder, irnet = Encoder().eval(), IRNet(LEVELS)
    images, labels, edges = halves()
    before, untrained = state_bytes(encoder), state_bytes(irnet)
    cfg = as_settings_of(IRNetConfig, TINY, irnet_epochs=10, irnet_lr=0.1)
    training = IRNetTraining(cfg, 1, encoder, irnet, images[:16], labels[:16], CPU)
    fit(training)
    assert state_bytes(encoder) == before  # it is frozen
    assert all(value != untrained[name] for name, value in state_bytes(irnet).items())
    assert len(training.log) == 10
    assert training.log[-1]["loss"] < 0.6 * training.log[0]["loss"]
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


# two rows of three pixels: pairs closer than 2 are neighbours, those at corners included
LABELS = torch.tensor([[[1, 1, 0], [UNSURE, 2, 0]]], dtype=torch.uint8)
BOUNDARY = torch.tensor([[[0.5, 0.2, 0.1], [0.9, 0.4, 0.8]]])


def touches(offset, pixel):
    """Whether the segment from (0, 0) to an offset touches a pixel's square, clipped exactly."""
    low, high = Fraction(0), Fraction(1)
    for length, centre in zip(offset, pixel, strict=True):
        ends = [centre - Fraction(1, 2), centre + Fraction(1, 2)]
        if length == 0:
            if not ends[0] <= 0 <= ends[1]:
                return False
            continue
        near, far = sorted(end / length for end in ends)
        low, high = max(low, near), min(high, far)
    return low <= high


def brute_force(boundary, radius):
    """The affinity of each pair that lies inside, by pixel and offset."""
    height, width = boundary.shape
    found = {}
    for number, (dy, dx) in enumerate(half_plane(radius)):
        around = [(y, x) for y in range(-1, dy + 2) for x in range(-radius, radius + 1)]
        pixels = [pixel for pixel in around if touches((dy, dx), pixel)]
        for y in range(height - dy):
            for x in range(max(0, -dx), min(width, width - dx)):
                found[number, y, x] = 1 - max(boundary[y + j, x + i].item() for j, i in pixels)
    return found


def test_a_half_plane_holds_one_of_each_opposite_two_offsets():
    assert half_plane(2) == [(0, 1), (1, -1), (1, 0), (1, 1)]
    offsets = half_plane(10)
    both = {*offsets, *((-dy, -dx) for dy, dx in offsets)}
    inside = {(y, x) for y in range(-9, 10) for x in range(-9, 10) if 0 < y * y + x * x < 100}
    assert both == inside
    assert len(both) == 2 * len(offsets)


def test_the_affinity_loss_by_hand():
    logits = BOUNDARY.logit().requires_grad_()
    loss = affinity_loss(logits, pairs(LABELS, radius=2), radius=2)
    # -log a of the one foreground pair (highest boundary .5) and the one of background (.8), then
    # -log(1 - a) of the six: the sides .2, .8, .4; the corners see all four pixels: .8, .9, .8
    different = -sum(map(log, (0.2, 0.8, 0.4, 0.8, 0.9, 0.8))) / 6
    assert loss.item() == pytest.approx(-log(0.5) / 2 - log(0.2) / 2 + different, rel=1e-5)
    loss.backward()
    # the .1 is nowhere the highest; each -log B of the other sort pulls by B - 1, each -log a by B
    slope = [0.5 / 2, (0.2 - 1) / 6, 0, (0.9 - 1) / 6, (0.4 - 1) / 6, 0.8 / 2 + 3 * (0.8 - 1) / 6]
    torch.testing.assert_close(logits.grad.flatten(), torch.tensor(slope))


@pytest.mark.parametrize("label", [0, 1, UNSURE])
def test_a_kind_without_pairs_costs_nothing(label):
    labels = torch.full((1, 4, 4), label, dtype=torch.uint8)
    loss = affinity_loss(torch.zeros(1, 4, 4), pairs(labels, radius=2), radius=2)
    assert loss.item() == pytest.approx(0 if label == UNSURE else log(2) / 2)


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_gradients_are_finite_where_the_boundary_is_0_or_1(value):
    logits = torch.full((1, 2, 3), value).requires_grad_()
    assert logits.sigmoid().unique().item() in (0, 1)
    loss = affinity_loss(logits, pairs(LABELS, radius=2), radius=2)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    # a wrong one is still pulled back: up where classes differ, down where they are the same
    assert logits.grad.sum().item() == pytest.approx(-1 if value < 0 else 1)


def test_the_transition_matrix_by_hand():
    # affinities .5, .5 and, over the middle, .5 again; squared .25: every column sums to 1.5
    matrix = transition(torch.tensor([[0.0, 0.5, 0.0]]), radius=3, beta=2)
    expected = [[1, 0.25, 0.25], [0.25, 1, 0.25], [0.25, 0.25, 1]]
    np.testing.assert_allclose(matrix.toarray(), np.array(expected) / 1.5)
    # the map times 1 - boundary is 1, .5, 0
    spread = walk(torch.tensor([[[1.0, 1, 0]]]), torch.tensor([[0, 0.5, 0]]), 1, 3, 2)
    torch.testing.assert_close(spread, torch.tensor([[[1.125, 0.75, 0.375]]]) / 1.5)


@pytest.mark.parametrize("shape", [(3, 3), (2, 7), (6, 3), (9, 12)])
def test_the_matrix_holds_every_affinity_and_its_columns_sum_to_1(shape):
    boundary = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    boundary[2:, 1] = 1  # a wall with a gap
    expected = np.eye(boundary.numel())
    for (number, y, x), value in brute_force(boundary, 5).items():
        dy, dx = half_plane(5)[number]
        one, other = y * shape[1] + x, (y + dy) * shape[1] + x + dx
        expected[one, other] = expected[other, one] = value**10
    matrix = transition(boundary).toarray()
    np.testing.assert_allclose(matrix, expected / expected.sum(0), atol=1e-6)
    np.testing.assert_allclose(matrix.sum(0), 1)


def test_the_walk_is_the_matrix_squared_eight_times():
    generator = torch.Generator().manual_seed(0)
    boundary, maps = torch.rand(8, 9, generator=generator), torch.rand(2, 8, 9, generator=generator)
    power = np.linalg.matrix_power(transition(boundary).toarray(), 256)
    expected = (maps * (1 - boundary)).flatten(1).double().numpy() @ power
    np.testing.assert_allclose(walk(maps, boundary).flatten(1), expected, rtol=1e-6)
