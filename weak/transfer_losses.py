"""The losses of MedImgSeg (label transfer), and the area of a mask where there is no lesion."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def least_squares(said: Iterable[Tensor], truth: float) -> Tensor:
    """Return the sum over discriminators of the mean of (said - truth)^2 (Mao et al. 2017).

    said: what each says of images. truth: 1 if they are, or should pass for, real, else 0.
    """
    return torch.stack([(part - truth).square().mean() for part in said]).sum()


def attention_loss(leaving: Tensor, staying: Tensor) -> Tensor:
    """Return the binary cross-entropy of the logits of images to change, and of those not to."""
    return F.softplus(-leaving).mean() + F.softplus(staying).mean()


def difference(images: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference: of a cycle, an identity, a reconstruction."""
    return (images - target).abs().mean()


def area(masks: Tensor, aim: float = 0.0) -> Tensor:
    """Return how far the mean of each mask, (N, 1, H, W), is from an aim, on average.

    Without it, a mask of ones is as good as any other. An aim of 0 on images to change would let
    masks vanish where a lesion is hard to see: but their label says that something is there.
    """
    return (masks.mean((1, 2, 3)) - aim).abs().mean()
