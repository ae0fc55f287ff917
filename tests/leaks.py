"""The guard against leaks: steps before a test make the same files whatever the true masks are."""

from dataclasses import replace

import numpy as np

from medood.data.files import hash_of


def files_by_masks(cfg, steps, *folders):
    """Return the hash of each file that steps write: with the masks, and with scrambled ones.

    folders: of the workspace, that the steps write.
    """
    found = []
    for kind in ("there", "scrambled"):
        home = cfg.workspace / "leaks" / kind / "run"  # of one name: pictures show it
        (home / "masks").mkdir(parents=True)
        for path in sorted(cfg.masks.iterdir()):
            data = np.frombuffer(path.read_bytes(), np.uint8)
            data = data if kind == "there" else np.random.default_rng(0).permutation(data)
            (home / "masks" / path.name).write_bytes(data.tobytes())
        steps(replace(cfg, workspace=home, masks=home / "masks"))
        paths = (path for folder in folders for path in (home / folder).rglob("*"))
        found.append({str(p.relative_to(home)): hash_of(p) for p in paths if p.is_file()})
    return found
