"""A tiny Lizard, drawn in the test's own folder, and settings that name all they rely on."""

import dataclasses
import importlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

# before torch is imported: each of pytest-xdist's processes has a core, and so have its children
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from filelock import FileLock
from tifffile import imwrite

from config import LIZARD, Config, Data, TrainingConfig
from medood.data.images import write_png
from medood.sample import draw_region, mat_bytes

ROOT = Path(__file__).parents[1]
TINY = Config(
    classes=LIZARD,
    images=None,
    masks=None,
    mask_values=(),
    mpp=0.5,
    patch_size=32,
    folds=(1, 2, 3),
    split="patch",
    patients=None,
    ood_fill="zero",
    ood_source=None,
    ood_source_use="instead",
    dask_scheduler=None,
    architecture="unet",
    encoder="tu-test_resnet",
    encoder_weights="none",
    batch_norm=True,
    epochs=2,
    batch_size=8,
    lr=1e-3,
    loss="dice",
    ood_weight=1.0,
    select="last",
    pnr_opt=0.65,
    pct_grid=tuple(tenth / 10 for tenth in range(11)),
    device="cpu",
    precision="float32",
    seed=0,
    compile=False,
    deterministic=False,
    tensorboard=False,
)


STEPS = (
    *("generate_semantic_labels", "generate_patches", "generate_unfiltered_oods", "train"),
    *("rank_prune_ood", "estimate_pct", "train_ood", "test"),
)


def kind_of(script: str) -> type[Data]:
    """Return the class of settings that a script of the trunk takes, if it has none of its own."""
    if script.startswith("generate"):
        return Data
    return TrainingConfig if script in ("train.py", "rank_prune_ood.py") else Config


def as_settings_of(kind: type[Config], cfg: Config, **own: object) -> Config:
    """Return settings as those of a script that takes more, with some of its own."""
    names = {field.name for field in dataclasses.fields(kind)}
    names.intersection_update(field.name for field in dataclasses.fields(Config))
    return kind(**{name: getattr(cfg, name) for name in names} | own)


def in_a_copy(cfg: Config, workspace: Path) -> Config:
    """Return the settings of a run of weak/ on drawn images, in a copy of its own."""
    shutil.copytree(cfg.workspace, workspace)
    return moved(cfg, workspace)


def moved(cfg: Config, workspace: Path) -> Config:
    """Return the settings of a run of weak/ on drawn images, which lies in another folder."""
    drawn = workspace / "drawn"
    own = {"images": drawn / "images", "masks": drawn / "masks"}
    own["image_labels"] = drawn / "image_labels.csv"
    return dataclasses.replace(cfg, workspace=workspace, **own)


@pytest.fixture
def run_script(monkeypatch, capfd) -> Callable[..., subprocess.CompletedProcess]:
    """A function that runs a script as a command does, but in this process: torch is imported."""

    def start(script: str, *arguments: object) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *map(str, arguments)])
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers
        capfd.readouterr()
        code, said = 0, ""
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            code, said = (1, f"{stop.code}\n") if isinstance(stop.code, str) else (stop.code, "")
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(sys.argv, code or 0, out, err + said)

    return start


def run_program(program: str) -> str:
    """Run lines of Python in a process of their own, which imports afresh; return its output."""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def printed_in(text: str) -> str:
    """Return the one command that a text names."""
    (found,) = re.findall("`(.*?)`", text, re.DOTALL)
    return found


def write_region(workspace: Path, name: str, height: int, width: int, seed: int) -> None:
    """Draw one region in the flat layout: Lizard_Images/ and Labels/."""
    image, inst_map, ids, classes = draw_region(np.random.default_rng(seed), height, width)
    for folder in ("Lizard_Images", "Labels"):
        (workspace / folder).mkdir(parents=True, exist_ok=True)
    write_png(workspace / "Lizard_Images" / f"{name}.png", image)
    (workspace / "Labels" / f"{name}.mat").write_bytes(mat_bytes(inst_map, ids, classes))


def write_slide(path: Path, image: np.ndarray, **more: object) -> None:
    """Write an image, RGB uint8 (H, W, 3), as a tiled TIFF, as OpenSlide reads it."""
    imwrite(path, image, tile=(256, 256), photometric="rgb", **more)


def draw_regions(workspace: Path) -> None:
    """Draw three regions of odd sizes: 12 + 16 + 9 = 37 patches."""
    for seed, (height, width) in enumerate([(90, 128), (97, 100), (70, 65)]):
        write_region(workspace, f"region_{seed}", height, width, seed)


def drawn_tissue(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of the sample, RGB (H, W, 3), and its class mask (H, W), uint8."""
    image, inst_map, ids, classes = draw_region(np.random.default_rng(seed), height, width)
    class_of = np.zeros(inst_map.max() + 1, np.uint8)
    class_of[ids] = classes
    return image, class_of[inst_map]


@pytest.fixture
def tiny(made_once, tmp_path) -> Config:
    """Settings of a workspace with three regions."""
    shutil.copytree(made_once("drawn", draw_regions), tmp_path, dirs_exist_ok=True)
    return dataclasses.replace(TINY, workspace=tmp_path)


def prepare(workspace: Path) -> Config:
    """Draw three regions and make patches, folds and OoD patches; return the settings."""
    draw_regions(workspace)
    cfg = dataclasses.replace(TINY, workspace=workspace)
    for step in STEPS[:3]:
        getattr(importlib.import_module(step), step)(cfg)
    return cfg


@pytest.fixture
def patched(made_once, tmp_path) -> Config:
    """The same with patches, folds and OoD patches made."""
    shutil.copytree(made_once("patched", prepare), tmp_path, dirs_exist_ok=True)
    return dataclasses.replace(TINY, workspace=tmp_path)


@pytest.fixture
def one_fold(patched) -> Config:
    """The same for fold 1 alone."""
    return dataclasses.replace(patched, folds=(1,))


@pytest.fixture(scope="session")
def trained(made_once) -> Config:
    """Settings of a workspace with the baseline of fold 1, which no test changes."""
    from train import train

    def make(folder):
        train(dataclasses.replace(prepare(folder), folds=(1,)))

    return dataclasses.replace(TINY, workspace=made_once("trained", make), folds=(1,))


@pytest.fixture
def one_trained(trained, tmp_path) -> Config:
    """The same in a copy of its own."""
    copy = shutil.copytree(trained.workspace, tmp_path, dirs_exist_ok=True)
    return dataclasses.replace(trained, workspace=copy)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable], Path]:
    """A function that fills a folder, once for all of pytest-xdist's processes, and returns it.

    Tests read it or copy it: another process may be reading it at the same time.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock", timeout=600):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return once


@contextmanager
def quick_resamples() -> Iterator[None]:
    """The 2000 resamples behind intervals take longer than all else in a report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medood.evaluation.statistics.RESAMPLES", 100)
        yield


@pytest.fixture(scope="session", autouse=True)
def few_resamples() -> Iterator[None]:
    """The same, for all tests."""
    with quick_resamples():
        yield


@pytest.fixture(scope="session")
def whole_run(made_once):
    """A workspace after a whole run over two folds; each step reads the settings of its script."""

    def make(folder):
        draw_regions(folder / "run")
        cfg = dataclasses.replace(TINY, workspace=folder / "run", folds=(1, 2))
        for script in STEPS:
            step = getattr(importlib.import_module(script), script.replace("test", "evaluate"))
            step(as_settings_of(kind_of(f"{script}.py"), cfg))

    return made_once("whole", make) / "run"


@pytest.fixture
def ran(whole_run, tmp_path) -> Config:
    """The settings of such a run, in a copy of its own."""
    shutil.copytree(whole_run, tmp_path / "run")
    return dataclasses.replace(TINY, workspace=tmp_path / "run", folds=(1, 2))


@pytest.fixture
def report(ran) -> tuple[Config, Path]:
    """The same, and the folder of its report."""
    return ran, ran.workspace / "reports" / ran.model_name


@contextmanager
def quick_reports() -> Iterator[None]:
    """Figures are one grey pixel, without axes, which take longer than to draw on them."""
    pixel = np.full((1, 1, 3), 128, np.uint8)

    def blank_axes(figure, rows=1, columns=1, squeeze=True):
        return mock.Mock() if squeeze else np.full((rows, columns), mock.Mock(), object)

    def save(figure, path, **_):
        write_png(path, pixel)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", save)
        patch.setattr("matplotlib.figure.Figure.subplots", blank_axes)
        yield


@pytest.fixture
def quick_report():
    """The same, for one test."""
    with quick_reports():
        yield


@pytest.fixture(scope="session")
def weak_run(made_once):
    """The settings of a workspace after a whole run of weak/ by maps."""

    from tests.small_weak import few_pictures, settings_of, small
    from weak.main import main

    def make(folder):
        with few_pictures():
            main(small(folder / "run"))

    return settings_of(made_once("weak", make) / "run")


@pytest.fixture
def gpu():
    """A GPU, or a stand-in that is as strict."""
    from tests import gpus, standin

    if not gpus.HERE and standin.register is None:
        pytest.skip("needs a GPU, or torch 2.10 for a stand-in")
    with nullcontext(gpus.Cuda()) if gpus.HERE else standin.started() as device:
        yield device


@pytest.fixture
def volume_cfg(tmp_path, monkeypatch, made_once):
    """Settings for a task of six small synthetic volumes, of which a fold tests two."""
    from robust import settings, volume_sample, volumes

    monkeypatch.setattr(volumes, "WIDTHS", (4, 8, 8, 8))
    monkeypatch.setattr(volume_sample, "CASES", 6)
    data = tmp_path / "sample" / volume_sample.TASK
    drawn = made_once("volumes", volume_sample.draw_sample) / "sample" / volume_sample.TASK
    shutil.copytree(drawn, data)
    return settings.TrainVolumesConfig(
        workspace=tmp_path, data=data, folds=(79,), epochs=1, precision="float32", device="cpu"
    )


@pytest.fixture
def trained_volumes(volume_cfg, made_once):
    """The same with the network of fold 79."""
    from robust.train_volumes import train_volumes

    def train(folder):
        train_volumes(dataclasses.replace(volume_cfg, workspace=folder))

    trained = made_once("volume_network", train)
    shutil.copytree(trained / volume_cfg.task, volume_cfg.home)
    return volume_cfg
