"""Finished trainings of a study as files: those of several days and machines form one table.

<results>/<fold>_<seed>_<arm>_<hash>.json   the results of one training, with its command, commit,
                                            machine and seconds

A study with --results neither trains nor tests these again. The hash is of the settings that decide
a training and of the patches of its fold: the network itself need not exist.
"""

import base64
import json
import re
import subprocess
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from config import Config, UserError
from medood.commands import ROOT, command
from medood.data.files import TIMES, digest, read_json, read_table, write_json
from medood.data.folds import read_fold
from medood.evaluation.report import machine
from medood.evaluation.scores import RegionCounts
from medood.models.checkpoints import versions
from medood.runs.products import TRAINING, settings_of

DECIDE = (*TRAINING, "split", "ood_fill", "pnr_opt", "pct_grid", "mirrors", "mpp", "patch_size")
DECIDE += ("share",)
# bins of ranks that become one in a file: it has at most 1/1024 of the foreground, which costs
# `ap` at most the precision's fall / 1024, .1 points: see ranking.py
THINNED = 4


@dataclass(frozen=True)
class Result:
    """A trained and tested network."""

    network: str  # such as unet_vgg11_bn
    folder: Path
    sizes: dict  # id_patches, ood_patches, steps, and what its recipe notes
    scores: dict
    floor: dict
    counts: RegionCounts
    patchwise: dict[str, list[float]]  # IoU by class, of `network` and of the `floor`


def path_of(cfg: Config, results: Path, arm: str, fold: int) -> Path:
    """Return the file of a training; cfg: with its seed."""
    decides = settings_of(cfg, DECIDE) | {"arm": arm, "fold": read_fold(cfg, fold)}
    key = digest(json.dumps(decides, sort_keys=True))[:8]
    plain = re.sub("[^a-z0-9]+", "-", arm.lower()).strip("-")
    return results / f"{fold}_{cfg.seed}_{plain}_{key}.json"


def read_result(path: Path) -> Result | None:
    """Return the content of a file; None if there is none. UserError for a damaged one."""
    if not path.exists():
        return None
    try:
        content = read_json(path) or {}
        counts = content.pop("counts")
        arrays = {name: _unpacked(packed) for name, packed in counts["arrays"].items()}
        own = {name: content[name] for name in ("network", "sizes", "scores", "floor", "patchwise")}
        found = Result(
            **own,
            folder=Path(content["folder"]),
            counts=RegionCounts(counts["regions"], **arrays),
        )
    except Exception as error:  # of a file that was cut or edited: each part has its own kind
        raise UserError(
            f"{path} is damaged ({type(error).__name__}): restore it, or remove it to repeat the"
            " training"
        ) from None
    return found


def write_result(path: Path, cfg: Config, result: Result) -> None:
    """Write a file with the results of one training; cfg: the settings of the study."""
    counts = result.counts
    first = np.append(0, np.arange(1, len(counts.starts) + 1, THINNED))  # of the bins made one
    ranked = np.add.reduceat(counts.ranked, first, axis=-1)
    thin = replace(counts, ranked=ranked, starts=counts.starts[::THINNED])
    arrays = {name: _packed(of) for name, of in vars(thin).items() if isinstance(of, np.ndarray)}
    times = cfg.workspace / TIMES
    rows = read_table(times) if times.exists() else []
    seconds = {row["step"]: float(row["seconds"]) for row in rows}
    content = {
        "command": command(cfg, f"studies/{Path(sys.argv[0]).name}", type(cfg)),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "seconds": seconds.get(f"training {result.folder.name}"),
        **vars(result),
        "folder": result.folder.name,
        "counts": {"regions": counts.regions, "arrays": arrays},
    }
    write_json(path, content)


def commit() -> str | None:
    """Return the commit of this repository, with `-dirty` if files were changed; None if none."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _packed(values: np.ndarray) -> dict:
    """Return an array for JSON; counts below 2^31 as int32."""
    whole = values.dtype.kind == "i" and values.max(initial=0) < 2**31
    values = values.astype("<i4" if whole else values.dtype.newbyteorder("<"))
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode()
    return {"type": values.dtype.str, "shape": list(values.shape), "zlib": data}


def _unpacked(packed: dict) -> np.ndarray:
    data = zlib.decompress(base64.b64decode(packed["zlib"]))
    values = np.frombuffer(data, packed["type"]).reshape(packed["shape"])
    return values.astype(np.int64) if values.dtype.kind == "i" else values
