"""What attacks make of a fold's networks, batch by batch.

Each batch leaves a file in parts/: a run that was stopped goes on from there, and several processes
share the batches.
"""

import itertools
import json
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from estimate_pct import foreground_of
from medood.attacks import WORST, Attack, by_name, image_dice, under_attacks
from medood.data.dataset import Patches, load_patches
from medood.data.files import fingerprint, whole
from medood.data.workspace import id_files, weights_of
from medood.evaluation.scores import Tally
from medood.models.checkpoints import load_model
from medood.models.inference import batch_size
from medood.models.network import Normalise, folded, pick_device
from medood.processes import all_reduce, rank, world_size
from medood.training.batches import ATTACK, stream_seed
from robust.settings import AttackConfig

SHOWN = 4  # patches of each fold, those with most foreground, whose images are kept
TENTH = "apgd_ce_tenth"  # APGD on cross-entropy with a tenth of its steps: see robust/report.py
LAYOUT = torch.channels_last
CLEAN = (0.0, "clean")

Pair = tuple[float, str]  # eps, in 255ths, and the name of an attack


# ---------------------------------------------------------------- a network and its attacks


class Victim(nn.Module):
    """A trained network as attacks want it: RGB in 0..1, (n, 3, P, P) -> logits (n, C, P, P).

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


def pairs_of(cfg: AttackConfig) -> list[Pair]:
    """Return the pairs of eps and attack: the clean images, then as under_attacks has them."""
    names = [*attacks_of(cfg), WORST]
    return [CLEAN, *((eps, name) for eps in sorted(cfg.eps) for name in names)]


# ---------------------------------------------------------------- a fold of them


@dataclass(frozen=True)
class Attacked:
    """A network under K pairs of eps and attack (see pairs_of), on N patches."""

    names: list[str]  # of the patches
    dice: Tensor  # (K, N), see image_dice of medood/attacks
    change: Tensor  # (K, N), the largest of any pixel, in 0..1
    confusion: Tensor  # (K, N, C, C), and the next two (K, N): see Tally
    iou_paper: Tensor
    dice_paper: Tensor
    images: Tensor  # (2, S, 3, P, P), the first patches: clean, and worst at the largest eps
    called: Tensor  # uint8 (3, S, P, P): truth, and the class of each pixel in both images

    def tally(self, pair: int) -> Tally:
        """Return the tally of a pair, by its place among the K."""
        tally = Tally(len(self.names), self.confusion.shape[-1])
        for name in vars(tally):
            setattr(tally, name, getattr(self, name)[pair])
        return tally


def attack_fold(
    cfg: AttackConfig, folders: dict[str, Path], names: list[str], fold: int, parts: Path
) -> dict[str, Attacked]:
    """Attack the networks in some folders on the named patches of a fold.

    parts: the folder of the batches' files. Each process attacks its share of the batches.
    """
    foreground = dict(zip(names, foreground_of(cfg, names), strict=True))
    names = sorted(names, key=lambda name: -foreground[name])
    patches = load_patches(cfg, id_files(cfg.workspace, names))
    size = batch_size(pick_device(cfg.device))
    starts = range(0, len(names), size)
    work = [(network, start) for network in folders for start in starts]
    print(
        f"fold {fold}: {' and '.join(folders)} on {len(names)} test patches, under"
        f" {', '.join(attacks_of(cfg))} at eps {', '.join(f'{eps:g}' for eps in sorted(cfg.eps))}"
    )

    @cache
    def victim(network: str) -> Victim:
        return Victim(load_model(folders[network], cfg), pick_device(cfg.device))

    def part(network: str, start: int) -> dict[str, Tensor]:
        """Return what attacks made of a batch: of an earlier run, or of this one."""
        path = parts / f"{fold}_{network}_{start}.safetensors"
        batch = slice(start, start + size)
        made_from = _made_from(cfg, folders[network], names[batch])
        found = _read(path, made_from)
        if found is None:
            seed = stream_seed(cfg, fold, ATTACK, start)
            found = _attack_part(cfg, victim(network), patches, batch, seed)
            with whole(path) as partial:
                # not by save_file, which hides its file from others
                partial.write_bytes(save(found, {"made_from": made_from}))
        return found

    progress = tqdm(work[rank() :: world_size()], f"fold {fold}: batches", disable=None)
    for network, start in progress:
        part(network, start)
    all_reduce(torch.zeros(1))  # a barrier: all parts are there
    return {
        network: _joined(names, [part(network, start) for start in starts]) for network in folders
    }


def _made_from(cfg: AttackConfig, network: Path, names: list[str]) -> str:
    """Return what decides the attacks on a batch, as JSON."""
    files = [path for pair in id_files(cfg.workspace, names) for path in pair]
    hashes = [fingerprint([weights_of(network)]), fingerprint(files)]
    deciding = ("eps", "attacks", "steps", "queries", "seed", "classes")
    return json.dumps([*hashes, *(getattr(cfg, name) for name in deciding)])


def _read(path: Path, made_from: str) -> dict[str, Tensor] | None:
    """Return the tensors of a part, or None if it is not there, or made from anything else."""
    try:
        with safe_open(path, "pt") as part:
            if part.metadata() == {"made_from": made_from}:
                return {name: part.get_tensor(name) for name in part.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        pass
    return None


def _attack_part(
    cfg: AttackConfig, victim: Victim, patches: Patches, batch: slice, seed: int
) -> dict[str, Tensor]:
    """Return the tensors of Attacked for a batch; images and classes only of the first one."""
    device = victim.normalise.mean.device
    clean = patches.images[batch].to(device).permute(0, 3, 1, 2).float() / 255
    target = patches.masks[batch].to(device).long()
    shown = slice(SHOWN if batch.start == 0 else 0)
    columns: dict[str, list[Tensor]] = {}
    eps = [of_255 / 255 for of_255 in cfg.eps]
    attacked = under_attacks(attacks_of(cfg), victim, clean, target, eps, seed)
    for images in itertools.chain([clean], attacked):
        with torch.inference_mode():
            probability = victim(images).softmax(1)
        predicted = probability.argmax(1)
        tally = Tally(len(target), probability.shape[1])
        tally.add(slice(len(target)), probability, target)
        row = {
            **vars(tally),
            "dice": image_dice(predicted, target, probability.shape[1]),
            "change": (images - clean).abs().amax((1, 2, 3)),
            "called": predicted[shown].byte(),
        }
        for name, value in row.items():
            columns.setdefault(name, []).append(value.cpu())
    before, *_, after = columns["called"]
    return {
        **{name: torch.stack(values) for name, values in columns.items()},
        "images": torch.stack([clean[shown], images[shown]]).contiguous().cpu(),
        "called": torch.stack([patches.masks[batch][shown], before, after]),
    }


def _joined(names: list[str], parts: list[dict[str, Tensor]]) -> Attacked:
    """Return the results of all batches, in their order, as one."""
    return Attacked(names, **{key: torch.cat([part[key] for part in parts], 1) for key in parts[0]})
