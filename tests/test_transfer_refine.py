"""The student of transfer/ and its teacher: the moving average, and what the teacher may say."""

import copy
import dataclasses

import pytest
import torch

from medood.data.dataset import Patches
from medood.data.labels import UNSURE
from medood.training.augmentation import RANDOM, augment, draw_augmentation, parameters_of
from medood.training.loop import train_epoch
from medood.training.state import TrainingState
from tests.conftest import TINY
from weak.teacher import DECAY, SURE, MeanTeacher, average

CPU = torch.device("cpu")
LESION = dataclasses.replace(TINY, encoder="tu-test_resnet", classes=(("lesion", "#d55e00"),))


def batch(cfg, count=4):
    """Images, masks whose first is empty, weights, and an augmentation."""
    generator = torch.Generator().manual_seed(0)
    shape = count, cfg.patch_size, cfg.patch_size
    images = torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(shape, dtype=torch.uint8)
    masks[1:, 4:20, 4:20] = 1
    return images, masks, torch.ones(count), draw_augmentation(count, 0)


PATCHES = Patches(list("abcd"), *batch(LESION)[:2], torch.zeros(4, dtype=torch.bool))


@pytest.fixture
def trainer():
    return MeanTeacher(LESION, 1, PATCHES, CPU)


def test_the_average_is_the_plain_mean_at_first_and_then_an_exponential_one():
    """By hand: (6 + 10) / 2 = 8; (6 + 10 + 14) / 3 = 10; later .99 * 10 + .01 * 110 = 11."""
    found = []
    for mean, new, count in ((6.0, 10.0, 1), (8.0, 14.0, 2), (10.0, 110.0, 1000)):
        weight = torch.tensor(mean)
        average([weight], [torch.tensor(new)], torch.tensor(count))
        found.append(weight.item())
    assert found == pytest.approx([8, 10, 11])
    assert DECAY == 0.99


def test_the_teacher_begins_as_the_student_and_follows_its_weights_and_buffers(trainer):
    for epoch in range(2):
        before = copy.deepcopy(trainer.model.state_dict())
        trainer.begin_epoch(epoch)
        trainer.step(*batch(LESION))
        assert int(trainer.teacher.n_averaged) == 2 * epoch
    mean, now = trainer.teacher.module.state_dict(), trainer.model.state_dict()
    for name, value in mean.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (before[name] + now[name]) / 2)


@pytest.mark.parametrize(
    ("epochs", "counts"), [(1, [0]), (2, [0, 1]), (3, [0, 0, 1]), (4, [0, 0, 1, 1])]
)
def test_the_teacher_counts_in_the_second_half_of_the_epochs(epochs, counts):
    trainer = MeanTeacher(dataclasses.replace(LESION, epochs=epochs), 1, PATCHES, CPU)
    found = []
    for epoch in range(epochs):
        trainer.begin_epoch(epoch)
        found.append(int(trainer.counts))
    assert found == counts


def test_no_gradient_reaches_the_teacher(trainer):
    trainer.begin_epoch(0)
    trainer.step(*batch(LESION))
    trainer.begin_epoch(1)  # from now on it counts
    trainer.loss(*batch(LESION)).backward()
    assert all(weight.grad is None for weight in trainer.teacher.parameters())
    assert not trainer.teacher.training
    assert trainer.model.training


class Saying(torch.nn.Module):
    """A teacher whose probability of the lesion is given, whatever it sees."""

    def __init__(self, probability):
        super().__init__()
        self.logits = torch.stack([torch.zeros_like(probability), torch.logit(probability)], 1)

    def forward(self, images):
        return self.logits


def test_the_teacher_counts_where_it_is_sure_and_is_not_asked_about_healthy_images(trainer):
    probability = torch.tensor([[0.96, 0.94, 0.5, 0.06, 0.04]] * 2).view(2, 1, 5).expand(2, 5, 5)
    masks = torch.tensor([1, 0], dtype=torch.uint8)[:, None, None].expand(2, 5, 5)
    trainer.teacher.module = Saying(probability)
    images = torch.zeros(2, 5, 5, 3, dtype=torch.uint8)
    said = trainer.label(images, masks)
    assert SURE == 0.95
    assert said[0, 0].tolist() == [1, UNSURE, UNSURE, UNSURE, 0]
    assert (said[1] == 0).all()
    unknown = torch.full_like(masks, UNSURE)  # a mask that contradicts its label
    assert trainer.label(images, unknown)[1, 0].tolist() == [1, UNSURE, UNSURE, UNSURE, 0]


def test_the_label_of_the_teacher_is_warped_as_the_image_is():
    """What is painted in the image and what is marked in the label stay in one place."""
    images = torch.zeros(3, 32, 32, 3, dtype=torch.uint8)
    images[:, 5:15, 8:25] = 255
    label = (images[..., 0] == 255).to(torch.uint8)
    random = torch.rand(3, RANDOM, generator=torch.Generator().manual_seed(0)) * 2 - 1
    random[:, 7:] = 0  # no other colours
    both = torch.stack([label, 1 - label], 1)
    warped, targets = augment(images, both, parameters_of(random))
    clear = (warped[:, 0] < 25) | (warped[:, 0] > 230)
    assert clear.float().mean() > 0.8
    assert ((warped[:, 0] > 128) == (targets[:, 0] == 1))[clear].float().mean() > 0.99
    assert (targets[:, 0] + targets[:, 1] == 1).all()


def test_a_teacher_that_says_what_the_mask_says_doubles_the_loss_under_any_warp(trainer):
    given = batch(LESION)
    trainer.label = lambda images, masks: masks
    trainer.counts = True
    plain = super(MeanTeacher, trainer).loss(*given)
    assert torch.allclose(trainer.loss(*given), 2 * plain)


def test_an_interrupted_training_has_its_teacher_again(trainer, tmp_path):
    state = TrainingState(trainer, tmp_path / "resume.pt", {})
    for epoch in range(2):
        train_epoch(trainer, epoch)
        state.add({"epoch": epoch + 1})
    other = MeanTeacher(dataclasses.replace(LESION, seed=1), 1, PATCHES, CPU)
    TrainingState(other, tmp_path / "resume.pt", {})
    assert len(other.log) == 2
    for one in (trainer, other):
        one.begin_epoch(2)
        one.step(*batch(LESION))
    for part in ("model", "teacher"):
        ours, theirs = (getattr(t, part).state_dict() for t in (trainer, other))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
