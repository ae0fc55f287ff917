"""Attacks: changes of at most eps that make a segmentation network err, for images and volumes.

Every attack is a function `attack(model, images, target, eps, ..., low, high, generator)`:

- model: from images to logits (N, K, *space), in eval mode; it normalises its input itself
- images: float32 (N, C, *space), any number of spatial axes, within [low, high]
- target: int64 (N, *space), the true class of each pixel, 0 is background, UNSURE counts nowhere
- eps, low, high: a float, or a tensor (N or 1, C or 1, 1, ...); eps in the unit of the images
- generator: of the CPU; all random numbers come from it. None: a new one with seed 0

It returns images of the same shape: of each image the iterate with the lowest `image_dice`, of
equal ones that with the highest loss. The image itself is the first iterate, so that no attack but
`noise`, the control, raises a score. No value changes by more than eps or leaves [low, high],
exactly in float32. An image of score 0 is not attacked any further.

Only the images get gradients. Parameters with requires_grad=False save memory.

ascent.py, fab.py and square.py contain the attacks, iterates.py what they share, together.py
several attacks on a batch, and measuring.py the scores of a data set under attack: `evaluate`.
"""

from medood.attacks.ascent import apgd, cospgd, pgd, segpgd
from medood.attacks.fab import fab
from medood.attacks.measuring import evaluate
from medood.attacks.square import square
from medood.attacks.together import noise, worst_case

__all__ = ["apgd", "cospgd", "evaluate", "fab", "noise", "pgd", "segpgd", "square", "worst_case"]
