"""Networks on the test patches of a fold: what test.py and the studies count."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from config import Config, UserError
from medood.data.dataset import CHUNK, Patches, load_patches
from medood.data.patients import patients_of
from medood.data.workspace import Pair, id_files
from medood.evaluation.scores import ProbabilityTally, RegionCounts, Tally, all_background
from medood.evaluation.shift import fit_shift
from medood.models.checkpoints import load_model, read_run
from medood.models.inference import batch_size, predict
from medood.models.network import pick_device
from medood.processes import all_reduce, shard

SHIFT_PATCHES, SHIFT_PIXELS = 128, 2048  # at most, that fit a prior shift; pixels of each patch


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
    cfg: Config,
    model: nn.Module,
    patches: Patches,
    device: torch.device,
    task: str,
    shift: Tensor | None = None,
) -> tuple[Tally, Tensor]:
    """Return the tally of a network on patches, and the class it gives each pixel, (N, P, P).

    Each process looks at its shard of the patches. task: what the progress bar says. shift: where
    the tally is to be a ProbabilityTally, its weights of the classes.
    """
    shape, classes = tuple(patches.masks.shape), model.config["classes"]
    predicted = torch.zeros(shape, dtype=torch.uint8)
    tally = Tally(shape[0], classes) if shift is None else ProbabilityTally(shape, shift)
    for place, probability in predict_shard(cfg, model, patches.images, device, task):
        tally.add(place, probability, patches.masks[place].to(device))
        predicted[place] = probability.argmax(1).to("cpu", torch.uint8)
    for values in (*(getattr(tally, name) for name in tally.filled), predicted):
        all_reduce(values)
    return tally, predicted


def predict_shard(
    cfg: Config, model: nn.Module, images: Tensor, device: torch.device, task: str
) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of this process's shard of images with their probabilities, as predict does."""
    own = shard(len(images), batch_size(device))
    for part, probability in predict(cfg, model, images[own], device, task):
        yield slice(own.start + part.start, min(own.start + part.stop, own.stop)), probability


def sample_pixels(
    cfg: Config, model: nn.Module, files: list[Pair], device: torch.device, task: str
) -> tuple[Tensor, Tensor]:
    """Return the probabilities, (N, C), and the classes, (N,), of pixels of some patches.

    The same files give the same pixels. Raises UserError as load_patches does.
    """
    generator = torch.Generator().manual_seed(0)
    files = sorted(set(files))
    drawn = torch.randperm(len(files), generator=generator)[:SHIFT_PATCHES]
    patches = load_patches(cfg, [files[number] for number in drawn])
    order = torch.rand(len(drawn), cfg.patch_size**2, generator=generator).argsort(1)
    place = order[:, :SHIFT_PIXELS]
    found = torch.zeros(len(drawn), model.config["classes"], place.shape[1])
    for part, probability in predict_shard(cfg, model, patches.images, device, task):
        of_class = place[part, None].expand(-1, found.shape[1], -1).to(device)
        found[part] = probability.flatten(2).gather(2, of_class).cpu()
    all_reduce(found)
    return found.transpose(1, 2).flatten(0, 1), patches.masks.flatten(1).gather(1, place).flatten()


def score_networks(
    cfg: Config, folders: dict[str, Path], names: list[str], training: list[Pair], task: str
) -> Tested:
    """Test the networks in some folders on the named patches.

    training: patches of the training side, on which the prior shifts are fitted. task: what the
    progress bar says. Of several networks, error rates are matched at those of the first. The
    networks compute in float32, whatever cfg.precision says: bfloat16 moves scores. Raises
    UserError if no pixel of the patches is sure.
    """
    cfg = replace(cfg, precision="float32")
    models = {name: load_model(folder, cfg) for name, folder in folders.items()}
    runs = {name: read_run(folder) for name, folder in folders.items()}
    device = pick_device(cfg)
    patches = load_patches(cfg, id_files(cfg, names))
    classes = len(cfg.class_names)
    floor = ProbabilityTally(tuple(patches.masks.shape), torch.ones(classes))
    for start in range(0, len(patches), CHUNK):
        part = slice(start, start + CHUNK)
        floor.add(part, all_background(patches.masks[part], classes), patches.masks[part])
    if not floor.are_sure().any():
        raise UserError(f"{task}: every pixel of the test patches is unsure: look at Mask_Patchs")
    patients = patients_of(cfg, names)
    # a tally holds the score of each pixel, and is reduced before the next network has one
    shifts, predictions = {"all_background": floor.shift}, {}
    counts = {"all_background": floor.by_region(patients)}
    patchwise = {"all_background": floor.patchwise_iou()}
    for name, model in models.items():
        doing = f"{task}: testing {name}"
        shift = fit_shift(*sample_pixels(cfg, model, training, device, f"{task}: shift of {name}"))
        tally, predictions[name] = tally_patches(cfg, model, patches, device, doing, shift)
        shifts[name], counts[name] = shift, tally.by_region(patients)
        patchwise[name] = tally.patchwise_iou()
    first = counts[next(iter(models))] if len(models) > 1 else None
    scores = {
        name: found.plain_scores(first) | {"shift": shifts[name].tolist()}
        for name, found in counts.items()
    }
    return Tested(folders, runs, predictions, patches, scores, counts, patchwise)
