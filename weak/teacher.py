"""A student that learns from masks, and a teacher, its moving average, that labels images."""

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from config import Config
from medood.data.labels import BACKGROUND, UNSURE
from medood.training.augmentation import augment
from medood.training.batches import Loader
from medood.training.losses import segmentation_loss
from medood.training.protocol import Losses
from medood.training.segmentation import Trainer

DECAY = 0.99  # of the moving average, per step (Tarvainen and Valpola 2017, early in a training)
SURE = 0.95  # probability from which the teacher counts (FixMatch, Sohn et al. 2020)
START = 0.5  # of the epochs: an average of early students would slow the training


@torch.no_grad()
def average(means: list[Tensor], values: list[Tensor], count: Tensor) -> None:
    """Move means of `count` values each towards new ones: plain means at first, then exponential.

    For AveragedModel, whose own functions are either.
    """
    rate = (1 / (1 + count)).clamp(min=1 - DECAY)
    for mean, value in zip(means, values, strict=True):
        if mean.is_floating_point():  # no count of batches
            mean.lerp_(value, rate)


class MeanTeacher(Trainer):
    """A trainer whose network also learns from the predictions of its own moving average.

    Loss = L(student, mask) + L(student, teacher's label). The teacher sees the image as it is, the
    student augmented, and the label is warped as the mask is: the student has to be consistent with
    it (Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017). A pixel of
    which the teacher is not sure does not count in L, as any unsure pixel. In the first half of the
    epochs only the masks teach; then the teacher begins as a copy of the student.
    """

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        teacher = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        self.teacher = self.parts["teacher"] = teacher.eval().requires_grad_(False)
        self.counts = False  # whether the teacher does

    @staticmethod
    def made_from(cfg: Config) -> dict:
        """Return what decides a network apart from its patches and the settings of config.py."""
        return {"teacher": {"decay": DECAY, "sure": SURE, "start": START}}

    def begin_epoch(self, epoch: int) -> Loader:
        """Return the batches of an epoch, in the second half with the teacher."""
        self.counts = epoch >= START * self.epochs
        if self.counts and not self.teacher.n_averaged:
            self.teacher.update_parameters(self.model)  # the first time, a copy
        return super().begin_epoch(epoch)

    def step(self, *batch: Tensor) -> Losses:
        """Take an optimiser step on a batch, and let the teacher follow."""
        losses = super().step(*batch)
        if self.counts:
            self.teacher.update_parameters(self.model)
        return losses

    @torch.no_grad()
    def label(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return the teacher's prediction for images, uint8 (N, P, P), UNSURE where it is not sure.

        If a mask is background everywhere, the image is known to be healthy: the teacher is not
        used. images: RGB uint8 (N, P, P, 3). masks: uint8 (N, P, P).
        """
        with self.precision:
            logits = self.teacher.module(self.normalise(images.permute(0, 3, 1, 2).float()))
        probability, said = logits.float().softmax(1).max(1)
        said = said.where(probability >= SURE, UNSURE)
        is_healthy = (masks == BACKGROUND).flatten(1).all(1)[:, None, None]
        return said.where(~is_healthy, BACKGROUND).to(torch.uint8)

    def loss(self, images: Tensor, masks: Tensor, weight: Tensor, augmentation: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar; the arguments are those of `step`."""
        if not self.counts:
            return super().loss(images, masks, weight, augmentation)
        both = torch.stack([masks, self.label(images, masks)], 1)
        augmented, targets = augment(images, both, augmentation)
        with self.precision:
            logits = self.distributed(self.normalise(augmented))
        of_mask, of_teacher = (
            segmentation_loss(logits, target, weight, self.cfg.loss) for target in targets.unbind(1)
        )
        return of_mask + of_teacher
