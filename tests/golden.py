"""What the samples of the four systems give, written down: the code may change, these may not.

`python -m tests.golden [short] [sample]` runs the samples and rewrites tests/golden/*.json; do that
only where a change of the results is meant, and say in the commit which numbers changed and why.

Floating-point kernels differ between processors. So a run uses one thread and instructions that
x86-64 servers have had since 2015. The files come from one AMD EPYC; no other processor was tried.
"""

import gzip
import json
import os
import runpy
import subprocess
import sys
import tempfile
from contextlib import ExitStack, redirect_stdout
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
        "--epochs 1 --folds 79 --encoder tu-test_resnet",
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
        "--classifier_epochs 2 --scales 1 --irnet_epochs 1 --epochs 1 --encoder tu-test_resnet",
        ("drawn", "weak/Images", "weak/True_Masks"),
        "reports/weak/scores.json",
    ),
    "transfer": System(
        "weak/main.py --method transfer",
        "--classifier_epochs 1 --iterations 4 --epochs 1 --encoder tu-test_resnet",
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


def run_samples(names: list[str], kind: str, folder: Path) -> None:
    """Run the samples of some systems in one new process, each in a folder named after it.

    What a run prints is in printed.txt there.
    """
    command = [sys.executable, "-m", "tests.golden", "run", kind, folder, *names]
    subprocess.run(command, cwd=ROOT, env=os.environ | KERNELS, check=True)


def run_here(names: list[str], kind: str, folder: Path) -> None:
    """Run the samples in this process; short ones draw no figure and hardly resample."""
    from tests.conftest import quick_reports, quick_resamples

    for name in names:
        workspace, system = folder / name, SYSTEMS[name]
        workspace.mkdir(parents=True)
        script, *arguments = system.script.split()
        arguments += ["--sample", "--workspace", str(workspace), "--precision", "float32"]
        arguments += system.short.split() if kind == "short" else []
        sys.argv = [script, *arguments]
        with ExitStack() as stack:
            if kind == "short":
                stack.enter_context(quick_reports())
                stack.enter_context(quick_resamples())
            printed = stack.enter_context((workspace / "printed.txt").open("w"))
            stack.enter_context(redirect_stdout(printed))
            runpy.run_path(str(ROOT / script), run_name="__main__")


def found_in(name: str, workspace: Path) -> dict:
    """Return what a system's sample gave: {"data": {folder: hash}, "scores": {name: number}}."""
    system, data = SYSTEMS[name], {}
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
    if sys.argv[1:2] == ["run"]:
        run_here(sys.argv[4:], sys.argv[2], Path(sys.argv[3]))
        sys.exit()
    for kind in sys.argv[1:] or ("short", "sample"):
        with tempfile.TemporaryDirectory() as folder:
            run_samples(list(SYSTEMS), kind, Path(folder))
            for name in SYSTEMS:
                found = found_in(name, Path(folder) / name)
                path_of(name, kind).write_text(json.dumps(found, indent=1) + "\n")
                print(path_of(name, kind))
