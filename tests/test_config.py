"""Settings: wrong ones are refused where they are set, and every script explains them."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest

from config import Config, UserError
from tests.conftest import TINY

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py") if path.name != "config.py")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("patch_size", 100),
        ("patch_size", 0),
        ("folds", ()),
        ("folds", (79, 79)),
        ("split", "patient"),
        ("ood_fill", "black"),
        ("workers", 0),
        ("dask_scheduler", "10.0.0.1"),
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("loss", "focal"),
        ("ood_weight", -1.0),
        ("pnr_opt", 0.0),
        ("pct_grid", (0.0, 60.0)),
        ("precision", "float16"),
        ("seed", -1),
        ("max_memory", 0.0),
        ("max_memory", -1.0),
        # of the wrong type, as an edit of config.py may leave it
        ("folds", 79),
        ("folds", (79, "158")),
        ("epochs", "36"),
        ("epochs", 36.5),
        ("batch_size", True),
        ("lr", (1e-4,)),
        ("workspace", "workspace"),
        ("deterministic", "yes"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(setting, value):
    with pytest.raises(UserError, match=f"^{setting} = "):
        dataclasses.replace(TINY, **{setting: value})


def test_there_is_a_script_for_every_step():
    assert SCRIPTS == [
        "estimate_pct.py",
        "export.py",
        "generate_patches.py",
        "generate_semantic_labels.py",
        "generate_unfiltered_oods.py",
        "main.py",
        "predict.py",
        "rank_prune_ood.py",
        "test.py",
        "train.py",
        "train_ood.py",
    ]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_setting_and_imports_no_torch(script):
    program = (
        f"import runpy, sys; sys.argv = [{script!r}, '--help']\n"
        f"try: runpy.run_path({script!r}, run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    for field in dataclasses.fields(Config):
        assert f"--{field.name}" in done.stdout
    assert seconds < 10  # a hang, not a speed: bench/ holds the speeds


@pytest.mark.parametrize(
    "arguments",
    [["--lose", "dice"], ["--loss", "focal"], ["--patch_size", "100"], ["--epochs", "x"]],
)
def test_a_wrong_argument_exits_with_1_and_no_traceback(arguments):
    command = [sys.executable, "estimate_pct.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert arguments[0].lstrip("-") in done.stderr


def test_the_sample_has_settings_of_its_own(monkeypatch):
    from main import defaults

    monkeypatch.setattr(sys, "argv", ["main.py", "--sample"])
    assert defaults().encoder_weights == "none"
    monkeypatch.setattr(sys, "argv", ["main.py"])
    assert defaults().encoder_weights == Config().encoder_weights
