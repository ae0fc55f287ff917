"""What bench/gpu.py measures on a GPU, a function for each part.

Each returns what it found, as plain values for JSON, with `words` for the reader. What is wrong
raises an error.
"""

import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from tyro.conf import Positional

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import (
    MeasureConfig,
    finish,
    interleave,
    link,
    matrix_rate,
    synthetic_lizard,
)
from bench.plain import Plain
from bench.variants import step_of
from config import Config, UserError, settings
from estimate_pct import choose_pct, count_samples, foreground_of
from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels
from generate_unfiltered_oods import generate_unfiltered_oods
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
from medood.models.inference import count_pixels, predict
from medood.models.network import autocast, pick_device
from medood.training.batches import Loader
from medood.training.loop import train_epoch, train_fold
from medood.training.step import Trainer
from predict import PredictConfig, predict_images
from rank_prune_ood import rank_and_prune, rank_files
from train import train

ROOT = Path(__file__).parents[1]
FOLD = 79
WARM_UP = 3  # steps in which torch picks kernels, and makes its graphs
LR = 1e-3  # high enough to see some nuclei after a few epochs
PROFILED = 5  # steps
SHOWN = 4_000  # characters of the output of a command that failed
# the paper's main experiment: patches to train on, with OoD patches, to test on; folds and epochs
TRAINED, WITH_OOD, TESTED, FOLDS, EPOCHS = 12_249, 18_059, 6_125, 3, 36
LAUNCHES = ("Launch", "Memcpy", "Memset")  # in the names of CUDA's calls that start work


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    regions: int = 27  # of DATA
    epochs: int = 8  # of the network that both devices are compared with
    steps: int = 100  # of ours in a round
    plain_steps: int = 6  # of the plain loops
    patches: int = TRAINED  # that an epoch and the mining are timed on
    tested: int = TESTED


DRY = Extent(regions=2, epochs=1, steps=2, plain_steps=1, patches=24, tested=8)
# settings of main.py --sample in a dry run
SAMPLE = {"encoder": "tu-test_resnet", "patch_size": 64, "epochs": 1, "folds": 79, "device": "cpu"}


@settings
class BenchConfig(MeasureConfig):
    """The settings, and what to measure."""

    data: Positional[Path | None] = None
    """Workspace with images and labels, only read; a dry run can draw its own."""
    encoder: str = "mobilenet_v2"
    """Encoder of the network that both devices are compared with."""
    encoder_weights: str = "none"
    """Its weights: `none`, or the path of a .pth or .safetensors file."""
    dry_run: bool = False
    """Do all of it tiny and on the CPU, to see that it works."""

    @property
    def extent(self) -> Extent:
        """How much is measured."""
        return DRY if self.dry_run else Extent()


# ---------------------------------------------------------------- is it right?


def prepare(cfg: BenchConfig) -> dict:
    """Link the images of DATA into a temporary folder and cut their patches."""
    if cfg.data is None:
        synthetic_lizard(cfg.workspace, cfg.extent.regions, cfg.sizes)
    else:
        for folder in ("Lizard_Images", "Labels"):
            (cfg.workspace / folder).mkdir()
        for image, label in labelled(cfg)[: cfg.extent.regions]:
            link(image, cfg.workspace / "Lizard_Images" / image.name)
            link(label, cfg.workspace / "Labels" / label.name)
    for make in (generate_semantic_labels, generate_patches, generate_unfiltered_oods):
        make(cfg)
    found = {"training": len(training_files(cfg)), "test": len(read_fold(cfg, FOLD).test)}
    words = f"{found['training']} patches to train on, {found['test']} to test on"
    return {"patches": found, "words": words}


def labelled(cfg: BenchConfig) -> list[tuple[Path, Path]]:
    """Return image and label of each region of DATA that has both; UserError if none has."""
    source = replace(cfg, workspace=cfg.data)
    labels = {path.stem: path for path in region_labels(source)}
    images = [path for path in region_images(source) if path.stem in labels]
    if not images:
        raise UserError(f"no image with a label in {cfg.data}: name a workspace that has some")
    return [(image, labels[image.stem]) for image in images]


def training_files(cfg: Config) -> list[Pair]:
    """Return image and mask of each training patch."""
    return id_files(cfg, read_fold(cfg, FOLD).train)


def command(*words: str) -> str:
    """Run Python on some words and return the last line of its output; UserError if it fails."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, text=True, **streams)
    last = (done.stdout.strip() or "no output").splitlines()[-1].strip("= ")
    if done.returncode:
        print(done.stdout[-SHOWN:])
        raise UserError(f"python {' '.join(words[:2])}, exit code {done.returncode}: {last}")
    return last


def tests(cfg: BenchConfig) -> dict:
    """Run the tests of what holds on a GPU (a dry run only collects them)."""
    # no options of pyproject.toml: they need pytest-xdist
    words = command(
        *("-m", "pytest", "-o", "addopts=", "-q", "-m", "not long"),
        *(f"tests/test_{name}.py" for name in ("cuda", "deterministic")),
        *["--collect-only"] * cfg.dry_run,
    )
    return {"words": words}


def sample(cfg: BenchConfig) -> dict:
    """Run main.py --sample."""
    words = ["main.py", "--sample", "--workspace", str(cfg.workspace.with_name("of_main"))]
    for name, value in SAMPLE.items() if cfg.dry_run else ():
        words += [f"--{name}", str(value)]
    command(*words)
    return {"words": "runs to its end"}


def devices(cfg: BenchConfig) -> dict:
    """Train a network in float32; mine, search for pct and test with it on both devices."""
    cfg = replace(cfg, precision="float32", epochs=cfg.extent.epochs, lr=LR)
    train(cfg)
    fold, network = read_fold(cfg, FOLD), model_folder(cfg, FOLD, ood=False)
    files = ood_files(cfg, ood_candidates(cfg, fold.train))
    samples = count_samples(foreground_of(cfg, fold.train), cfg.patch_size**2)

    orders, found = {}, {"candidates": len(files)}
    for name, device in (("cpu", "cpu"), ("gpu", cfg.device)):
        of = replace(cfg, device=device)
        rows = rank_files(of, network, files, "mining")
        tested = score_networks(of, {"baseline": network}, fold.test, "")
        scores = tested.scores["baseline"]
        kept, orders[name] = sum(row[-1] for row in rows), [row[1] for row in rows]
        best, _ = choose_pct(*samples, kept, cfg.pct_grid, cfg.pnr_opt)
        of_device = {"kept": kept, "pct": best["pct"], "scores": {n: scores[n] for n in OWN_SCORES}}
        found[name] = of_device
    cpu, gpu = found["cpu"], found["gpu"]
    found["rank_correlation"] = rank_correlation(orders["gpu"], orders["cpu"])
    found["points"] = apart(gpu["scores"], cpu["scores"])
    words = (
        f"CPU: pct {cpu['pct']:g}, {cpu['kept']} of {len(files)} kept; GPU: pct {gpu['pct']:g},"
        f" {gpu['kept']} kept; rank correlation {found['rank_correlation']:.5f}, scores at most"
        f" {found['points']:.3f} points apart"
    )
    return {**found, "words": words}


def rank_correlation(first: list[str], second: list[str]) -> float:
    """Return Spearman's correlation of two orders of the same names."""
    place = {name: rank for rank, name in enumerate(second)}
    return float(np.corrcoef(range(len(first)), [place[name] for name in first])[0, 1])


def apart(first: dict, second: dict) -> float:
    """Return the largest difference between scores, in points (hundredths)."""
    pairs = [(first[name], second[name]) for name in first]
    return max((100 * abs(a - b) for a, b in pairs if None not in (a, b)), default=0.0)


def predicting(cfg: BenchConfig) -> dict:
    """Segment an image with that network on both devices, in float32."""
    plain = {field.name: getattr(cfg, field.name) for field in fields(Config)}
    plain |= {"precision": "float32", "image": (region_images(cfg)[0],), "image_mpp": cfg.mpp}
    masks = []
    for name, device in (("gpu", cfg.device), ("cpu", "cpu")):
        out, network = cfg.workspace / f"predicted_{name}", model_folder(cfg, FOLD, ood=False)
        own = {"device": device, "out": out, "checkpoint": network}
        predict_images(PredictConfig(**plain | own))
        masks.append(tifffile.imread(next(out.glob("*_mask.tif"))))
    same = float((masks[0] == masks[1]).mean())
    return {"same": same, "words": f"{100 * same:.3f} % of {masks[0].size:,} pixels are equal"}


def deterministic(cfg: BenchConfig) -> dict:
    """Train twice for an epoch with --deterministic; the weights must be the same bytes."""
    cfg, weights = replace(cfg, deterministic=True, epochs=1), set()
    try:
        for number in range(2):
            folder = cfg.workspace / "twice" / str(number)
            train_fold(cfg, FOLD, training_files(cfg), [], folder)
            weights.add((folder / "model.safetensors").read_bytes())
    finally:
        torch.use_deterministic_algorithms(False)
    if len(weights) > 1:
        raise UserError("two trainings with --deterministic gave different weights")
    return {"words": "two trainings gave the same bytes"}


def compiled(cfg: BenchConfig) -> dict:
    """Train an epoch in float32 without and with --compile."""
    cfg, losses = replace(cfg, precision="float32"), []
    patches, device = load_patches(cfg, training_files(cfg)), pick_device(cfg)
    for compile_ in (False, True):
        torch.manual_seed(0)
        trainer = Trainer(replace(cfg, compile=compile_), device)
        loader = Loader(cfg, FOLD, patches, device)
        losses.append(train_epoch(trainer, loader, cfg.lr)[0].cpu())
    apart = ((losses[1] - losses[0]).abs() / losses[0].abs()).max().item()
    words = f"the losses of {len(loader)} steps differ by at most {100 * apart:.3f} %"
    return {"apart": apart, "words": words}


# ---------------------------------------------------------------- how fast is a step?


def of_network(cfg: BenchConfig, encoder: str) -> BenchConfig:
    """Return the settings with an encoder of random weights; a dry run has only its own."""
    return cfg if cfg.dry_run else replace(cfg, encoder=encoder, encoder_weights="none")


def step(cfg: BenchConfig, encoder: str) -> dict:
    """Time a step, also with --compile, and plain loops on the same GPU, in turn."""
    cfg = of_network(cfg, encoder)
    device, extent = pick_device(cfg), cfg.extent
    precision = torch.bfloat16 if autocast(cfg, device)._enabled else torch.float32
    ours, found = {}, {"precision": str(precision).removeprefix("torch."), "ours": {}}
    for name, compile_ in (("ours", False), ("ours, --compile", True)):
        before = torch.cuda.memory_allocated()
        ours[name] = step_of(replace(cfg, compile=compile_))
        # --compile compiles in the first step and records in the one after the warm-up
        begin = [seconds_of(ours[name]) for _ in range(WARM_UP + 1)]
        peak = torch.cuda.max_memory_allocated() - before
        of_begin = {"first_s": begin[0], "recording_s": begin[-1], "peak_mb": peak / 1e6}
        found["ours"][name] = of_begin | launches(ours[name], device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
    with FlopCounterMode(display=False) as counter:
        ours["ours"]()
    found["flop"] = counter.get_total_flops()
    found["matrix_rate"] = matrix_rate(device, precision, cfg.rounds)

    files = training_files(cfg)[: extent.plain_steps * cfg.batch_size]
    plain, ready = Plain(cfg, files, device), Plain(cfg, files, device)
    ready.training = [next(iter(plain.training))] * len(plain.training)

    def in_bfloat16(train: Callable[[], None]) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            train()

    def repeated(take_step: Callable[[], object]) -> None:
        for _ in range(extent.steps):
            take_step()

    times = interleave(
        cfg.rounds,
        **{name: partial(repeated, each) for name, each in ours.items()},
        **{"plain loop, float32": plain.train},
        **{"plain loop, bfloat16": partial(in_bfloat16, plain.train)},
        **{"plain loop, bfloat16, batch ready": partial(in_bfloat16, ready.train)},
    )
    found["times"] = {}
    for name, seconds in times.items():
        each = [1000 * s / (extent.steps if name in ours else len(plain.training)) for s in seconds]
        row = {"ms": statistics.median(each), "low": min(each), "high": max(each)}
        row["reached"] = found["flop"] / (row["ms"] / 1000) / found["matrix_rate"]
        found["times"][name] = row
    listed = ", ".join(f"{name} {row['ms']:.2f}" for name, row in found["times"].items())
    return {**found, "words": f"ms a step: {listed}"}


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes, until the GPU has finished."""
    finish()
    started = time.perf_counter()
    work()
    finish()
    return time.perf_counter() - started


def launches(take_step: Callable[[], object], device: torch.device) -> dict:
    """Return, for a step: kernels, the ms in which they run, calls that start them, and waits."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as found:
        for _ in range(PROFILED):
            take_step()
        finish()
    events = [event for event in found.events() if not event.is_user_annotation]
    kernels = [event for event in events if event.device_type == DeviceType.CUDA]
    called = [event.name for event in events if event.device_type == DeviceType.CPU]
    called = [name for name in called if name.startswith("cu")]  # the driver and its runtime
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        for _ in range(PROFILED):
            take_step()
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    counts = {
        "kernels": len(kernels),
        "busy_ms": sum(event.time_range.elapsed_us() for event in kernels) / 1000,
        "calls": sum(any(part in name for part in LAUNCHES) for name in called),
        "waits": sum("called a synchronizing" in str(each.message) for each in caught),
    }
    return {name: count / PROFILED for name, count in counts.items()}


# ---------------------------------------------------------------- does the data keep up?


def data(cfg: BenchConfig, encoder: str) -> dict:
    """Time an epoch, mining, the search for pct and the test on random patches of Lizard's number.

    Reading is timed on the patches of DATA and scaled. The minutes of the main experiment are
    worked out from these times, without making the patches before and the report after.
    """
    cfg = of_network(cfg, encoder)
    device, extent = pick_device(cfg), cfg.extent
    files = training_files(cfg)
    reading = seconds_of(lambda: load_patches(cfg, files)) / len(files)
    patches = random_patches(cfg, extent.patches)
    epochs, starts = {}, {}
    for name, compile_ in (("plain", False), ("compile", True)):
        trainer = Trainer(replace(cfg, compile=compile_), device)
        few = random_patches(cfg, (WARM_UP + 2) * cfg.batch_size)
        begin = partial(train_epoch, trainer, Loader(cfg, FOLD, few, device), cfg.lr)
        starts[name] = seconds_of(begin)
        whole = partial(train_epoch, trainer, Loader(cfg, FOLD, patches, device), cfg.lr)
        epochs[name] = seconds_of(whole) / len(patches)
    model, counts = trainer.model.eval(), []

    def mine() -> None:
        batches = predict(cfg, model, patches.images, device, "mining")
        counts.extend(count_pixels(probability).cpu() for _, probability in batches)

    foreground = (patches.masks > 0).sum((1, 2)).tolist()  # stored when patches are cut

    def search() -> None:
        rows = rank_and_prune(patches.names, torch.cat(counts).numpy())
        samples = count_samples(foreground, cfg.patch_size**2)
        choose_pct(*samples, sum(row[-1] for row in rows), cfg.pct_grid, cfg.pnr_opt)

    mining, searching = seconds_of(mine) / len(patches), seconds_of(search)
    exact, part = replace(cfg, precision="float32"), random_patches(cfg, extent.tested)
    test = seconds_of(lambda: tally_patches(exact, model, part, device, "testing")) / len(part)
    # the test reads the patches of a fold once, for both networks
    read = (2 * TRAINED + WITH_OOD + TESTED) * reading
    beside = read + TRAINED * mining + searching + 2 * TESTED * test
    minutes = {}
    for name, epoch in epochs.items():
        fold = EPOCHS * (TRAINED + WITH_OOD) * epoch + 2 * starts[name] + beside
        minutes[name] = FOLDS * fold / 60
    words = (
        f"Lizard's {TRAINED:,} patches: read in {TRAINED * reading:.1f} s, an epoch"
        f" {TRAINED * epochs['plain']:.1f} s, with --compile {TRAINED * epochs['compile']:.1f},"
        f" mined in {TRAINED * mining:.1f}, pct in {searching:.2f}, {TESTED:,} tested in"
        f" {TESTED * test:.1f}; the main experiment, worked out: {minutes['plain']:.0f} minutes,"
        f" with --compile {minutes['compile']:.0f}"
    )
    per_patch = {"reading": reading, "mining": mining, "test": test, "epoch": epochs}
    found = {"seconds_per_patch": per_patch, "search_s": searching, "start_s": starts}
    return {**found, "minutes": minutes, "words": words}


def random_patches(cfg: Config, count: int) -> Patches:
    """Return patches of noise, with masks of noise."""
    shape, classes = (count, cfg.patch_size, cfg.patch_size), len(cfg.class_names)
    images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)
    masks = torch.randint(0, classes, shape, dtype=torch.uint8)
    names = [f"{number}.png" for number in range(count)]
    return Patches(names, images, masks, torch.zeros(count, dtype=torch.bool))
