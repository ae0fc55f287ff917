"""The loss of Eq. 4, on a shuffled mix of ID and OoD patches.

Eq. 4 is a mean over classes of Dice(F_c(I_id), GT_c) + lambda * Dice(F_c(I_ood), 0). Here each
class has one Dice over the mixed batch, in which lambda weighs the pixels of OoD patches, because
the second term alone is nearly flat. In three forms the OoD patches would teach nothing:

- without classes that have no true pixel in the batch: an all-OoD batch would cost nothing;
- foreground channels only: an all-OoD batch gets a gradient near zero, as the background
  channel's Dice carries the signal;
- one Dice over all channels, flattened: it is pixel accuracy, which neglects rare classes. It is
  kept as `paper_code`, for comparison with the paper's public code.

An unsure pixel counts in no sum, and its logits get a gradient of 0.
"""

import torch
from torch import Tensor

from medood.data.labels import UNSURE
from medood.processes import all_reduce, world_size

# Added to numerator and denominator of a class's Dice, as a share of the batch's sure pixels: about
# one pixel of 8 patches. A hundred times more makes an absent class cost more, 1 - s / (sum p + s),
# and an all-OoD batch count more. But then every batch without a rare class counts against that
# class, and the network unlearns it: on the sample, neutrophils fell from IoU 58 to 0.
SMOOTH = 1e-5
EPS = 1e-6  # for a batch without weight: only OoD patches with lambda 0, or no sure pixel


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of `values` over all processes, with world_size times its gradient.

    All processes compute the same loss from the sum, and DistributedDataParallel takes the mean of
    their gradients: the factor turns it into the sum. (torch's own differentiable sum is deprecated
    in 2.14, and 2.8 lacks its successor.)
    """
    if world_size() == 1:
        return values
    own = values.detach()
    return all_reduce(own.clone()) + world_size() * (values - own)  # values - own is 0


def segmentation_loss(logits: Tensor, target: Tensor, weight: Tensor, loss: str) -> Tensor:
    """Return the scalar loss of a batch over all processes, computed in float32.

    logits: (N, C, H, W), before the softmax. target: int64 (N, H, W), the class, or UNSURE.
    weight: (N,), of a pixel of each patch: 1 for ID, lambda for OoD patches.
    loss: `dice`, `dice_ce` or `paper_code` (see Config.loss).
    """
    logits = logits.float()
    probability = logits.softmax(1)
    classes = torch.arange(logits.shape[1], device=logits.device)
    # (N, C, H, W), float: one_hot would stall a GPU, and booleans are summed as int64
    truth = (target[:, None] == classes[:, None, None]).float()  # no class where unsure
    sure = (target != UNSURE).float()  # (N, H, W)
    # (N, C) sums over pixels, then (C,) over the weighted patches of the batch
    hit = weight @ (probability * truth).sum((2, 3))
    predicted = weight @ (probability * sure[:, None]).sum((2, 3))
    true = weight @ truth.sum((2, 3))
    hit, predicted, true = sum_over_processes(torch.stack([hit, predicted, true]))
    smooth = SMOOTH * true.sum() + EPS
    if loss == "paper_code":
        hit, predicted, true = hit.sum(), predicted.sum(), true.sum()
    dice = 1 - ((2 * hit + smooth) / (predicted + true + smooth)).mean()
    if loss != "dice_ce":
        return dice
    # (N, H, W), 0 where unsure; then the mean over the sure pixels of each patch that has any
    # (F.cross_entropy refuses to be deterministic on a GPU)
    per_pixel = -(logits.log_softmax(1) * truth).sum(1)
    pixels = sure.sum((1, 2))
    entropy = weight @ (per_pixel.sum((1, 2)) / pixels.clamp_min(1))
    patches = (weight * (pixels > 0)).sum()
    entropy, patches = sum_over_processes(torch.stack([entropy, patches]))
    return dice + entropy / (patches + EPS)
