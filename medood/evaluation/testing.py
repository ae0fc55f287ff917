"""Networks on the test patches of a fold: what test.py and the studies count."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from config import Config, UserError
from medood.data.dataset import CHUNK, Patches, load_patches
from medood.data.memory import exceeds_memory, zeros
from medood.data.patients import patients_of
from medood.data.workspace import id_files
from medood.evaluation.scores import RegionCounts, Tally, all_background
from medood.models.checkpoints import load_model, read_run
from medood.models.inference import batch_size, predict
from medood.models.network import pick_device
from medood.processes import all_reduce, shard


@dataclass(frozen=True)
class Tested:
    """Networks tested on the same patches, by network; `all_background` is the floor."""

    folders: dict[str, Path]  # the checkpoints; not of the floor, as the next two
    runs: dict[str, dict]  # what run.json says of each; {} where there is none
    predictions: dict[str, Tensor]  # the class of each pixel, uint8 (N, P, P)
    patches: Patches
    scores: dict[str, dict]
    counts: dict[str, RegionCounts]
    patchwise: dict[str, list[float]]  # IoU of each class, patch by patch: see Tally


def tally_patches(
    cfg: Config, model: nn.Module, patches: Patches, device: torch.device, task: str
) -> tuple[Tally, Tensor]:
    """Return the tally of a network on patches, and the class it gives each pixel, (N, P, P).

    Each process looks at its shard of the patches. task: what the progress bar says.
    """
    mapped = exceeds_memory(cfg, patches.masks.nbytes)
    predicted = zeros(cfg, tuple(patches.masks.shape), mapped)
    own = shard(len(patches), batch_size(device))
    batches = predict(cfg, model, patches.images[own], device, task)
    tally = Tally(len(patches), model.config["classes"])
    for part, probability in batches:
        place = slice(own.start + part.start, min(own.start + part.stop, own.stop))
        tally.add(place, probability, patches.masks[place].to(device))
        predicted[place] = probability.argmax(1).to("cpu", torch.uint8)
    for values in (tally.confusion, tally.iou_paper, tally.dice_paper, predicted):
        all_reduce(values)
    return tally, predicted


def score_networks(cfg: Config, folders: dict[str, Path], names: list[str], task: str) -> Tested:
    """Test the networks in some folders on the named patches. task: what the progress bar says.

    The networks compute in float32, whatever cfg.precision says: bfloat16 moves scores. Raises
    UserError if no pixel of the patches is sure.
    """
    cfg = replace(cfg, precision="float32")
    models = {name: load_model(folder, cfg) for name, folder in folders.items()}
    runs = {name: read_run(folder) for name, folder in folders.items()}
    device = pick_device(cfg)
    patches = load_patches(cfg, id_files(cfg, names))
    classes = len(cfg.class_names)
    floor = Tally(len(patches), classes)
    for start in range(0, len(patches), CHUNK):
        part = slice(start, start + CHUNK)
        floor.add(part, all_background(patches.masks[part], classes), patches.masks[part])
    if not floor.are_sure().any():
        raise UserError(f"{task}: every pixel of the test patches is unsure: look at Mask_Patchs")
    tallies, predictions = {"all_background": floor}, {}
    for name, model in models.items():
        doing = f"{task}: testing {name}"
        tallies[name], predictions[name] = tally_patches(cfg, model, patches, device, doing)
    patients = patients_of(cfg, names)
    return Tested(
        folders,
        runs,
        predictions,
        patches,
        {name: tally.scores() for name, tally in tallies.items()},
        {name: tally.by_region(patients) for name, tally in tallies.items()},
        {name: tally.patchwise_iou() for name, tally in tallies.items()},
    )
