"""All checks and times of a GPU, in one command of under 9 minutes: `python bench/gpu.py DATA`.

DATA is a workspace with images and labels in Lizard's layout; nothing is written into it. The
script checks that GPU and CPU give the same results, and times a step and the work on as many
patches as Lizard has; `--json FILE` keeps the results. Each part runs in its own process, so that a
failure does not stop the others; the exit code is then 1.

`--dry_run` does the same on the CPU, in a tiny form: its figures mean nothing.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from tyro.conf import Positional

sys.path.insert(0, str(Path(__file__).parents[1]))

import main
from bench.common import (
    Figures,
    MeasureConfig,
    finish,
    interleave,
    link,
    rate_reached,
    synthetic_lizard,
)
from bench.plain import Plain
from config import Config, UserError, settings
from medood.data.dataset import Patches, load_patches
from medood.data.folds import read_fold
from medood.data.ood_set import ood_candidates
from medood.data.workspace import (
    Pair,
    id_files,
    model_folder,
    ood_files,
    region_images,
    region_labels,
)
from medood.evaluation.tables import OWN_SCORES
from medood.evaluation.testing import score_networks, tally_patches
from medood.models.inference import Predictor, count_pixels, predict
from medood.models.network import autocast, pick_device
from medood.runs.command_line import run
from medood.training.loop import train_epoch
from medood.training.segmentation import Trainer, train_fold
from rank_prune_ood import rank_files

ROOT = Path(__file__).parents[1]
FOLD, LR = 79, 1e-3  # a learning rate at which some nuclei are predicted after a few epochs
ENCODERS = ("vgg11_bn", "mobilenet_v2")
# the paper's main experiment: patches to train on, with OoD patches, to test on; folds and epochs
TRAINED, WITH_OOD, TESTED, FOLDS, EPOCHS = 12_249, 18_059, 6_125, 3, 36
TESTS = ("-m", "pytest", "-o", "addopts=", "-q", "-m", "not long")  # xdist may not be there
# settings of a dry run, and of main.py --sample in it
TINY = {"encoder": "tu-test_resnet", "encoder_weights": "none", "patch_size": 32, "rounds": 1}
TINY |= {"device": "cpu", "sizes": ((96, 128),)}
SAMPLE = ["--encoder", "tu-test_resnet", "--patch_size", "64", "--epochs", "1", "--folds", "79"]


@settings
class BenchConfig(MeasureConfig):
    """The settings, and what to measure."""

    data: Positional[Path | None] = None
    """Workspace with images and labels, only read; a dry run draws its own."""
    encoder: str = "mobilenet_v2"
    """Encoder of the network that runs on both devices."""
    encoder_weights: str = "none"
    """Its weights: `none`, or the path of a .pth or .safetensors file."""
    dry_run: bool = False
    """Run everything in a tiny form on the CPU, as a test."""
    part: str | None = None
    """Measure only this part, in a prepared workspace."""


def prepare(cfg: BenchConfig) -> None:
    """Link the images of DATA into a temporary folder and cut their patches."""
    if cfg.data is None:
        synthetic_lizard(cfg.workspace, 2, cfg.sizes)
    else:
        source = replace(cfg, workspace=cfg.data)
        labels = {path.stem: path for path in region_labels(source)}
        images = [path for path in region_images(source) if path.stem in labels]
        if not images:
            raise UserError(f"no image with a label in {cfg.data}: name a workspace that has some")
        for image in images[:27]:
            label = labels[image.stem]
            for folder, path in (("Lizard_Images", image), ("Labels", label)):
                (cfg.workspace / folder).mkdir(exist_ok=True)
                link(path, cfg.workspace / folder / path.name)
    main.prepare(cfg)


def training_files(cfg: Config) -> list[Pair]:
    """Return image and mask of each training patch."""
    return id_files(cfg.workspace, read_fold(cfg, FOLD).train)


def python(*words: str) -> None:
    """Run Python on some words; UserError if it fails."""
    if code := subprocess.run([sys.executable, *words], cwd=ROOT).returncode:
        raise UserError(f"python {' '.join(words[:2])} ended with code {code}")


def tests(cfg: BenchConfig) -> str:
    """Run the tests for a GPU (a dry run only collects them)."""
    files = [f"tests/test_{name}.py" for name in ("cuda", "deterministic")]
    python(*TESTS, *files, *["--collect-only"] * cfg.dry_run)
    return "they pass"


def devices(cfg: BenchConfig) -> str:
    """Train on the GPU; mine and test with that network on both devices, in float32."""
    cfg = replace(cfg, precision="float32", lr=LR, epochs=1 if cfg.dry_run else 8)
    fold, network = read_fold(cfg, FOLD), model_folder(cfg, FOLD, ood=False)
    train_fold(cfg, FOLD, training_files(cfg), [], network)
    files, orders, scores = ood_files(cfg.workspace, ood_candidates(cfg, fold.train)), [], []
    for device in ("cpu", cfg.device):
        of = replace(cfg, device=device)
        orders.append([row[1] for row in rank_files(of, network, files, "mining")])
        tested = score_networks(of, {"it": network}, fold.test, "")
        scores.append([tested.scores["it"].get(name) for name in OWN_SCORES])
    same = sum(a == b for a, b in zip(*orders, strict=True))
    apart = max(abs(a - b) for a, b in zip(*scores, strict=True) if None not in (a, b))
    return (
        f"{same} of {len(files)} OoD patches have the same rank on both; scores are at most"
        f" {100 * apart:.3f} points apart"
    )


def deterministic(cfg: BenchConfig) -> str:
    """Train twice for an epoch with --deterministic; the weights must be the same bytes."""
    cfg, weights = replace(cfg, deterministic=True, epochs=1), set()
    for number in range(2):
        folder = cfg.workspace / "twice" / str(number)
        train_fold(cfg, FOLD, training_files(cfg), [], folder)
        weights.add((folder / "model.safetensors").read_bytes())
    torch.use_deterministic_algorithms(False)
    if len(weights) > 1:
        raise UserError("two trainings with --deterministic gave different weights")
    return "two trainings gave the same bytes"


def step(cfg: BenchConfig, encoder: str) -> str:
    """Time a step, also with --compile, and a plain loop on the same GPU, in turn."""
    cfg = cfg if cfg.dry_run else replace(cfg, encoder=encoder, encoder_weights="none")
    device, steps = pick_device(cfg.device), 2 if cfg.dry_run else 100
    precision = torch.bfloat16 if autocast(cfg.precision, device)._enabled else torch.float32
    files = training_files(cfg)[: 6 * cfg.batch_size]
    patches = load_patches(files, cfg.patch_size, len(cfg.class_names))
    plain = Plain(cfg, files, device)
    work: dict[str, Callable] = {"plain loop": plain.train}
    for name in ("ours", "ours, --compile")[: 1 if cfg.dry_run else 2]:  # compiling takes a minute
        trainer = Trainer(replace(cfg, compile=name != "ours"), FOLD, patches, device)
        batch = next(iter(trainer.begin_epoch(0)))
        take = partial(trainer.step, *batch)
        work[name] = lambda take=take: [take() for _ in range(steps)]
        if name == "ours":
            with FlopCounterMode(display=False) as counter:
                take()
    times = {name: min(each) for name, each in interleave(cfg.rounds, **work).items()}
    counts = {name: steps for name in work} | {"plain loop": len(plain.training)}
    each = {name: seconds / counts[name] for name, seconds in times.items()}
    listed = ", ".join(f"{name} {1000 * seconds:.2f}" for name, seconds in each.items())
    reached = rate_reached(counter.get_total_flops(), each["ours"], device, precision)
    return f"ms a step: {listed}; ours, {reached}"


def data(cfg: BenchConfig, encoder: str) -> str:
    """Time reading, an epoch, mining and the test, and estimate the main experiment's minutes."""
    cfg = cfg if cfg.dry_run else replace(cfg, encoder=encoder, encoder_weights="none")
    device, count = pick_device(cfg.device), 24 if cfg.dry_run else TRAINED
    files = training_files(cfg)
    sizes = cfg.patch_size, len(cfg.class_names)
    read = seconds_of(lambda: load_patches(files, *sizes)) / len(files)
    shape = (count, cfg.patch_size, cfg.patch_size)
    images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)
    masks = torch.randint(0, len(cfg.class_names), shape, dtype=torch.uint8)
    patches = Patches([""] * count, images, masks, torch.zeros(count, dtype=torch.bool))
    trainer = Trainer(cfg, FOLD, patches, device)
    epoch = seconds_of(lambda: train_epoch(trainer, 0)) / count
    model = trainer.model.eval()

    def mine() -> None:
        for _, probability in predict(Predictor(cfg, model), images, "mining"):
            count_pixels(probability).cpu()

    mining, exact = seconds_of(mine) / count, Predictor(replace(cfg, precision="float32"), model)
    test = seconds_of(lambda: tally_patches(exact, patches, "testing")) / count
    # the test reads the patches of a fold once, for both networks
    rest = (2 * TRAINED + WITH_OOD + TESTED) * read + TRAINED * mining + 2 * TESTED * test
    minutes = FOLDS * (EPOCHS * (TRAINED + WITH_OOD) * epoch + rest) / 60
    return (
        f"Lizard's {TRAINED:,} patches: read in {TRAINED * read:.1f} s, an epoch"
        f" {TRAINED * epoch:.1f}, mined in {TRAINED * mining:.1f}, {TESTED:,} tested in"
        f" {TESTED * test:.1f}; the main experiment, estimated: {minutes:.0f} minutes"
    )


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes, until the GPU has finished."""
    finish()
    started = time.perf_counter()
    work()
    finish()
    return time.perf_counter() - started


def sample(cfg: BenchConfig) -> str:
    """Run main.py --sample."""
    place = ["--workspace", str(cfg.workspace / "of_main")]
    python("main.py", "--sample", *place, *SAMPLE * cfg.dry_run)
    return "runs to its end"


PARTS: dict[str, tuple[int, Callable[[BenchConfig], str]]] = {  # with the seconds they may take
    "tests": (60, tests),
    "devices": (60, devices),
    "deterministic": (30, deterministic),
    **{f"step {encoder}": (80, partial(step, encoder=encoder)) for encoder in ENCODERS},
    **{f"data {encoder}": (50, partial(data, encoder=encoder)) for encoder in ENCODERS},
    "sample": (60, sample),
}


def measure(cfg: BenchConfig) -> None:
    """Measure one part, and write its result to cfg.json."""
    _, part = PARTS[cfg.part]
    cfg.json.write_text(json.dumps(part(cfg)))


def bench(cfg: BenchConfig) -> None:
    """Run every part in its own process, and write all results."""
    if not cfg.dry_run and not torch.cuda.is_available():
        raise UserError("no GPU is here: try --dry_run, which runs on the CPU")
    if not cfg.dry_run and cfg.data is None:
        raise UserError("no data: name a workspace, `python bench/gpu.py workspace`")
    cfg = replace(cfg, folds=(FOLD,), split="patch", select="last", compile=False)
    cfg = replace(cfg, **TINY) if cfg.dry_run else replace(cfg, device="cuda")
    if cfg.part is not None:
        measure(cfg)
        return
    figures, failed = Figures("gpu", f"all parts{', tiny and on the CPU' * cfg.dry_run}"), []
    with tempfile.TemporaryDirectory() as name:
        here = replace(cfg, workspace=Path(name) / "workspace")
        here.workspace.mkdir()
        prepare(here)
        found = Path(name) / "found.json"
        own = ["--workspace", str(here.workspace), "--json", str(found), "--encoder", cfg.encoder]
        own += ["--encoder_weights", cfg.encoder_weights, *["--dry_run"] * cfg.dry_run]
        own += [str(cfg.data)] if cfg.data else []
        for part, (seconds, _) in PARTS.items():
            found.unlink(missing_ok=True)
            try:
                command = [sys.executable, __file__, *own, "--part", part]
                subprocess.run(command, timeout=seconds if not cfg.dry_run else None, check=True)
                words = json.loads(found.read_text())
            except (subprocess.SubprocessError, OSError) as error:
                words = f"failed: {type(error).__name__}, see above"
                failed.append(part)
            figures.note(part, words, f"---- {part}: {words}")
            figures.write(cfg.json)  # after each part: the machine may stop before the last one
    if failed:
        raise UserError(f"{', '.join(failed)} failed: the reasons are above")


if __name__ == "__main__":
    run(bench, BenchConfig(), lambda cfg: None)
