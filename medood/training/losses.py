"""The loss of Eq. 4, on a shuffled mix of ID and OoD patches.

Eq. 4 is a mean over classes of Dice(F_c(I_id), GT_c) + lambda * Dice(F_c(I_ood), 0). Here each
class has one Dice over the mixed batch, in which lambda weighs the pixels of OoD patches: the
second term alone is nearly flat. Three forms lose what the OoD patches are there to teach:

- a class with no true pixel in the batch must not be left out: an all-OoD batch would cost nothing;
- foreground channels alone give an all-OoD batch a gradient near zero: the background channel's
  own Dice carries the signal;
- one Dice over all channels flattened is pixel accuracy, which starves rare classes. It is kept
  as `paper_code`, for comparison with the paper's public code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from medood.processes import add_up, world_size

# Added to both sides of a class's Dice, as a share of the batch's pixels: about one pixel of 8
# patches. A hundred times more makes an absent class cost more, 1 - s / (sum p + s), and an all-OoD
# batch pull harder; but then every batch without a rare class pulls on it too, and it is lost: on
# the sample, neutrophils fell from IoU 58 to 0.
SMOOTH = 1e-5
EPS = 1e-6  # for a batch that weighs nothing: OoD patches alone, with lambda 0


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes, whose gradient is summed over them as well.

    All of them compute the same loss from it, so a gradient comes to world_size times its own:
    DistributedDataParallel, which takes the mean over processes, sets that right.
    """

    @staticmethod
    def forward(ctx: object, own: Tensor) -> Tensor:
        return add_up(own.clone())

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return add_up(gradient.clone())


def summed(values: Tensor) -> Tensor:
    """Return the sum of `values` over all processes."""
    return values if world_size() == 1 else SumOverProcesses.apply(values)


def segmentation_loss(logits: Tensor, target: Tensor, weight: Tensor, loss: str) -> Tensor:
    """Return the scalar loss of a batch, computed in float32: of the patches of all processes.

    logits: (N, C, H, W), before the softmax. target: int64 (N, H, W), 0 where background.
    weight: (N,), what a pixel of each patch counts: 1 for ID, lambda for OoD patches.
    loss: `dice`, `dice_ce` or `paper_code` (see Config.loss).
    """
    logits = logits.float()
    probability = logits.softmax(1)
    classes = torch.arange(logits.shape[1], device=logits.device)
    # (N, C, H, W); one_hot would stall a GPU, and sums of booleans go by way of int64
    truth = (target[:, None] == classes[:, None, None]).float()
    # (N, C) sums over pixels, then (C,) over the weighted patches of the batch
    hit = weight @ (probability * truth).sum((2, 3))
    predicted = weight @ probability.sum((2, 3))
    true = weight @ truth.sum((2, 3))
    hit, predicted, true = summed(torch.stack([hit, predicted, true]))
    smooth = SMOOTH * true.sum() + EPS
    if loss == "paper_code":
        hit, predicted, true = hit.sum(), predicted.sum(), true.sum()
    dice = 1 - ((2 * hit + smooth) / (predicted + true + smooth)).mean()
    if loss != "dice_ce":
        return dice
    per_pixel = F.cross_entropy(logits, target, reduction="none")  # (N, H, W)
    entropy, patches = summed(torch.stack([weight @ per_pixel.mean((1, 2)), weight.sum()]))
    return dice + entropy / (patches + EPS)
