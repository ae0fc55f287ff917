"""Several attacks on a batch: by name, one after the other, and the worst of all."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from medood import UserError
from medood.attacks.ascent import SEA_LOSSES, apgd, cospgd, pgd, segpgd
from medood.attacks.fab import fab
from medood.attacks.iterates import Best, Bound, Model, bounded, image_dice, own_generators
from medood.attacks.square import square

Attack = Callable[..., Tensor]

WORST = "worst_case"  # of all attacks, image by image

SEA = "sea"  # the worst of its three losses, see greedy in measuring.py
OF_SEA = tuple(f"sea_{loss}" for loss in SEA_LOSSES)
# the control, AutoAttack's four, and those for pixels
STANDARD = ("noise", "apgd_ce", "apgd_dlr", SEA, "fab", "square")


def noise(
    model: Model,
    images: Tensor,
    target: Tensor,
    eps: Bound,
    *,
    low: Bound = 0.0,
    high: Bound = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return one random point within eps of each image, whatever its score: the control."""
    task = bounded(images, target, eps, low, high)
    drawn = task.random_start(own_generators(len(images), generator))
    return torch.where(drawn == images, images, drawn)  # a zero keeps its sign


def worst_case(
    model: Model, images: Tensor, target: Tensor, candidates: Iterable[Tensor]
) -> Tensor:
    """Return of each image the candidate with the lowest score, the image itself included.

    candidates: the results of attacks on these images, each (N, C, *space). Of equal scores, the
    first is kept.
    """
    score = _score(model, images, target)
    best = Best(images.clone(), score, torch.zeros_like(score))
    for candidate in candidates:
        score = _score(model, candidate, target)
        best.update(torch.arange(len(images), device=images.device), candidate, score, best.loss)
    return best.images


@torch.no_grad()
def _score(model: Model, images: Tensor, target: Tensor) -> Tensor:
    logits = model(images)
    return image_dice(logits.argmax(1), target, logits.shape[1])


def in_halves(
    attack: Attack,
    model: Model,
    images: Tensor,
    target: Tensor,
    eps: float,
    generator: torch.Generator,
) -> Tensor:
    """Return the result of an attack; if memory is short, of half of the images at a time.

    Each image has its own random numbers: the split does not change them. Raises UserError for a
    single image that does not fit.
    """
    before = generator.get_state()
    try:
        return attack(model, images, target, eps, generator=generator)
    except torch.OutOfMemoryError:
        if len(images) == 1:
            space = " x ".join(map(str, images.shape[2:]))
            raise UserError(
                f"{images.device} has too little memory to attack an image of {space} pixels: set"
                " device to cpu"
            ) from None
    generator.set_state(before)
    halves = zip(images.chunk(2), target.chunk(2), strict=True)
    return torch.cat([in_halves(attack, model, *half, eps, generator) for half in halves])


def under_attacks(
    attacks: dict[str, Attack],
    eps: Iterable[float],
    model: Model,
    images: Tensor,
    target: Tensor,
    seed: int,
) -> Iterator[Tensor]:
    """Yield the images under each attack, then the worst case of all; for each eps, rising.

    eps: in the unit of the images, in 0..1. Every attack has random numbers of this seed. The worst
    images at a smaller eps are kept, unless a larger one finds worse: an image of score 0 is not
    attacked again. Noise is the control: it may be better, and is not part of the worst case.
    """
    found: dict[str, Tensor] = {}
    for bound in sorted(eps):
        for name, attack in attacks.items():
            generator = torch.Generator().manual_seed(seed)
            attack = partial(in_halves, attack, model, eps=bound, generator=generator)
            if name not in found or name == "noise":
                found[name] = attack(images, target)
            elif (left := _score(model, found[name], target) > 0).any():
                worse = found[name].clone()
                worse[left] = attack(images[left], target[left])
                found[name] = worst_case(model, images, target, [found[name], worse])
            yield found[name]
        yield worst_case(model, images, target, (v for k, v in found.items() if k != "noise"))


OF_APGD = ("ce", "dlr", *SEA_LOSSES)


def by_name(names: Iterable[str], classes: int, steps: int, queries: int) -> dict[str, Attack]:
    """Return attacks by name; STANDARD if none is named, without DLR for fewer than 3 classes.

    `sea` stands for its three losses, sea_masked_ce_balanced, sea_masked_ce and sea_js.
    """
    known = {
        "noise": noise,
        "pgd": partial(pgd, steps=steps),
        "segpgd": partial(segpgd, steps=steps),
        "cospgd": partial(cospgd, steps=steps),
        **{f"apgd_{loss}": partial(apgd, loss=loss, steps=steps) for loss in OF_APGD},
        **{f"sea_{loss}": partial(apgd, loss=loss, sea=True, steps=steps) for loss in SEA_LOSSES},
        "fab": partial(fab, steps=steps),
        "square": partial(square, queries=queries),
    }
    usual = [name for name in STANDARD if classes > 2 or name != "apgd_dlr"]
    single = [one for name in names or usual for one in (OF_SEA if name == SEA else (name,))]
    if unknown := [name for name in single if name not in known]:
        raise UserError(f"attack {unknown[0]!r} is unknown: name one of {', '.join([SEA, *known])}")
    return {name: known[name] for name in single}
