"""What every attack keeps to: exact bounds, scores that never rise, seeds, batches; strength."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from config import UserError
from medood.attacks import apgd, cospgd, fab, noise, pgd, segpgd, square, worst_case
from medood.attacks.ascent import STEP
from medood.attacks.iterates import Task, image_dice
from medood.attacks.together import in_halves
from medood.evaluation.scores import confusion, scores_of
from tests.small_networks import (
    attacked,
    in_every_space,
    linear,
    scores,
    seeded,
    some_images,
    some_network,
    trained,
)

ATTACKS = {
    "noise": noise,
    "pgd": partial(pgd, steps=3),
    "segpgd": partial(segpgd, steps=3),
    "cospgd": partial(cospgd, steps=3),
    "apgd": partial(apgd, steps=5),
    "apgd dlr": partial(apgd, steps=5, loss="dlr"),
    "apgd masked_ce": partial(apgd, steps=5, loss="masked_ce"),
    "apgd masked_ce_balanced": partial(apgd, steps=5, loss="masked_ce_balanced"),
    "sea js": partial(apgd, steps=10, loss="js", sea=True),
    "fab": partial(fab, steps=3),
    "square": partial(square, queries=12),
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def test_the_score_by_hand_and_as_the_dsc_of_the_trunk():
    target = torch.tensor([[[0, 1, 1, 1]], [[0, 0, 0, 0]], [[2, 2, 0, 1]]])
    predicted = torch.tensor([[[1, 1, 1, 0]], [[0, 0, 1, 3]], [[0, 0, 3, 2]]])
    assert image_dice(predicted, target, 4).tolist() == pytest.approx([4 / 6, 0.5, 0])
    target, predicted = torch.randint(0, 5, (2, 6, 8, 8), generator=seeded())
    expected = scores_of(confusion(target, predicted, 5).numpy())["dsc"]
    np.testing.assert_allclose(image_dice(predicted, target, 5), expected)
    volumes = [each.view(6, 4, 2, 8) for each in (predicted, target)]
    np.testing.assert_allclose(image_dice(*volumes, 5), expected)


@every_attack
@in_every_space
@pytest.mark.parametrize("eps", [0.0, 8 / 255])
def test_no_value_leaves_the_bounds_by_a_bit(attack, space, eps):
    model, images, target = attacked(space)
    images[images == 0] = -0.0  # a zero keeps its sign where nothing may change
    found = attack(model, images, target, eps, generator=seeded())
    assert (found.shape, found.dtype) == (images.shape, torch.float32)
    assert (found - images).abs().max() <= eps
    assert (found.double() - images.double()).abs().max().item() <= eps
    assert ((found >= 0) & (found <= 1)).all()
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
    model, images, target = attacked()

    def overflowing(batch):
        root = (0 * batch[:, :1, :3]).square().sqrt()  # an infinite slope times 0
        return model(batch) + F.pad(root, (0, 0, 0, 6))

    start = noise(model, images, target, 8 / 255)
    found = pgd(overflowing, images, target, 8 / 255, steps=10)
    assert torch.equal(found[:, 0, :3], start[:, 0, :3])
    assert (found[:, 0, 3:] - images[:, 0, 3:]).abs().mean() > 0.9 * 8 / 255


@every_attack
def test_an_impossible_eps_and_images_out_of_their_range_are_refused(attack):
    model, images, target = attacked()
    for eps in (-0.1, 1.5, math.nan):
        with pytest.raises(UserError, match=r"eps = .* between 0 and the range of the images: set"):
            attack(model, images, target, eps)
    with pytest.raises(UserError, match=r"are outside 0 to 1: set low and high of each image"):
        attack(model, images - 0.5, target, 8 / 255)


def test_a_loss_that_does_not_fit_is_refused():
    (images, target), model = some_images((9, 7)), some_network((9, 7), classes=2)
    with pytest.raises(UserError, match="loss = 'cw' is unknown: set it to one of ce, dlr, masked"):
        apgd(model, images, target, 0.1, loss="cw")
    with pytest.raises(UserError, match="loss = 'dlr' needs 3 classes, and the network has 2"):
        apgd(model, images, target.clamp_max(1), 0.1, loss="dlr")


@every_attack
@in_every_space
def test_no_attack_raises_a_score_and_the_worst_case_is_below_all(attack, space):
    model, images, target = attacked(space)
    found = attack(model, images, target, 8 / 255, generator=seeded())
    before, after = scores(model, images, target), scores(model, found, target)
    if attack is not noise:
        assert (after <= before).all()
    drawn = noise(model, images, target, 8 / 255, generator=seeded(1))
    worst = scores(model, worst_case(model, images, target, [found, drawn]), target)
    for candidate in (images, found, drawn):
        assert (worst <= scores(model, candidate, target)).all()


@every_attack
def test_the_same_seed_gives_the_same_bytes_and_inputs_and_weights_stay(attack):
    model, images, target = attacked()
    before = images.clone(), target.clone()
    model[0].weight.requires_grad_(False)
    torch.manual_seed(1)
    first = attack(model, images, target, 8 / 255, generator=seeded(5))
    torch.manual_seed(2)  # no attack draws from torch's own generator
    with torch.no_grad():
        again = attack(model, images, target, 8 / 255, generator=seeded(5))
    assert torch.equal(first, again)
    if attack is noise:
        assert not torch.equal(first, attack(model, images, target, 8 / 255, generator=seeded(6)))
    assert all(map(torch.equal, (images, target), before))
    assert not again.requires_grad
    assert not images.requires_grad
    assert all(weight.grad is None for weight in model.parameters())
    assert [weight.requires_grad for weight in model.parameters()] == [False, True]


@every_attack
def test_what_is_broken_is_not_attacked(attack):
    """Of four images the first scores 0: the model sees it once, to know that, and no more."""
    (model, images, target), seen = attacked(count=4), []
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
    target = torch.ones(2, 4, 4, dtype=torch.long)

    def counting(batch):
        sizes.append(len(batch))
        return model(batch)

    found = apgd(counting, images, target, 0.02, steps=10)
    assert scores(model, found, target).tolist() == [0, 1]
    assert sizes[:2] == [2, 2]  # the images themselves, and random starts
    assert sizes[3:] == [1] * 9


@every_attack
def test_a_batch_that_does_not_fit_is_halved_and_meets_what_the_whole_meets(attack):
    model, images, target = attacked(count=5)
    sizes, most = [], 2

    def small(batch):
        sizes.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError
        return model(batch)

    def seeing(model, images, *given, **options):
        model(images)  # noise asks no network
        return attack(model, images, *given, **options)

    expected = attack(model, images, target, 8 / 255, generator=seeded(3))
    found = in_halves(seeing, small, images, target, 8 / 255, seeded(3))
    assert sizes[:3] == [5, 3, 2]
    assert torch.allclose(found, expected, atol=1e-6)
    most = 0
    with pytest.raises(UserError, match="too little memory to attack an image of 9 x 7 pixels"):
        in_halves(seeing, small, images, target, 8 / 255, seeded())


def test_apgd_is_at_least_as_strong_as_pgd_and_noise_does_nothing():
    model, images, target = trained()

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


def test_pgd_takes_the_steps_of_foolbox(monkeypatch):
    """From the image itself, as each draws random starts in its own way; on the mean of pixels."""
    import eagerpy
    import foolbox

    class OfPixels(foolbox.attacks.LinfProjectedGradientDescentAttack):
        def get_loss_fn(self, model, labels):
            return lambda x: eagerpy.astensor(F.cross_entropy(model(x).raw, labels.raw))

    model, images, target = trained()
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    theirs = OfPixels(rel_stepsize=STEP, steps=3, random_start=False).run(
        wrapped, images, foolbox.criteria.Misclassification(target), epsilon=8 / 255
    )
    monkeypatch.setattr(Task, "random_start", lambda task, _: task.images)
    ours = pgd(model, images, target, 8 / 255, steps=3)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
