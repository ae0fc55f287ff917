"""Med-OoD in volumes: training volumes without foreground, in which a network predicts some.

The ranking, the ratio of positives to negatives and the search for the share are the trunk's, with
volumes instead of patches.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from estimate_pct import choose_pct, count_samples, pnr
from medood.data.files import csv_text, write_text
from medood.models.network import pick_device
from rank_prune_ood import rank_and_prune
from robust.settings import TrainVolumesConfig
from robust.volume_training import load_network
from robust.volumes import Volume


def remove_foreground(volume: Volume, fill: str) -> Volume:
    """Return a volume as an OoD volume: without its foreground; the label shows where that was.

    fill: `zero` leaves the minimum of the volume, `mean` the mean of its background, by channel.
    """
    foreground = volume.label > 0
    level = torch.zeros(len(volume.image), 1)
    if fill == "mean" and not foreground.all():
        level = volume.image[:, ~foreground].mean(1, keepdim=True)
    image = volume.image.clone()
    image[:, foreground] = level.expand(-1, int(foreground.sum()))
    return volume._replace(image=image, is_ood=True)


def add_oods(
    cfg: TrainVolumesConfig, fold: int, clean: Path, volumes: list[Volume], names: tuple[str, ...]
) -> Iterator[Volume]:
    """Return the OoD volumes to train on, one at a time, and write the ranking that they come from.

    clean: the folder of the network to be fooled. names: of the classes.
    """
    by_name = {volume.name: volume for volume in volumes}
    segmenter, seen = load_network(cfg, clean, pick_device(cfg.device)), []
    for volume in tqdm(volumes, "mining", leave=False, disable=None):
        holed = remove_foreground(volume, cfg.ood_fill).image
        with torch.no_grad():
            logits = segmenter(holed[None].to(segmenter.mean.device))
        seen.append(logits.argmax(1).flatten().bincount(minlength=len(names)).cpu())
    rows = rank_and_prune(list(by_name), torch.stack(seen).numpy())
    header = ["rank", "volume", "miou", "false_voxels", *names[1:], "kept"]
    path = cfg.home / "HardOoD" / f"{clean.name}.csv"
    write_text(path, csv_text(header, rows))
    hard = [row[1] for row in rows if row[-1]]
    shares = [(volume.label > 0).float().mean().item() for volume in volumes]
    positives, negatives = count_samples(shares, 1)
    best, _ = choose_pct(positives, negatives, len(hard), cfg.pct_grid, cfg.pnr_opt)
    print(
        f"fold {fold}: foreground is predicted in {len(hard)} of {len(rows)} volumes without any"
        f" ({path}); {best['ood_patches']} of them change the pnr from"
        f" {pnr(positives, negatives, 0):.3f} to {best['pnr']:.3f}"
    )
    chosen = hard[: best["ood_patches"]]
    return (remove_foreground(by_name[name], cfg.ood_fill) for name in chosen)
