"""The attacks: closed forms, exact bounds, and steps worked by hand."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from config import UserError
from medood.evaluation.scores import confusion, scores_of
from robust import attacks
from robust.attacks import (
    AdaptiveStep,
    Nearest,
    apgd,
    bounded,
    clean,
    cospgd,
    fab,
    image_dice,
    in_batches,
    noise,
    pgd,
    segpgd,
    square,
    worst_case,
)

ATTACKS = {
    "noise": noise,
    "pgd": partial(pgd, steps=3, restarts=2),
    "segpgd": partial(segpgd, steps=3),
    "cospgd": partial(cospgd, steps=3),
    "apgd": partial(apgd, steps=5, restarts=2),
    "apgd dlr": partial(apgd, steps=5, loss="dlr"),
    "apgd masked_ce": partial(apgd, steps=5, loss="masked_ce"),
    "sea": partial(apgd, steps=10, sea=True),
    "fab": partial(fab, steps=3, restarts=2),
    "square": partial(square, queries=12),
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
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


@pytest.fixture(scope="module")
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


# ---------------------------------------------------------------- the score


def test_the_score_by_hand():
    target = torch.tensor([[[0, 1, 1, 1]], [[0, 0, 0, 0]], [[2, 2, 0, 1]]])
    predicted = torch.tensor([[[1, 1, 1, 0]], [[0, 0, 1, 3]], [[0, 0, 3, 2]]])
    assert image_dice(predicted, target, 4).tolist() == pytest.approx([4 / 6, 0.5, 0])


def test_the_score_is_the_dsc_of_the_trunk():
    target, predicted = torch.randint(0, 5, (2, 6, 8, 8), generator=seeded())
    expected = scores_of(confusion(target, predicted, 5).numpy())["dsc"]
    np.testing.assert_allclose(image_dice(predicted, target, 5), expected)
    volumes = [each.view(6, 4, 2, 8) for each in (predicted, target)]
    np.testing.assert_allclose(image_dice(*volumes, 5), expected)


# ---------------------------------------------------------------- bounds


@every_attack
@in_every_space
@pytest.mark.parametrize("eps", [0.0, 2 / 255, 8 / 255])
def test_no_value_leaves_the_bounds_by_a_bit(attack, space, eps):
    images, target = some_images(space)
    found = attack(some_network(space), images, target, eps, generator=seeded())
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    assert (found - images).abs().max() <= eps
    assert (found.double() - images.double()).abs().max().item() <= eps
    assert found.min() >= 0
    assert found.max() <= 1
    if eps == 0:
        assert torch.equal(found.view(torch.int32), images.view(torch.int32))
    else:
        assert not torch.equal(found, images)


@every_attack
@in_every_space
def test_bounds_of_each_image_and_channel(attack, space):
    """As of volumes in raw units: eps is 8/255 of each range, and a constant channel stays."""
    images, _ = some_images(space)
    scale = torch.tensor([[1, 700.0, 0], [3, 5, 7], [0.1, 2000, 1]]).view(3, 3, *[1] * len(space))
    raw = scale * images - scale / 3
    model = some_network(space)
    target = model(raw).argmax(1)
    low, high = (end(raw.flatten(2), 2).view_as(scale) for end in (torch.amin, torch.amax))
    eps = 8 / 255 * (high - low)
    found = attack(model, raw, target, eps, low=low, high=high, generator=seeded())
    assert ((found.double() - raw.double()).abs() <= eps.double()).all()
    assert ((low <= found) & (found <= high)).all()
    assert torch.equal(found[0, 2], raw[0, 2])
    assert (found != raw).flatten(1).any(1).all()


def test_pixels_whose_gradient_overflows_stay_and_the_others_move():
    images, target = some_images((9, 7))
    model = some_network((9, 7))

    def overflowing(batch):
        root = (0 * batch[:, :1, :3]).square().sqrt()  # an infinite slope times 0
        return model(batch) + F.pad(root, (0, 0, 0, 6))

    start = noise(model, images, target, 8 / 255)
    found = pgd(overflowing, images, target, 8 / 255, steps=10)
    assert torch.equal(found[:, 0, :3], start[:, 0, :3])
    assert (found[:, 0, 3:] - images[:, 0, 3:]).abs().mean() > 0.9 * 8 / 255


def test_zero_keeps_its_sign_where_nothing_may_change():
    images = torch.full((1, 3, 4, 4), -0.0)
    target = torch.ones(1, 4, 4, dtype=torch.long)
    for attack in ATTACKS.values():
        found = attack(some_network((4, 4)), images, target, 0.0, generator=seeded())
        assert found.signbit().all()


@pytest.mark.parametrize("eps", [-0.1, 1.5, math.nan])
@every_attack
def test_an_impossible_eps_is_refused(attack, eps):
    images, target = some_images((9, 7))
    with pytest.raises(UserError, match=r"eps = .* between 0 and the range of the images: give it"):
        attack(some_network((9, 7)), images, target, eps)


@every_attack
def test_images_out_of_their_range_are_refused(attack):
    images, target = some_images((9, 7))
    z_scored = (images - images.mean()) / images.std()
    with pytest.raises(UserError, match=r"lie outside 0 to 1: give low and high of each image"):
        attack(some_network((9, 7)), z_scored, target, 8 / 255)


def test_a_loss_that_does_not_fit_is_refused():
    images, target = some_images((9, 7))
    with pytest.raises(
        UserError, match="loss = 'cw' is unknown: give ce, dlr, masked_ce, segpgd, cospgd"
    ):
        apgd(some_network((9, 7)), images, target, 0.1, loss="cw")
    model = some_network((9, 7), classes=2)
    with pytest.raises(UserError, match="loss = 'dlr' needs 3 classes, and the network has 2"):
        apgd(model, images, target.clamp_max(1), 0.1, loss="dlr")


# ---------------------------------------------------------------- what every attack keeps to


@every_attack
@in_every_space
def test_no_attack_raises_a_score_and_the_worst_case_is_below_all(attack, space):
    images, target = some_images(space)
    model = some_network(space)
    found = attack(model, images, target, 8 / 255, generator=seeded())
    before, after = scores(model, images, target), scores(model, found, target)
    if attack is not noise:
        assert (after <= before).all()
    drawn = noise(model, images, target, 8 / 255, generator=seeded(1))
    worst = scores(model, worst_case(model, images, target, [found, drawn]), target)
    for candidate in (images, found, drawn):
        assert (worst <= scores(model, candidate, target)).all()


@every_attack
def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(attack):
    images, target = some_images((9, 7))
    model = some_network((9, 7))
    torch.manual_seed(1)
    first = attack(model, images, target, 8 / 255, generator=seeded(5))
    torch.manual_seed(2)  # no attack draws from torch's own generator
    again = attack(model, images, target, 8 / 255, generator=seeded(5))
    assert torch.equal(first, again)
    assert not torch.equal(
        noise(model, images, target, 8 / 255, generator=seeded(5)),
        noise(model, images, target, 8 / 255, generator=seeded(6)),
    )


@every_attack
def test_an_attack_leaves_inputs_and_weights_alone_even_under_no_grad(attack):
    images, target = some_images((9, 7))
    model, before = some_network((9, 7)), (images.clone(), target.clone())
    model[0].weight.requires_grad_(False)
    needed = [weight.requires_grad for weight in model.parameters()]
    with torch.no_grad():
        found = attack(model, images, target, 8 / 255)
    assert torch.equal(images, before[0])
    assert torch.equal(target, before[1])
    assert not found.requires_grad
    assert not images.requires_grad
    assert all(weight.grad is None for weight in model.parameters())
    assert [weight.requires_grad for weight in model.parameters()] == needed


@every_attack
def test_what_is_broken_is_not_attacked(attack):
    """Of four images the first scores 0: the model sees it once, to know that, and no more."""
    images, target = some_images((9, 7), count=4)
    model, seen = some_network((9, 7)), []
    target[0] = 1 + (model(images[:1]).argmax(1)[0] == 1).long()  # never what it is called

    def counting(batch):
        seen.append((batch - images[:1]).abs().flatten(1).amax(1) <= 8 / 255)
        return model(batch)

    found = attack(counting, images, target, 8 / 255)
    if attack is not noise:
        assert sum(int(each.sum()) for each in seen) == 1
        assert torch.equal(found[0], images[0])
        assert not torch.equal(found[1:], images[1:])


def test_an_image_that_breaks_on_the_way_leaves_the_batch():
    model, sizes = linear([[0.0], [1.0]], [0.0, -0.5]), []
    images = torch.tensor([0.501, 0.9]).view(2, 1, 1, 1).expand(2, 1, 4, 4)

    def counting(batch):
        sizes.append(len(batch))
        return model(batch)

    found = apgd(counting, images, torch.ones(2, 4, 4, dtype=torch.long), 0.02, steps=10)
    assert scores(model, found, torch.ones(2, 4, 4, dtype=torch.long)).tolist() == [0, 1]
    assert sizes[:2] == [2, 2]  # the images themselves, and random starts
    assert sizes[3:] == [1] * 9


@pytest.mark.parametrize("attack", [apgd, fab, square, pgd])
def test_an_attack_ends_when_every_image_is_broken(attack):
    model = linear([[0.0], [1.0]], [0.0, -0.5])
    images, target = torch.full((2, 1, 4, 4), 0.501), torch.ones(2, 4, 4, dtype=torch.long)
    found = attack(model, images, target, 0.02)
    assert scores(model, found, target).tolist() == [0, 0]


def test_halves_of_a_batch_meet_what_the_whole_meets():
    images, target = some_images((9, 7), count=5)
    model = some_network((9, 7))
    for attack in ATTACKS.values():
        whole = attack(model, images, target, 8 / 255, generator=seeded(3))
        parts = in_batches(attack, 2)(model, images, target, 8 / 255, generator=seeded(3))
        assert torch.allclose(whole, parts, atol=1e-6)


@pytest.mark.parametrize("attack", [partial(apgd, steps=2), partial(square, queries=5)])
def test_a_batch_that_does_not_fit_is_halved(attack):
    images, target = some_images((9, 7), count=5)
    model, sizes = some_network((9, 7)), []

    def small(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return model(batch)

    expected = attack(model, images, target, 8 / 255, generator=seeded(3))
    found = in_batches(attack, 5)(small, images, target, 8 / 255, generator=seeded(3))
    assert sizes[:3] == [5, 3, 2]
    assert torch.allclose(found, expected, atol=1e-6)

    def none(batch):
        raise torch.OutOfMemoryError

    with pytest.raises(UserError, match="no memory to attack an image of 9 x 7 pixels"):
        in_batches(attack, 5)(none, images, target, 8 / 255)


# ---------------------------------------------------------------- closed forms


@pytest.mark.parametrize("attack", ["pgd", "apgd", "segpgd", "cospgd", "masked_ce", "sea"])
@in_every_space
def test_a_linear_network_is_attacked_as_well_as_can_be(attack, space):
    """The best change is eps * sign(w_wrong - w_true), cut at the range."""
    model = linear([[2.0, -1.0, 0.5], [-1.0, 1.0, 1.5]], [0.0, 0.3])
    images = torch.rand(2, 3, *space, generator=seeded())
    images[0, 0, 0], images[0, 1, 1] = 0.0, 1.0  # at the ends
    target = model(images).argmax(1)
    assert len(target.unique()) == 2
    towards_1 = torch.tensor([-1.0, 1.0, 1.0]).view(3, *[1] * len(space))
    direction = torch.where(target[:, None] == 0, towards_1, -towards_1)
    expected = (images + 0.01 * direction).clamp(0, 1)
    run = {"pgd": pgd, "segpgd": segpgd, "cospgd": cospgd}.get(attack, apgd)
    options = {"masked_ce": {"loss": "masked_ce"}, "sea": {"sea": True}}.get(attack, {})
    found = run(model, images, target, 0.01, steps=40, generator=seeded(), **options)
    right = model(expected).argmax(1) == target  # the others have no gradient under masked_ce
    wanted = right[:, None].expand_as(images) if attack == "masked_ce" else slice(None)
    assert (found - expected)[wanted].abs().max() < 1e-4


@in_every_space
def test_fab_finds_the_nearest_boundary_and_comes_nearer(space):
    """A linear mean margin m with slopes g is 0 at the distance |m| / sum |g|."""
    model = linear([[1.0, -1.0], [-1.0, 0.5]], [0.0, 0.0])
    images = torch.rand(2, 2, *space, generator=seeded()) * 0.2 + 0.4
    images[:, 0] += 0.2
    target = torch.zeros(2, *space, dtype=torch.long)
    task = bounded(images, target, 0.001, 0.0, 1.0)
    task = attacks.GoalTask(**vars(task), goal=torch.ones_like(target))
    logits = model(images)
    exact = (logits[:, 0] - logits[:, 1]).flatten(1).mean(1) / 3.5
    distances = []
    for steps in (1, 2, 3, 6, 12):
        found = Nearest.beside(clean(model, task, attacks.goal_margin), task)
        step = attacks.BoundaryStep(task)
        attacks.walk(model, task, images, found, attacks.goal_margin, step, steps)
        distances.append(0.001 * found.distance)
        reached = (found.nearest - images).abs().flatten(1).amax(1)
        torch.testing.assert_close(distances[-1], reached, rtol=1e-3, atol=0)
    assert all((later <= earlier).all() for earlier, later in pairwise(distances))
    torch.testing.assert_close(distances[0], 1.05 * exact, rtol=1e-3, atol=0)
    torch.testing.assert_close(distances[-1], exact, rtol=0.01, atol=0)


def test_fab_takes_what_came_closest_where_the_boundary_is_out_of_reach():
    """One pixel of ten is foreground: all others cannot turn, and outweigh it in the mean."""
    bias = torch.tensor([4.5, *[100.0] * 9]).view(1, 1, 10)

    def model(images):
        return torch.cat([torch.zeros_like(images), 10 * images - bias], 1)

    images = torch.full((1, 1, 10), 0.5)
    target = torch.tensor([[1, *[0] * 9]])
    found = fab(model, images, target, 0.1, steps=3)
    assert image_dice(model(found).argmax(1), target, 2).item() == 0


def test_the_way_to_a_plane_goes_round_the_ends_of_the_range():
    """Slopes 3 and 1; the first value has room for 0.1 only, so the second moves by 0.7."""
    start = torch.tensor([0.9, 0.0]).view(1, 2, 1, 1)
    task = bounded(start, torch.zeros(1, 1, 1, dtype=torch.long), 0.01, 0.0, 1.0)
    gradient = torch.tensor([3.0, 1.0]).view(1, 2, 1, 1)
    change = attacks.to_plane(task, start, gradient, torch.tensor([-1.0]))
    assert change.flatten().tolist() == pytest.approx([0.1, 0.7])
    change = attacks.to_plane(task, start, gradient, torch.tensor([-9.0]))  # out of reach
    assert change.flatten().tolist() == pytest.approx([0.1, 1.0])


# ---------------------------------------------------------------- losses and schedules


def by_hand(loss, logits, target, share=0.0):
    """The loss of each pixel; logits (K, H, W), target (H, W)."""
    logits, target = torch.tensor(logits)[None], torch.tensor(target)[None]
    task = bounded(torch.zeros(1, 1, *target.shape[1:]), target, 0.0, 0.0, 1.0)
    right = logits.argmax(1) == target
    return loss(logits, task, right, share)[0].flatten().tolist()


# two classes, 2 x 2 pixels of probabilities .5 + x: right, wrong, wrong, right
PROBABILITY = torch.tensor([[[0.8, 0.4], [0.7, 0.4]], [[0.2, 0.6], [0.3, 0.6]]])
LOGITS, TRUTH = PROBABILITY.log().tolist(), [[0, 0], [1, 1]]
ENTROPY = [-math.log(p) for p in (0.8, 0.4, 0.3, 0.6)]


def test_segpgd_weighs_right_pixels_first():
    for share, wrong in ((0.0, 0.0), (0.5, 0.25 / 0.75)):
        weights = (1.0, wrong, wrong, 1.0)
        expected = [weight * entropy for weight, entropy in zip(weights, ENTROPY, strict=True)]
        assert by_hand(attacks.segpgd_loss, LOGITS, TRUTH, share) == pytest.approx(expected)


def test_cospgd_weighs_by_the_cosine_to_the_truth():
    cosines = [a / math.hypot(a, 1 - a) for a in (0.8, 0.4, 0.3, 0.6)]
    expected = [cosine * entropy for cosine, entropy in zip(cosines, ENTROPY, strict=True)]
    assert by_hand(attacks.cospgd_loss, LOGITS, TRUTH) == pytest.approx(expected)


def test_masked_cross_entropy_counts_wrong_pixels_as_the_most():
    expected = [ENTROPY[0], math.log(2), math.log(2), ENTROPY[3]]
    loss = attacks.masked_cross_entropy
    assert by_hand(loss, LOGITS, TRUTH) == pytest.approx(expected)


def test_the_objective_of_square_is_the_score_of_sure_predictions():
    target, predicted = torch.randint(0, 3, (2, 4, 6, 6), generator=seeded())
    target[0], target[1] = 0, target[1].clamp_max(1)  # no foreground, and one class of two
    logits = 50 * F.one_hot(predicted, 3).movedim(-1, 1).float()
    task = bounded(torch.zeros(4, 1, 6, 6), target, 0.0, 0.0, 1.0)
    loss = attacks.soft_dice_loss(logits, task)[1:, 0]
    expected = 1 - image_dice(predicted, target, 3)[1:].float()
    torch.testing.assert_close(loss, expected)


def test_dlr_by_hand():
    # logits 5, 3, 1, 0: of a right pixel -(5 - 3) / (5 - 1), of a wrong one -(3 - 5) / (5 - 1)
    logits = [[[5.0, 5.0]], [[3.0, 3.0]], [[1.0, 1.0]], [[0.0, 0.0]]]
    assert by_hand(attacks.dlr, logits, [[0, 1]]) == pytest.approx([-0.5, 0.5])


def test_the_checkpoints_of_apgd():
    assert attacks.checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert attacks.checkpoints(10) == [0, 3, 5, 6, 7, 8, 9, 10, 10]


def test_the_stages_of_sea():
    assert attacks.sea_stages(300) == [(2.0, 90), (1.5, 90), (1.0, 120)]
    assert attacks.sea_stages(1) == [(1.0, 1)]


def test_the_stages_of_sea_go_further_than_eps_first_and_end_within():
    images, target = some_images((9, 7), count=1)
    model, distances = some_network((9, 7)), []

    def watched(batch):
        distances.append((batch - images).abs().max().item())
        return model(batch)

    apgd(watched, images, target, 0.02, steps=20, sea=True, generator=seeded())
    clean_one, wide, less, last = (
        distances[:1],
        distances[1:8],
        distances[8:15],
        distances[15:],
    )
    assert clean_one == [0]
    assert max(wide) == pytest.approx(0.04)
    assert max(less) == pytest.approx(0.03)
    assert max(last) == pytest.approx(0.02)
    assert len(last) == 9


def test_the_highest_loss_of_apgd_never_falls_and_its_step_shrinks(trained):
    model, images, target = trained
    task, tops, sizes = bounded(images, target, 8 / 255, 0.0, 1.0), [], []

    class Watched(AdaptiveStep):
        def move(self, *iterate):
            moved = super().move(*iterate)
            tops.append(self.top_loss)
            sizes.append(self.size)
            return moved

    mover, best = Watched.at_start(task, 40), clean(model, task, attacks.cross_entropy)
    attacks.walk(model, task, images, best, attacks.cross_entropy, mover, 40)
    assert len(tops) == 40
    assert all((later >= earlier).all() for earlier, later in pairwise(tops))
    assert (tops[-1] > tops[0]).all()
    assert (sizes[0] == 2).all()
    assert (sizes[-1] < 1).all()


def test_apgd_halves_its_step_where_it_did_not_serve_and_goes_back_to_the_top():
    """The marks of ten steps are 0, 3, 5, 6, ...: three of three steps serve, then one of two."""
    images = torch.full((1, 1, 1, 1), 0.5)
    task = bounded(images, torch.zeros(1, 1, 1, dtype=torch.long), 0.1, 0.0, 1.0)
    mover, sizes = AdaptiveStep.at_start(task, 10), []
    places = [torch.full_like(images, 0.5 + 0.01 * step) for step in range(7)]
    for step, loss in enumerate([0.0, 1, 2, 3, 4, 3.5, 3.8]):
        moved = mover.move(step, places[step], torch.tensor([loss]), torch.ones_like(images))
        sizes.append(mover.size.item())
        if step == 5:  # back to 0.54, with half the step: a quarter of the momentum from there
            ahead = min(0.54 + 0.1, 0.6)
            expected = 0.54 + 0.75 * (ahead - 0.54) + 0.25 * (0.54 - 0.54)
            assert moved.item() == pytest.approx(expected)
    assert sizes == [2, 2, 2, 2, 2, 1, 1]  # at 6, it was halved a mark ago: the top may stand


def test_the_windows_of_square_shrink_with_the_queries():
    share = partial(attacks.window_share, queries=1000)
    assert [share(query) for query in (1, 2, 5, 6, 800, 999)] == [
        *(0.8, 0.4, 0.4, 0.2),
        *(0.8 / 256, 0.8 / 512),
    ]


@in_every_space
def test_a_window_is_a_square_or_a_cube_at_the_ends_of_eps(space):
    images, target = torch.full((2, 3, *space), 0.5), torch.zeros(2, *space, dtype=torch.long)
    task = bounded(images, target, 0.1, 0.0, 1.0)
    chances = torch.rand(2, 1, len(space) + 3, generator=seeded())
    search = attacks.Search(task, images, torch.zeros(2), chances)
    side = 3
    changed = search.propose(0, side ** len(space) / math.prod(space)) != images
    assert changed.flatten(2).sum(2).tolist() == [[side ** len(space)] * 3] * 2
    for axis in range(len(space)):
        others = [i for i in range(1, len(space) + 1) if i != axis + 1]
        assert (changed[:, 0].any(others[0]) if len(others) == 1 else changed[:, 0].any(1)).any()
    ends = search.propose(0, 1.0)
    assert ((ends == task.lower) | (ends == task.upper) | (ends == images)).all()


def test_square_asks_for_no_gradient_and_counts_its_queries():
    images, target = some_images((9, 7))
    model, seen = some_network((9, 7)), []

    def black_box(batch):
        if torch.is_grad_enabled():
            raise AssertionError("a gradient was asked for")
        seen.append(len(batch))
        return model(batch)

    found = square(black_box, images, target, 8 / 255, queries=30, generator=seeded())
    assert seen == [3] * 30
    assert (scores(model, found, target) < scores(model, images, target)).any()


# ---------------------------------------------------------------- strength


def test_apgd_is_at_least_as_strong_as_pgd_and_noise_does_nothing(trained):
    model, images, target = trained

    def score(attack, **options):
        found = attack(model, images, target, 8 / 255, generator=seeded(), **options)
        return scores(model, found, target).mean()

    clean_score = scores(model, images, target).mean()
    assert clean_score > 0.9
    assert score(noise) > clean_score - 0.05
    plain = score(pgd, steps=20)
    assert plain < clean_score - 0.3
    for attack in (segpgd, cospgd, apgd):
        assert score(attack, steps=20) < plain + 0.01
    assert score(square, queries=100) < clean_score - 0.05
    assert score(fab, steps=10) < clean_score - 0.1


def test_apgd_is_at_least_as_strong_as_the_pgd_of_torchattacks(trained):
    torchattacks = pytest.importorskip("torchattacks")
    model, images, target = trained
    torch.manual_seed(0)
    theirs = torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=20)(images, target)
    ours = apgd(model, images, target, 8 / 255, steps=20, generator=seeded())
    theirs, ours = (scores(model, found, target).mean() for found in (theirs, ours))
    assert ours < theirs + 0.01
