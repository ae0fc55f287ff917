"""Networks on the test patches of a fold: what test.py and the studies count."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from config import Config
from medood.checkpoints import load_model
from medood.data import Patches, id_files, load_patches
from medood.folds import region_of
from medood.inference import tally_patches
from medood.models import pick_device
from medood.scores import RegionCounts, Tally, all_background


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
    patches = load_patches(cfg, id_files(cfg, names))
    floor = Tally()
    for truth in patches.masks.split(64):
        floor.add(all_background(truth, len(cfg.class_names)), truth)
    tallies, predictions = {"all_background": floor}, {}
    for name, folder in folders.items():
        model, device = load_model(folder, cfg), pick_device(cfg)
        tallies[name], predictions[name] = tally_patches(
            cfg, model, patches, device, f"{task}: testing {name}"
        )
    regions = [region_of(name) for name in names]
    return Tested(
        {name: tally.scores() for name, tally in tallies.items()},
        {name: tally.by_region(regions) for name, tally in tallies.items()},
        patches,
        {name: tally.patchwise_iou() for name, tally in tallies.items()},
        predictions,
    )
