"""The networks of a fold under attack, batch by batch.

Each batch leaves a file in parts/: a stopped run continues from there, and several processes share
the batches. See medood/attacks/measuring.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from estimate_pct import pixels_of
from medood.attacks import measuring
from medood.attacks.measuring import GREEDY, Condition, Counts, Trial
from medood.attacks.together import WORST, Attack, by_name, under_attacks
from medood.data.dataset import Patches, load_patches
from medood.data.files import digest
from medood.data.workspace import id_files
from medood.evaluation.nuclei import no_nuclei, read_instances
from medood.evaluation.objects import count_found, objects_of, without_cut
from medood.evaluation.scores import Tally, paper_iou_dice
from medood.evaluation.tables import LABELS
from medood.models.checkpoints import load_model
from medood.models.inference import batch_size
from medood.models.network import Normalise, folded, pick_device
from medood.processes import all_reduce, rank, world_size
from medood.training.batches import ATTACK, stream_seed
from robust.settings import AttackConfig

SHOWN = 4  # patches of each fold, those with most foreground, whose images are kept
TENTH = "apgd_ce_tenth"  # APGD on cross-entropy with a tenth of its steps: see robust/report.py
NAMES = {
    TENTH: "apgd_ce, steps / 10",
    WORST: "worst case",
    GREEDY: "worst case of all images",
}
LAYOUT = torch.channels_last


def label(name: str) -> str:
    """Return the label of a network or an attack."""
    return LABELS.get(name, NAMES.get(name, name))


class Victim(nn.Module):
    """A trained network as attacks need it: RGB in 0..1, (n, 3, P, P) -> logits (n, C, P, P).

    The change of an attack acts on the image itself; the normalisation belongs to the network. It
    computes in float32: bfloat16 would hide gradients.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """model: as load_model returns it, in eval mode."""
        super().__init__()
        self.normalise = Normalise(model.config["encoder_name"])
        self.model = folded(model).requires_grad_(False)
        self.to(device, memory_format=LAYOUT).eval()

    def forward(self, images: Tensor) -> Tensor:
        # channels last takes three quarters of the time on a CPU
        return self.model(self.normalise(255 * images.contiguous(memory_format=LAYOUT)))


def attacks_of(cfg: AttackConfig) -> dict[str, Attack]:
    """Return the attacks to try, by name, as functions of model, images, target and eps."""
    found = by_name(cfg.attacks, len(cfg.class_names), cfg.steps, cfg.queries)
    if "apgd_ce" in found:
        found[TENTH] = partial(found["apgd_ce"], steps=max(1, cfg.steps // 10))
    return found


@dataclass(frozen=True)
class Attacked:
    """A network under K conditions, on N patches."""

    names: list[str]  # of the patches
    pairs: list[Condition]  # eps, in 255ths, and attack: the clean images first
    dice: Tensor  # (K, N), see image_dice of medood/attacks
    change: Tensor  # (K, N), the largest of any pixel, in 0..1
    confusion: Tensor  # (K, N, C, C), and the next two (K, N): see Tally
    iou_paper: Tensor
    dice_paper: Tensor
    objects: Tensor  # (K, N, SIZES, 2), see count_found of medood/evaluation/objects.py
    images: Tensor  # (2, S, 3, P, P), the first patches: clean, and worst at the largest eps
    called: Tensor  # uint8 (3, S, P, P): ground truth, and the predicted classes of both images

    def tally(self, pair: int) -> Tally:
        """Return the tally of a pair, by its place among the K."""
        tally = Tally(len(self.names), self.confusion.shape[-1])
        for name in ("confusion", "iou_paper", "dice_paper"):
            setattr(tally, name, getattr(self, name)[pair])
        return tally


Found = dict[int, dict[str, Attacked]]  # by fold and network
ATTACKS, CORRUPTIONS = "", "corruptions"  # trials, and their folders in parts/


def trials_of(cfg: AttackConfig) -> dict[str, Trial]:
    """Return what is tried: attacks and, if cfg asks for them, corruptions."""
    attacks, eps = attacks_of(cfg), sorted(cfg.eps)
    under = partial(under_attacks, attacks, [of_255 / 255 for of_255 in eps])
    decided_by = eps, list(attacks), cfg.steps, cfg.queries
    trials = {ATTACKS: Trial(measuring.conditions_of(attacks, eps), under, decided_by)}
    if cfg.corruptions:
        from robust.corruptions import OF_IMAGES, trial_of  # MONAI takes seconds to import

        trials[CORRUPTIONS] = trial_of(OF_IMAGES)
    return trials


def try_fold(
    cfg: AttackConfig,
    folders: dict[str, Path],
    names: list[str],
    fold: int,
    parts: Path,
    trial: Trial,
) -> dict[str, Attacked]:
    """Return the networks in some folders on the named patches of a fold, under each condition.

    parts: the folder of the results of each batch. Each process takes its share of the batches.
    """
    tried = ", ".join(dict.fromkeys(name for _, name in trial.conditions[1:]))
    print(f"fold {fold}: {' and '.join(folders)} on {len(names)} test patches, under {tried}")
    foreground, _ = pixels_of(cfg, id_files(cfg.workspace, names))
    foreground = dict(zip(names, foreground, strict=True))
    names = sorted(names, key=lambda name: -foreground[name])
    patches = load_patches(id_files(cfg.workspace, names), cfg.patch_size, len(cfg.class_names))
    every = _objects(cfg, names, patches.masks.numpy())
    device = pick_device(cfg.device)
    places = torch.arange(len(names)).split(batch_size(device))
    objects = [every[place.numpy()] for place in places]

    def counts(network: str, share: tuple[int, int]) -> Counts:
        victim = Victim(load_model(folders[network], cfg), device)
        shown = tqdm(places, f"fold {fold}, {network}: batches", disable=None)
        return measuring.batch_by_batch(
            victim,
            (_batch(patches, place, device) for place in shown),
            trial._replace(decided_by=(trial.decided_by, digest(every.tobytes()))),
            lambda number, *batch: _count(victim, objects[number], not number, *batch),
            seed=stream_seed(cfg, fold, ATTACK),
            folder=parts / f"{fold}_{network}",
            share=share,
        )

    if world_size() > 1:
        for network in folders:
            counts(network, (rank(), world_size()))
        all_reduce(torch.zeros(1))  # a barrier: all parts exist
    found = {}
    for network in folders:
        of_network = counts(network, (0, 1))
        shown = {name: of_network.pop(name) for name in ("images", "called")}
        pairs, of_pairs = measuring.with_greedy(trial.conditions, of_network)
        found[network] = Attacked(names, pairs, **of_pairs, **shown)
    return found


def _batch(patches: Patches, place: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return images, float32 (n, 3, P, P) in 0..1, and target, int64 (n, P, P)."""
    images = patches.images[place].to(device).permute(0, 3, 1, 2).float() / 255
    return images, patches.masks[place].to(device).long()


def _objects(cfg: AttackConfig, names: list[str], masks: np.ndarray) -> np.ndarray:
    """Return the objects in patches that no border cuts, integers (N, P, P), 0 outside.

    They are nuclei if the labels have instances, else connected components.
    """
    known = not no_nuclei(cfg)
    objects = read_instances(cfg, names, masks) if known else map(objects_of, masks)
    return np.stack([without_cut(of_patch) for of_patch in objects]).astype(np.int32)


def _count(
    victim: Victim,
    objects: np.ndarray,
    is_first: bool,
    clean: Tensor,
    target: Tensor,
    every: Iterator[Tensor],
) -> Counts:
    """Return the tensors of Attacked for a batch; images and classes only of the first one."""
    shown = slice(SHOWN if is_first else 0)
    mask = target.cpu().numpy()
    rows, called = [], [target[shown]]
    for images in every:
        with torch.inference_mode():
            probability = victim(images).softmax(1)
        predicted = probability.argmax(1)
        row = measuring.count_of(clean, images, predicted, target, probability.shape[1])
        row["iou_paper"], row["dice_paper"] = (
            score.cpu() for score in paper_iou_dice(probability, target)
        )
        of_patches = zip(objects, mask, predicted.cpu().numpy(), strict=True)
        row["objects"] = torch.from_numpy(np.stack([count_found(*one) for one in of_patches]))
        rows.append(row)
        called.append(predicted[shown])
    truth, before, *_, after = (classes.byte().cpu() for classes in called)
    images = torch.stack([clean[shown], images[shown]]).contiguous().cpu()
    return {
        **measuring.stacked(rows),
        "images": images,
        "called": torch.stack([truth, before, after]),
    }
