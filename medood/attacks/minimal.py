"""How large must a change be? ALMA-prox of adv-lib, if that is installed."""

import sys
from types import ModuleType

import torch
from torch import Tensor

from medood import UNSURE, UserError
from medood.attacks.iterates import Model

WRONG = 0.99  # share of the pixels that must be wrong


def smallest_change(model: Model, images: Tensor, target: Tensor, steps: int = 500) -> Tensor:
    """Return images in which nearly all pixels are wrong, changed as little as possible.

    By ALMA-prox (Rony et al., CVPR 2023): images float32 (N, C, H, W) in 0..1, with the smallest
    largest change found; if too few pixels are wrong, `steps` were not enough. UserError if
    adv-lib is missing.
    """
    sys.modules.setdefault("visdom", ModuleType("visdom"))  # adv-lib imports it for plots
    try:
        from adv_lib.attacks.segmentation import alma_prox
    except ModuleNotFoundError:
        raise UserError("adv-lib is missing: run `pip install --no-deps adv-lib`") from None
    with torch.no_grad():
        classes = model(images[:1]).shape[1]
    if classes < 3:
        raise UserError(f"ALMA-prox needs 3 classes, the network has {classes}: use other attacks")
    with torch.compiler.set_stance("force_eager"):  # compiling its step takes longer
        return alma_prox(
            model, images, target, masks=target != UNSURE, adv_threshold=WRONG, num_steps=steps
        )
