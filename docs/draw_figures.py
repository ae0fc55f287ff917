"""Draw the pictures of README and docs/ from what the samples left in the workspace.

    python main.py --sample && python weak/main.py --sample --method transfer
    python docs/draw_figures.py

Writes  docs/figures/method.png       a training image, cut, and what the baseline predicts in it;
                                      the predictions of both networks in an image new to them
        docs/figures/report.png       the head of the report, if chromium is installed
        docs/figures/attack.png       from the report of the attack in docs/robustness.md, if it ran
        docs/figures/weak.png         a test image of weak/, its true mask and those of all methods
        docs/figures/weak_steps.png   the same image on its way to a mask, by maps and by transfer

The other methods of weak/ run here, on the images that its sample of transfer has drawn. Everything
in the pictures was drawn by a program, so they may be passed on.
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
from medood.evaluation.figures import Classes, canvas, name_colours, show_classes
from medood.models.checkpoints import load_model
from medood.models.inference import Predictor
from medood.runs.command_line import run
from medood.sample import SETTINGS, draw_region
from weak import sample as of_weak
from weak.evaluate_masks import evaluate_fold, from_maps
from weak.generate_masks import read_levels
from weak.image_labels import with_classes, with_lesion
from weak.main import steps
from weak.products import healthy_folder, indices_to_test, paths_to_test
from weak.report import seen_by_maps, spread_by_score
from weak.scoring import ROWS, Rows
from weak.settings import MasksConfig
from weak.train_segmentation import train_segmentation

OUT = Path(__file__).parent / "figures"
SIDE = 192  # of the images shown, in pixels
NEW = 1000  # seed of a region that is not in the sample
ATTACK = "reports/robust/checkpoints/*_vs_*/examples_79_unet_tu-resnet10t.png"  # of the sample
SHOWN_OF_WEAK = (
    ("threshold", "brightest", "supervised"),
    ("cam", "contrast", "irnet", "unet", "transfer"),
)
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
    draw_panels("method.png", rows, cfg.classes)


def draw_panels(name: str, rows: list[dict[str, np.ndarray]], classes: Classes) -> None:
    """Draw pictures by their titles: RGB (h, w, 3), shades in 0..1, or the class of each pixel."""
    colours = [BACKGROUND_COLOUR, *(colour for _, colour in classes)]
    count = max(map(len, rows))
    with canvas(OUT / name, "", (2 * count, 2.3 * len(rows) + 0.3)) as figure:
        axes = figure.subplots(len(rows), count)
        for line, row in zip(axes, rows, strict=True):
            for ax, (title, picture) in zip(line, row.items(), strict=True):
                ax.set(title=title, xticks=[], yticks=[])
                if picture.ndim == 3 or picture.dtype.kind == "f":
                    ax.imshow(picture, cmap="magma", vmin=0, vmax=1)
                else:
                    show_classes(ax, picture, colours)
        name_colours(figure, classes)


def draw_weak(folder: Path) -> None:
    """Draw a test image of weak/ with the masks of all methods, and its way to a mask.

    folder: the sample of transfer. The methods run on its images, unless they did before.
    """
    drawn = of_weak.draw_sample(folder, "transfer")
    cfgs = {}
    for method in ("contrast", "unet", "transfer"):
        changed = of_weak.SETTINGS | of_weak.BY_METHOD.get(method, {}) | drawn
        cfg = MasksConfig(workspace=folder, method=method, **changed)
        steps(cfg)
        if method == "unet":
            train_segmentation(cfg)
        cfgs[method] = with_lesion(cfg) if method == "transfer" else with_classes(cfg)
    contrast, transfer = cfgs["contrast"], cfgs["transfer"]
    (fold,) = transfer.folds
    test = evaluate_fold(transfer, fold, Rows(cfgs["unet"], None, transfer))
    _, index, _ = spread_by_score(test, "supervised", 3)  # the median
    masks = test.predicted | from_maps(contrast, fold, indices_to_test(transfer, fold))
    path = paths_to_test(transfer, fold)[index]
    image = {"image": test.patches.images[index].numpy()}
    truth = {"ground truth": test.patches.masks[index].numpy()}
    first, second = (
        {ROWS[row]: masks[row][index].numpy() for row in shown} for shown in SHOWN_OF_WEAK
    )
    draw_panels("weak.png", [image | truth | first, second], transfer.classes)
    by_maps = {name: of[0].numpy() for name, of in seen_by_maps(contrast, fold, [path]).items()}
    by_transfer = {
        "mask head": read_levels(transfer, fold, [path])[0].numpy() / 255,
        "made healthy": read_image(healthy_folder(transfer, fold) / path.name),
    }
    rows = [
        image | by_maps | {"mask by maps": masks["irnet"][index].numpy()},
        image | by_transfer | {"mask by transfer": masks["transfer"][index].numpy()},
    ]
    draw_panels("weak_steps.png", rows, transfer.classes)


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
    for path in cfg.workspace.glob(ATTACK):
        shutil.copy(path, OUT / "attack.png")
    draw_weak(cfg.workspace.parent / "weak_sample_transfer")
    print(*sorted(OUT.glob("*.png")), sep="\n")


if __name__ == "__main__":
    run(draw_figures, Config(workspace=Path("workspace/sample"), **SETTINGS))
