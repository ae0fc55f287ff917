"""The table of a network under attack: the worst case of a data set, resuming, bad input."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import nn

from config import UserError
from medood.attacks import apgd, evaluate
from medood.attacks.measuring import greedy
from medood.pixels import scores_of
from tests.small_networks import attacked, in_every_space, linear, trained

SHORT = {"steps": 3, "queries": 4, "progress": False}


def pixels(hit, missed, invented):
    """Counts of one foreground class: found, called background, background called so."""
    return [[0, invented], [missed, hit]]


def test_the_worst_case_of_three_images_by_hand():
    """Two attacks of three images. Of the large image, attack 0 leaves the lower IoU; of the small
    ones attack 1. Image by image the IoU is (40 + 0 + 0) / 120. In the sums the errors of attack 0
    count for more in the second image, and those of attack 1 in the third:

    image 0: 40 / 100 or 50 / 100; image 1: 5 / 40 (30 invented) or 0 / 10; image 2: 0 / 10 or
    1 / 20.
    From (40 + 0 + 0) / (100 + 10 + 10) = .333, image 1 by attack 0 gives 45 / 150 = .300, then
    image 2 by attack 1 would give 46 / 160 = .2875.
    """
    attack_0 = [pixels(40, 60, 0), pixels(5, 5, 30), pixels(0, 10, 0)]
    attack_1 = [pixels(50, 50, 0), pixels(0, 10, 0), pixels(1, 9, 10)]
    matrices = np.array([attack_0, attack_1])
    image_by_image = np.array([0, 1, 0])
    choice = greedy(matrices, image_by_image)
    assert choice.tolist() == [0, 0, 1]
    assert scores_of(matrices[choice, range(3)].sum(0))["miou"] == pytest.approx(46 / 160)
    assert image_by_image.tolist() == [0, 1, 0]  # as it was
    nothing = np.array([[[[9, 1], [0, 0]]], [[[5, 5], [0, 0]]]])  # no foreground: no worst case
    assert greedy(nothing, np.array([1])).tolist() == [1]


@in_every_space
def test_the_table_has_a_row_for_each_attack_and_both_worst_cases(space):
    model, images, target = attacked(space, count=4)
    table = evaluate(model, [(images[:3], target[:3]), (images[3:], target[3:])], 8 / 255, **SHORT)
    of = {row["attack"]: row for row in table}
    sea = ["sea_masked_ce_balanced", "sea_masked_ce", "sea_js"]
    attacks = ["noise", "apgd_ce", "apgd_dlr", *sea, "fab", "square", "sea"]
    assert list(of) == ["clean", *attacks, "worst_case", "worst_case_greedy"]
    assert of["worst_case_greedy"]["miou"] <= of["worst_case"]["miou"] <= of["clean"]["miou"]
    assert of["sea"]["miou"] <= min(of[name]["miou"] for name in sea) + 1e-12
    assert 0 < of["square"]["largest_change"] <= 8 / 255
    expected = scores_of(_matrix(model, images, target))
    for name in ("miou", "fg_to_bg"):
        assert of["clean"][name] == pytest.approx(float(expected[name]))
    assert len(str(table).splitlines()) == len(table) + 2


def _matrix(model, images, target):
    predicted = model(images).argmax(1)
    return confusion_matrix(target.flatten(), predicted.flatten(), labels=range(3))


def test_a_network_of_two_classes_a_single_attack_and_another_range():
    """A linear network of one value, in 0..255: its optimum is known. Targets with an axis more."""
    model = linear([[0.0], [1.0]], [0.0, -100.0])
    images = torch.tensor([101.0, 99.0, 120.0, 80.0]).view(1, 1, 2, 2)
    target = torch.tensor([[1, 0], [1, 0]])[None, None]
    loader = [(images, target)]
    clean, ours, *_ = evaluate(model, loader, 2.0, "apgd_ce", high=255.0, **SHORT)
    assert (clean["miou"], clean["fg_to_bg"]) == (1, 0)
    assert (ours["fg_to_bg"], ours["bg_to_fg"], ours["largest_change"]) == (0.5, 0.5, 2.0)
    attacks = [row["attack"] for row in evaluate(model, loader, 2.0, high=255.0, **SHORT)]
    assert "apgd_dlr" not in attacks


def test_a_run_that_was_stopped_goes_on_and_gives_the_same_table(tmp_path):
    model, images, target = trained()
    loader = list(zip(images.split(2), target.split(2), strict=True))
    options = {"attacks": ["apgd_js", "square"], "folder": tmp_path / "parts", **SHORT}
    expected = evaluate(model, loader, **options | {"folder": None})

    def stopping():
        yield from loader[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, stopping(), **options)
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["0.pt", "1.pt"]
    (tmp_path / "parts" / "1.pt").write_bytes(b"cut off")
    sizes = []
    with model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0]))):
        assert evaluate(model, loader, **options) == expected
        assert len(sizes) > 1
        sizes.clear()
        assert evaluate(model, loader, **options) == expected
        assert len(sizes) == 1  # how many classes there are
    assert evaluate(model, loader, **options | {"seed": 1}) != expected


def test_what_cannot_be_attacked_is_refused_in_one_sentence():
    model, images, target = trained()
    good, three = [(images, target)], torch.full_like(target, 3)
    for network, loader, options, said in (
        (nn.Conv2d(3, 3, 1), good, {}, "in training mode: call model.eval"),
        (model, [], {}, "has no batch: it must give pairs of images and targets"),
        (model, [(images.byte(), target)], {}, "the loader must give pairs of images, float32"),
        (model, [(images, target[..., 1:])], {}, "the loader must give pairs"),
        (model, good, {"attacks": "deepfool"}, "attack 'deepfool' is unknown: name one of sea, no"),
        (model, [*good, (images, three)], {}, r"classes from 3 to 3, and the model has 3 \(0 to 2"),
        (nn.Conv2d(3, 1, 1).eval(), good, {}, r"Tensor \(8, 1, 20, 20\) for images \(8, 3, 20"),
        (lambda batch: {"out": model(batch)}, good, {}, r"the model gives dict \(\) for images"),
        (model, [{"image": images}], {}, "the loader must give pairs"),
        (model, [(images, target, target)], {}, "the loader must give pairs"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate(network, loader, **{"attacks": "noise"} | options)


def test_an_attack_of_the_table_is_the_attack_itself():
    model, images, target = trained()
    seed = np.random.SeedSequence([0, 0]).generate_state(1, np.uint64)[0] >> 1
    own = apgd(model, images, target, 8 / 255, steps=3, generator=torch.manual_seed(int(seed)))
    (_, row, *_) = evaluate(model, [(images, target)], 8 / 255, "apgd_ce", **SHORT)
    assert row["miou"] == float(scores_of(_matrix(model, own, target))["miou"])
