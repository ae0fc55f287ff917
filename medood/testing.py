"""Networks on the test patches of a fold: what test.py and the studies count."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from config import Config
from medood import ranks
from medood.checkpoints import load_model
from medood.data import CHUNK, Pair, Patches, id_files, load_patches
from medood.folds import region_of
from medood.inference import batch_size, tally_patches
from medood.models import pick_device
from medood.scores import RegionCounts, Tally, all_background


@ranks.together
def _answers(
    cfg: Config, folders: dict[str, Path], files: list[Pair], task: str
) -> tuple[Patches, dict[str, Tally], dict[str, Tensor]]:
    """Return the patches, and tallies and predictions of each network on them.

    Each process tests a share; all of the patches are the first's.
    """
    device = pick_device(cfg)
    own = ranks.shard(len(files), batch_size(device))
    if ranks.leads():
        patches = load_patches(cfg, files)
        share = patches.part(own)
    else:
        patches = share = load_patches(cfg, files[own])
    tallies, predictions = {"all_background": Tally()}, {}
    for truth in patches.masks.split(CHUNK):
        tallies["all_background"].add(all_background(truth, len(cfg.class_names)), truth)
    for name, folder in folders.items():
        model = load_model(folder, cfg)
        found = tally_patches(cfg, model, share, device, f"{task}: testing {name}")
        shares, pixels = zip(*ranks.gathered(found), strict=True)
        tallies[name] = Tally.merged(shares)
        predictions[name] = torch.cat(pixels) if len(pixels) > 1 else found[1]
    return patches, tallies, predictions


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
    patches, tallies, predictions = _answers(cfg, folders, id_files(cfg, names), task)
    regions = [region_of(name) for name in names]
    return Tested(
        {name: tally.scores() for name, tally in tallies.items()},
        {name: tally.by_region(regions) for name, tally in tallies.items()},
        patches,
        {name: tally.patchwise_iou() for name, tally in tallies.items()},
        predictions,
    )
