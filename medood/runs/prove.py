"""Proof that no step before the test looks at a mask: they make the same bytes without any."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from config import Config, UserError
from medood.data.files import hash_of


def prove(cfg: Config, steps: Callable[[Config], None], *folders: str) -> None:
    """Run the steps up to the pseudo-masks three times and compare every file that they write.

    The first run has the masks, the second none of them, the third has them scrambled. folders: of
    the workspace, that the steps write. Raises UserError where a file differs, and without a folder
    of masks.
    """
    if cfg.masks is None or not cfg.masks.is_dir():
        raise UserError(f"masks = {cfg.masks}: name the folder of masks that must not matter")
    found = {}
    for kind in ("there", "deleted", "scrambled"):
        home = cfg.workspace / "proof" / kind / "run"  # of one name: pictures show it
        shutil.rmtree(home, ignore_errors=True)
        spoil(cfg.masks, home / "masks", kind)
        print(f"--- masks {kind}")
        steps(replace(cfg, workspace=home, masks=home / "masks"))
        written = [path for folder in folders for path in sorted((home / folder).rglob("*"))]
        found[kind] = {str(p.relative_to(home)): hash_of(p) for p in written if p.is_file()}
    first = found["there"]
    for kind, files in found.items():
        if files != first:
            differing = {name for name in files | first if files.get(name) != first.get(name)}
            raise UserError(
                f"with the masks {kind}, {min(differing)} is another file"
                f" ({len(differing)} in all): a step looks at masks; report it"
            )
    print(f"{len(first)} files, the same to the bit with the masks there, deleted and scrambled")


def spoil(source: Path, folder: Path, kind: str) -> None:
    """Write the masks of `source` to a folder as they are, not at all, or scrambled."""
    folder.mkdir(parents=True)
    if kind == "deleted":
        return
    rng = np.random.default_rng(0)
    for path in sorted(source.iterdir()):
        data = path.read_bytes()
        if kind == "scrambled":
            data = rng.permutation(np.frombuffer(data, np.uint8)).tobytes()
        (folder / path.name).write_bytes(data)
