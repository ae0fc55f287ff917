"""Networks on the test patches of a fold: the counts of test.py and the studies."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from config import Config, UserError
from medood.data.dataset import CHUNK, Patches, load_patches
from medood.data.patients import patients_of
from medood.data.workspace import id_files
from medood.evaluation.nuclei import count_canvases, read_canvases
from medood.evaluation.scores import RegionCounts, Tally, all_background
from medood.models.checkpoints import load_model, read_run
from medood.models.inference import Predictor, predict
from medood.processes import all_reduce, shard


@dataclass(frozen=True)
class Tested:
    """Networks tested on the same patches, by network; `all_background` is the floor."""

    folders: dict[str, Path]  # the checkpoints; not of the floor, as the next two
    runs: dict[str, dict]  # the content of run.json of each; {} if it has none
    predictions: dict[str, Tensor]  # the class of each pixel, uint8 (N, P, P)
    patches: Patches
    scores: dict[str, dict]
    counts: dict[str, RegionCounts]
    patchwise: dict[str, list[float]]  # IoU of each class, patch by patch: see Tally


def tally_patches(
    predictor: Predictor, patches: Patches, task: str, ranks: bool = False
) -> tuple[Tally, Tensor]:
    """Return the tally of a network on patches, and the predicted class of each pixel, (N, P, P).

    Each process tests its shard of the patches. task: what the progress bar says. ranks: whether
    the tally ranks the pixels.
    """
    predicted = torch.zeros_like(patches.masks)
    tally = Tally(len(patches), predictor.classes, predicted.shape[1:] if ranks else ())
    own = shard(len(patches), predictor.at_once)
    for part, probability in predict(predictor, patches.images[own], task):
        place = slice(own.start + part.start, min(own.start + part.stop, own.stop))
        tally.add(place, probability, patches.masks[place].to(predictor.device))
        predicted[place] = probability.argmax(1).to("cpu", torch.uint8)
    for values in (*tally.filled(), predicted):
        all_reduce(values)
    return tally, predicted


def score_networks(cfg: Config, folders: dict[str, Path], names: list[str], task: str) -> Tested:
    """Test the networks in some folders on the named patches.

    task: what the progress bar says. Of several networks, error rates are matched to those of the
    first. The networks compute in float32, whatever cfg.precision is: bfloat16 changes scores.
    Raises UserError if no pixel of the patches is sure.
    """
    cfg = replace(cfg, precision="float32")
    models = {name: load_model(folder, cfg) for name, folder in folders.items()}
    runs = {name: read_run(folder) for name, folder in folders.items()}
    classes = len(cfg.class_names)
    patches = load_patches(id_files(cfg.workspace, names), cfg.patch_size, classes)
    floor = Tally(len(patches), classes, patches.masks.shape[1:])
    for start in range(0, len(patches), CHUNK):
        part = slice(start, start + CHUNK)
        floor.add(part, all_background(patches.masks[part], classes), patches.masks[part])
    if not floor.are_sure().any():
        raise UserError(f"{task}: every pixel of the test patches is unsure: check Mask_Patchs")
    patients = patients_of(cfg, names)
    # a tally has the score of each pixel: it is reduced before the next network has one
    predictions = {}
    counts = {"all_background": floor.by_region(patients)}
    patchwise = {"all_background": floor.patchwise_iou()}
    for name, model in models.items():
        doing = f"{task}: testing {name}"
        tally, predictions[name] = tally_patches(Predictor(cfg, model), patches, doing, ranks=True)
        counts[name] = tally.by_region(patients)
        patchwise[name] = tally.patchwise_iou()
    if canvases := read_canvases(cfg, names, patches.masks.numpy()):
        called = {"all_background": torch.zeros_like(patches.masks)} | predictions
        for name, classes in called.items():
            nuclei = count_canvases(cfg, canvases, classes.numpy())
            counts[name] = replace(counts[name], nuclei=nuclei)
    first = counts[next(iter(models))] if len(models) > 1 else None
    scores = {name: found.plain_scores(first) for name, found in counts.items()}
    return Tested(folders, runs, predictions, patches, scores, counts, patchwise)
