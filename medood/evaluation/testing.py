"""Networks on the test patches of a fold: what test.py and the studies count."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from config import Config
from medood import processes
from medood.data.dataset import CHUNK, Pair, Patches, id_files, load_patches
from medood.data.folds import region_of
from medood.data.memory import exceeds_memory, zeros
from medood.evaluation.scores import RegionCounts, Tally, all_background
from medood.models.checkpoints import load_model
from medood.models.inference import batch_size, predict
from medood.models.network import pick_device

Answers = tuple[Tally, Tensor]  # on some patches, and the class of each of their pixels


def tally_patches(
    cfg: Config, model: nn.Module, patches: Patches, device: torch.device, task: str
) -> tuple[Tally, Tensor]:
    """Return the tally of a network on patches, and the class it gives each pixel, (N, P, P)."""
    shape = tuple(patches.masks.shape)
    tally, predicted = Tally(), zeros(cfg, shape, exceeds_memory(cfg, patches.masks.nbytes))
    for part, probability in predict(cfg, model, patches.images, device, task):
        tally.add(probability, patches.masks[part].to(device))
        predicted[part] = probability.argmax(1).to("cpu", torch.uint8)
    return tally, predicted


@processes.together
def _answers(
    cfg: Config, folders: dict[str, Path], files: list[Pair], task: str
) -> tuple[Patches, dict[str, list[Answers]]]:
    """Return the patches, and what each network answers on the share of each process.

    All processes read all patches: so what is wrong with one of them is found by all alike.
    """
    patches, device, found = load_patches(cfg, files), pick_device(cfg), {}
    share = patches.part(processes.shard(len(patches), batch_size(device)))
    for name, folder in folders.items():
        model, doing = load_model(folder, cfg), f"{task}: testing {name}"
        found[name] = processes.gathered(partial(tally_patches, cfg, model, share, device, doing))
    return patches, found


@dataclass(frozen=True)
class Tested:
    """What networks gave on the same patches, by network; `all_background` is the floor."""

    scores: dict[str, dict]
    counts: dict[str, RegionCounts]
    patches: Patches
    patchwise: dict[str, list[float]]  # IoU of each class, patch by patch: see Tally
    predictions: dict[str, Tensor]  # the class of each pixel, uint8 (N, P, P); not of the floor


def score_networks(cfg: Config, folders: dict[str, Path], names: list[str], task: str) -> Tested:
    """Test the networks in some folders on the named patches. task: what the progress bar says."""
    patches, found = _answers(cfg, folders, id_files(cfg, names), task)
    floor = Tally()
    for truth in patches.masks.split(CHUNK):
        floor.add(all_background(truth, len(cfg.class_names)), truth)
    tallies, predictions = {"all_background": floor}, {}
    for name, shares in found.items():
        of_shares, pixels = zip(*shares, strict=True)
        tallies[name] = Tally.merged(of_shares)
        predictions[name] = torch.cat(pixels) if len(pixels) > 1 else pixels[0]
    regions = [region_of(name) for name in names]
    return Tested(
        {name: tally.scores() for name, tally in tallies.items()},
        {name: tally.by_region(regions) for name, tally in tallies.items()},
        patches,
        {name: tally.patchwise_iou() for name, tally in tallies.items()},
        predictions,
    )
