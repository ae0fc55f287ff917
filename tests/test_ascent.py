"""Attacks that climb a loss: closed forms, losses and schedules worked by hand."""

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from medood.attacks import ascent
from medood.attacks.ascent import AdaptiveStep, apgd, cospgd, pgd, segpgd
from medood.attacks.iterates import bounded
from tests.small_networks import attacked, in_every_space, linear, seeded

RUNS = {"pgd": (pgd, {}), "segpgd": (segpgd, {}), "cospgd": (cospgd, {}), "apgd": (apgd, {})}
RUNS |= {loss: (apgd, {"loss": loss}) for loss in ascent.SEA_LOSSES}
RUNS |= {f"sea_{loss}": (apgd, {"loss": loss, "sea": True}) for loss in ascent.SEA_LOSSES}


@pytest.mark.parametrize("attack", RUNS)
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
    run, options = RUNS[attack]
    found = run(model, images, target, 0.01, steps=40, generator=seeded(), **options)
    right = model(expected).argmax(1) == target  # the others have no gradient under masked_ce
    wanted = right[:, None].expand_as(images) if "masked" in attack else slice(None)
    assert (found - expected)[wanted].abs().max() < 1e-4


def by_hand(loss, logits, target, share=0.0):
    """The loss of each pixel; logits (K, H, W), target (H, W)."""
    logits, target = torch.tensor(logits)[None], torch.tensor(target)[None]
    task = bounded(torch.zeros(1, 1, *target.shape[1:]), target, 0.0, 0.0, 1.0)
    right = logits.argmax(1) == target
    return loss(logits, task, right, share)[0].flatten().tolist()


# two classes, 2 x 2 pixels of probabilities .5 + x: right, wrong, wrong, right
PROBABILITY = torch.tensor([[[0.8, 0.4], [0.7, 0.4]], [[0.2, 0.6], [0.3, 0.6]]])
LOGITS, TRUTH = PROBABILITY.log().tolist(), [[0, 0], [1, 1]]
OF_TRUTH = (0.8, 0.4, 0.3, 0.6)
ENTROPY = [-math.log(p) for p in OF_TRUTH]


@pytest.mark.parametrize(
    ("loss", "share", "weights"),
    [
        # right pixels first, then wrong ones more and more
        (ascent.segpgd_loss, 0.0, (1, 0, 0, 1)),
        (ascent.segpgd_loss, 0.5, (1, 0.25 / 0.75, 0.25 / 0.75, 1)),
        # the cosine to the truth
        (ascent.cospgd_loss, 0.0, [p / math.hypot(p, 1 - p) for p in OF_TRUTH]),
        # wrong pixels count as the most that a right one can, log 2
        (ascent.masked_cross_entropy, 0.0, (1, math.log(2, 1 / 0.4), math.log(2, 1 / 0.3), 1)),
    ],
)
def test_losses_weigh_the_cross_entropy_of_each_pixel(loss, share, weights):
    expected = [weight * entropy for weight, entropy in zip(weights, ENTROPY, strict=True)]
    assert by_hand(loss, LOGITS, TRUTH, share) == pytest.approx(expected)


def test_balanced_masked_cross_entropy_lets_each_class_of_the_image_weigh_alike():
    """Of four pixels three are of class 0 and one of class 1: they weigh 4 / 6 and 4 / 2."""
    loss, most = ascent.balanced_masked_cross_entropy, math.log(2)
    of_0, of_1 = 4 / (2 * 3), 4 / (2 * 1)  # the second pixel alone is wrong
    expected = [of_0 * ENTROPY[0], of_0 * most, of_0 * -math.log(0.7), of_1 * ENTROPY[3]]
    assert by_hand(loss, LOGITS, [[0, 0], [0, 1]]) == pytest.approx(expected)
    # an unsure pixel counts the most, and for no class; class 1 is wrong
    of_0, of_1 = 3 / (2 * 2), 3 / (2 * 1)
    expected = [of_0 * ENTROPY[0], most, of_1 * most, of_0 * most]
    assert by_hand(loss, LOGITS, [[0, 255], [1, 0]]) == pytest.approx(expected)


def test_the_divergence_of_jensen_and_shannon_is_that_of_scipy():
    """Half of KL(p | m) and half of KL(q | m), m the mean of both; q is one-hot."""
    expected = [jensenshannon([p, 1 - p], [1, 0]) ** 2 for p in OF_TRUTH]  # SciPy's is the root
    assert by_hand(ascent.jensen_shannon, LOGITS, TRUTH) == pytest.approx(expected, abs=1e-6)
    assert by_hand(ascent.jensen_shannon, LOGITS, [[0, 255], [1, 1]])[1] == 0
    sure = [[[-90.0]], [[90.0]]]  # wrong for sure: log 2, and no NaN
    assert by_hand(ascent.jensen_shannon, sure, [[0]]) == pytest.approx([math.log(2)])


def test_dlr_by_hand():
    # logits 5, 3, 1, 0: of a right pixel -(5 - 3) / (5 - 1), of a wrong one -(3 - 5) / (5 - 1)
    logits = [[[5.0, 5.0]], [[3.0, 3.0]], [[1.0, 1.0]], [[0.0, 0.0]]]
    assert by_hand(ascent.dlr, logits, [[0, 1]]) == pytest.approx([-0.5, 0.5])


def test_the_checkpoints_of_apgd_and_the_stages_of_sea():
    assert ascent.checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert ascent.checkpoints(10) == [0, 3, 5, 6, 7, 8, 9, 10, 10]
    assert ascent.sea_stages(300) == [(2.0, 90), (1.5, 90), (1.0, 120)]
    assert ascent.sea_stages(1) == [(1.0, 1)]


def test_the_stages_of_sea_go_further_than_eps_first_and_end_within():
    (model, images, target), distances = attacked(count=1), []

    def watched(batch):
        distances.append((batch - images).abs().max().item())
        return model(batch)

    apgd(watched, images, target, 0.02, steps=20, sea=True, loss="js", generator=seeded())
    farthest = [max(distances[start:end]) for start, end in ((0, 1), (1, 8), (8, 15), (15, 24))]
    assert farthest == pytest.approx([0, 0.04, 0.03, 0.02])
    assert len(distances) == 24


def test_apgd_halves_its_step_where_it_did_not_serve_and_goes_back_to_the_top():
    """The marks of ten steps are 0, 3, 5, 6, ...: three of three steps serve, then one of two."""
    images = torch.full((1, 1, 1, 1), 0.5)
    task = bounded(images, torch.zeros(1, 1, 1, dtype=torch.long), 0.1, 0.0, 1.0)
    mover, sizes = AdaptiveStep(task, 10), []
    places = [torch.full_like(images, 0.5 + 0.01 * step) for step in range(7)]
    for step, loss in enumerate([0.0, 1, 2, 3, 4, 3.5, 3.8]):
        moved = mover.move(step, places[step], torch.tensor([loss]), torch.ones_like(images))
        sizes.append(mover.size.item())
        if step == 5:  # back to 0.54, with half the step: a quarter of the momentum from there
            ahead = min(0.54 + 0.1, 0.6)
            expected = 0.54 + 0.75 * (ahead - 0.54) + 0.25 * (0.54 - 0.54)
            assert moved.item() == pytest.approx(expected)
    assert sizes == [2, 2, 2, 2, 2, 1, 1]  # at 6, it was halved a mark ago: the top may stand
