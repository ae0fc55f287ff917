"""What the samples of the four systems give, written down: the code may change, these may not.

`python tests/golden.py [short] [sample]` runs the samples and rewrites tests/golden/*.json; do that
only where a change of the results is meant, and say in the commit which numbers changed and why.

Floating-point kernels differ between processors. So a run uses one thread and instructions that
x86-64 servers have had since 2015. The files come from one AMD EPYC; no other processor was tried.
"""

import gzip
import json
import os
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from scipy.io import loadmat

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
MAT_KEYS = ("inst_map", "id", "class", "bbox", "centroid")
KERNELS = {
    **{"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"},
    **{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
}


class System(NamedTuple):
    """How the sample of a system is run, and what of it is written down."""

    script: str  # and what chooses its route
    short: str  # settings of a run of seconds; the whole sample takes minutes
    prepared: tuple[str, ...]  # folders of data that no training decides
    scores: str


SYSTEMS = {
    "trunk": System(
        "main.py",
        "--epochs 1 --folds 79",
        (
            *("Lizard_Images1", "Lizard_Images2", "Lizard_Labels", "Semantic_Labels"),
            *("Image_Patchs", "Mask_Patchs", "Instance_Patchs", "OoD_Patchs", "k_folds"),
        ),
        "reports/*/scores.json",
    ),
    "robust": System(
        "robust/main.py",
        "--epochs 2 --attacked 1 --steps 2 --queries 5",
        ("Task00_SAMPLE",),
        "reports/scores.json",
    ),
    "weak": System(
        "weak/main.py",
        "--classifier_epochs 2 --classifiers 1 --scales 1 --irnet_epochs 1 --epochs 1",
        ("drawn", "weak/Images", "weak/True_Masks"),
        "reports/weak/scores.json",
    ),
    "transfer": System(
        "weak/main.py --method transfer",
        "--classifier_epochs 1 --iterations 4 --epochs 1",
        ("drawn", "weak/Images", "weak/True_Masks"),
        "reports/weak/scores.json",
    ),
}


def content(path: Path) -> bytes:
    """Return what a file of data holds: compressed bytes may differ between processors."""
    match path.suffix:
        case ".png":
            return cv2.imread(str(path), cv2.IMREAD_UNCHANGED).tobytes()
        case ".mat":
            return b"".join(np.ascontiguousarray(loadmat(path)[key]) for key in MAT_KEYS)
        case ".gz":
            return gzip.decompress(path.read_bytes())
    return path.read_bytes()


def found_by(name: str, kind: str, workspace: Path) -> dict:
    """Return what a system's sample gives: {"data": {folder: hash}, "scores": {name: number}}.

    What the run prints is in <workspace>/printed.txt.
    """
    system = SYSTEMS[name]
    script, *arguments = system.script.split()
    arguments += ["--sample", "--workspace", str(workspace), "--precision", "float32"]
    arguments += system.short.split() if kind == "short" else []
    with (workspace / "printed.txt").open("w") as printed:
        subprocess.run(
            [sys.executable, ROOT / script, *arguments],
            **{"cwd": ROOT, "env": os.environ | KERNELS, "check": True, "stdout": printed},
        )
    data = {}
    for folder in system.prepared:
        (place,) = workspace.glob(f"*/{folder}")
        # no records: they hold the versions of libraries
        files = sorted(path for path in place.rglob("*.*") if path.suffix != ".json")
        whole = sha256(b"".join(path.name.encode() + content(path) for path in files)).hexdigest()
        data[folder] = {"files": len(files), "hash": whole}
    (scores,) = workspace.rglob(system.scores)
    return {"data": data, "scores": dict(flat(json.loads(scores.read_text())))}


def flat(content: object, name: str = "") -> list[tuple[str, object]]:
    """Return the values of nested dictionaries and lists by their path, such as `79/ood/miou`."""
    if not isinstance(content, dict | list):
        return [(name[1:], content)]
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    return [pair for key, value in pairs for pair in flat(value, f"{name}/{key}")]


def path_of(name: str, kind: str) -> Path:
    """Return where the golden file of a system is."""
    return GOLDEN / f"{name}_{kind}.json"


if __name__ == "__main__":
    for kind in sys.argv[1:] or ("short", "sample"):
        for name in SYSTEMS:
            with tempfile.TemporaryDirectory() as workspace:
                found = found_by(name, kind, Path(workspace))
            path_of(name, kind).write_text(json.dumps(found, indent=1) + "\n")
            print(path_of(name, kind))
