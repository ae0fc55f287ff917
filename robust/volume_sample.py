"""A small synthetic MSD task, to watch the scripts on volumes at work without data.

Each volume holds two ellipsoids that touch, as the two parts of a hippocampus do, and a bright
decoy without a label. Scores on it say that the scripts run, and nothing about any organ.
"""

from pathlib import Path

import nibabel
import numpy as np
from scipy.ndimage import gaussian_filter

from medood.data.files import digest, write_json
from medood.data.records import fresh_folder, is_kept

TASK, CASES = "Task00_SAMPLE", 12
# what the sample runs with, unless the command line says otherwise
SETTINGS = {
    **{"data": None, "epochs": 10, "folds": (79,)},
    **{"attacked": 2, "steps": 3, "queries": 10},
}


def draw_case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume, float32 (X, Y, Z), and its label, uint8, with values 0, 1 and 2."""
    shape = rng.integers((18, 26, 18), (23, 33, 23))
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    centre, radius = shape / 2 + rng.uniform(-2, 2, 3), rng.uniform(4.0, 5.5, 3)
    reach = np.array([0, radius[1], 0])  # from one centre to where the two touch

    def ellipsoid(middle: np.ndarray) -> np.ndarray:
        return (((places - middle) / radius) ** 2).sum(-1) <= 1

    label = np.zeros(shape, np.uint8)
    label[ellipsoid(centre - reach)] = 1
    label[ellipsoid(centre + reach) & (label == 0)] = 2
    decoy = ellipsoid(rng.uniform(0, shape)) & (label == 0)
    tissue = 300 + 120 * (label == 1) + 200 * (label == 2) + 150 * decoy
    grain = gaussian_filter(rng.standard_normal(shape), 1.5)
    image = gaussian_filter(tissue.astype(float), 0.6) + 150 * grain + rng.normal(0, 10, shape)
    return image.clip(0).astype(np.float32), label


def draw_sample(workspace: Path) -> Path:
    """Write the sample in MSD's layout, unless it is there, and return its folder."""
    folder = workspace / "sample" / TASK
    record = {"drawn_by": digest(Path(__file__).read_bytes())}
    if is_kept(folder, record):
        return folder
    with fresh_folder(folder, record) as out:
        for side in ("imagesTr", "labelsTr"):
            (out / side).mkdir()
        pairs = []
        for number in range(1, CASES + 1):
            names = [f"{side}/sample_{number:02}.nii.gz" for side in ("imagesTr", "labelsTr")]
            for name, values in zip(names, draw_case(np.random.default_rng(number)), strict=True):
                nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), out / name)
            pairs.append(dict(zip(("image", "label"), names, strict=True)))
        described = {"description": "SAMPLE: synthetic volumes, no organ of anybody"}
        described |= {"modality": {"0": "drawn"}, "training": pairs}
        described["labels"] = {"0": "background", "1": "first", "2": "second"}
        write_json(out / "dataset.json", described)
    print(f"{folder}: SAMPLE, {CASES} synthetic volumes drawn")
    return folder
