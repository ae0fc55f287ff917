"""Draw the pictures of README and docs/ from what the samples left in the workspace.

    python main.py --sample && python docs/draw_figures.py

Writes  docs/figures/method.png   a training image, cut, and what the baseline predicts in it; and
                                  the predictions of both networks in an image that is new to them
        docs/figures/report.png   the head of the report, if chromium is installed
        docs/figures/attack.png   from the report of the attack in docs/robustness.md, if it ran
        docs/figures/weak.png     from the report of weak/main.py --sample, if it ran

Everything in them was drawn by a program, so they may be passed on.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import Config, UserError
from medood.data.images import read_image, read_mask
from medood.data.labels import BACKGROUND, BACKGROUND_COLOUR
from medood.data.workspace import SAMPLE_NAME, data_name
from medood.evaluation.figures import canvas, name_colours, show_classes
from medood.models.checkpoints import load_model
from medood.models.inference import Predictor
from medood.runs.command_line import run
from medood.sample import SETTINGS, draw_region

OUT = Path(__file__).parent / "figures"
SIDE = 192  # of the images shown, in pixels
NEW = 1000  # seed of a region that is not in the sample
COPIED = {  # from folders next to that of the sample
    "attack.png": "sample/reports/robust/checkpoints/*_vs_*/examples_79_unet_tu-resnet10t.png",
    "weak.png": "weak_sample/reports/weak/79_tested.png",
}
SHOT = (1000, 700)  # of the report, in pixels
CHROMIUM = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")


def draw_method(cfg: Config) -> None:
    """Draw the idea: what is cut out, what the baseline sees then, and what both networks see."""
    networks = {
        label: Predictor(cfg, load_model(cfg.workspace / "models" / name, cfg))
        for label, name in (("baseline", cfg.model_name), ("Med-OoD", f"{cfg.model_name}_ood"))
        for name in [f"{cfg.folds[0]}_{name}"]
    }

    def called(label: str, image: np.ndarray) -> np.ndarray:
        (probability,) = networks[label](torch.from_numpy(image)[None])
        return probability.argmax(0).numpy()

    trained = []
    for path in sorted(cfg.workspace.glob("Lizard_Images*/*.png")):
        mask = read_mask(cfg.workspace / "Semantic_Labels" / path.name, len(cfg.class_names))
        image, mask = (of[:SIDE, :SIDE] for of in (read_image(path), mask))
        cut = image * (mask == BACKGROUND)[..., None]
        trained.append((image, mask, cut, called("baseline", cut)))
    image, mask, cut, seen = max(trained, key=lambda of: (of[3] != BACKGROUND).sum())
    new, numbers, ids, kinds = draw_region(np.random.default_rng(NEW), SIDE, SIDE)
    class_of = np.zeros(numbers.max() + 1, np.uint8)
    class_of[ids] = kinds
    rows = [
        {
            "training image": image,
            "its labels": mask,
            "nuclei cut out": cut,
            "what the baseline sees in it": seen,
        },
        {
            "another image": new,
            "its labels": class_of[numbers],
            "baseline": called("baseline", new),
            "Med-OoD": called("Med-OoD", new),
        },
    ]
    colours = [BACKGROUND_COLOUR, *(colour for _, colour in cfg.classes)]
    with canvas(OUT / "method.png", "", (8, 4.9)) as figure:
        axes = figure.subplots(2, 4)
        for line, row in zip(axes, rows, strict=True):
            for ax, (title, picture) in zip(line, row.items(), strict=True):
                ax.set(title=title, xticks=[], yticks=[])
                if picture.ndim == 3:
                    ax.imshow(picture)
                else:
                    show_classes(ax, picture, colours)
        name_colours(figure, cfg.classes)


def shoot_report(cfg: Config) -> None:
    """Take a picture of the head of the report."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("report.png: left out: there is no chromium on this machine")
        return
    page = cfg.workspace / "reports" / cfg.model_name / "index.html"
    shot = OUT / "report.png"
    width, height = SHOT
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [browser, *CHROMIUM, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
            + [f"--screenshot={shot}", page.resolve().as_uri()],
            **{"check": True, "capture_output": True},
        )


def draw_figures(cfg: Config) -> None:
    """Draw all pictures. Raises UserError if the workspace does not hold the sample's networks."""
    if data_name(cfg.workspace) != SAMPLE_NAME:
        raise UserError(f"{cfg.workspace} is not the sample: run python main.py --sample")
    OUT.mkdir(exist_ok=True)
    draw_method(cfg)
    shoot_report(cfg)
    for name, pattern in COPIED.items():
        for path in cfg.workspace.parent.glob(pattern):
            shutil.copy(path, OUT / name)
    print(*sorted(OUT.glob("*.png")), sep="\n")


if __name__ == "__main__":
    run(draw_figures, Config(workspace=Path("workspace/sample"), **SETTINGS))
