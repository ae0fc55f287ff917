"""Settings: wrong ones are refused where they are set, and every script explains them."""

import dataclasses
import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from config import Config, UserError, settings
from export import ExportConfig
from medood.runs.command_line import parse
from predict import PredictConfig
from tests.conftest import ROOT, TINY, kind_of, run_program

OWN = {"predict.py": PredictConfig, "export.py": ExportConfig}  # they use no training's settings
SETTINGS = {field.name for field in dataclasses.fields(Config)}
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py") if path.name != "config.py")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("patch_size", 100),
        ("patch_size", 0),
        ("folds", ()),
        ("folds", (79, 79)),
        ("split", "patient"),
        ("dask_scheduler", "10.0.0.1"),
        ("epochs", 0),
        ("lr", 0.0),
        ("ood_weight", -1.0),
        ("pct_grid", (0.0, 60.0)),
        ("seed", -1),
        # of the wrong type, as an edit of config.py may leave it
        ("folds", 79),
        ("folds", (79, "158")),
        ("epochs", 36.5),
        ("batch_size", True),
        ("workspace", "workspace"),
        ("workspace", Path("of_Latin-1_\udcf6")),
        ("deterministic", "yes"),
        # a description of data of one's own
        ("classes", ()),
        ("classes", (("a", "#000000"), ("a", "#ffffff"))),
        ("classes", (("background", "#000000"),)),
        ("classes", (("a", "red"),)),
        ("classes", (("a",),)),
        ("mask_values", (255,)),
        ("mask_values", (0, 1, 2, 3, 4, 255)),
        ("mask_values", (1, 2, 3, 4, 255, 255)),
        ("mpp", 0.0),
        ("patients", "(p"),
        ("patients", "patients.xls"),  # no group
    ],
)
def test_a_wrong_value_is_refused_with_its_name(setting, value):
    cfg = dataclasses.replace(TINY, images=Path("i"), masks=Path("m"))
    with pytest.raises(UserError, match=f"^{setting} = "):
        dataclasses.replace(cfg, **{setting: value})


@settings
class ImagesAlone(Config):
    """Settings of a script that needs masks for a test alone."""

    has_pixel_masks: ClassVar[bool] = False


def test_images_need_masks_but_where_masks_only_test(tmp_path):
    for given, shown in (({"images": tmp_path}, "None"), ({"masks": tmp_path}, f"'{tmp_path}'")):
        with pytest.raises(UserError, match=f"^masks = {shown} must be set together with images"):
            Config(**given)
        assert not ImagesAlone(**given).has_pixel_masks
    # nor are their values checked: the classes are not known yet
    assert ImagesAlone(images=tmp_path, mask_values=(255,)).mask_values == (255,)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_the_settings_that_the_script_uses(run_script, script):
    done = run_script(script, "--help")
    assert done.returncode == 0, done.stderr
    named = set(re.findall(r"--(?!no_)(\w+)", done.stdout)) & SETTINGS
    kind = OWN.get(script, kind_of(script))
    assert named == {field.name for field in dataclasses.fields(kind)} & SETTINGS


def test_help_imports_no_torch():
    program = "import runpy, sys\n"
    for script in (*SCRIPTS, "robust/main.py"):
        program += f"sys.argv = [{script!r}, '--help']\n"
        program += f"try: runpy.run_path({script!r}, run_name='__main__')\n"
        program += "except SystemExit as stop: assert not stop.code\n"
    program += "import medood.check\n"  # every worker of a cluster does
    program += "assert 'torch' not in sys.modules"
    run_program(program)


def test_a_switch_has_two_names(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    found = parse(TINY, ["--no_batch_norm", "--epochs", "7", "--tensorboard"])
    assert found == dataclasses.replace(TINY, batch_norm=False, epochs=7, tensorboard=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lose", "dice"],
        ["--loss", "focal"],
        ["--patch_size", "100"],
        ["--epochs", "x"],
        ["--classes", "tumour", "d55e00"],
        ["--split"],
    ],
)
def test_a_wrong_argument_exits_with_1_and_no_traceback(run_script, arguments):
    done = run_script("estimate_pct.py", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1  # one sentence
    assert arguments[0].lstrip("-") in done.stderr
    if arguments[0] in ("--lose", "--tile"):
        assert done.stderr.endswith("estimate_pct.py --help`\n")


MAINS = {  # the sample of each main.py: a setting, its value there and in config.py, and data
    "main": ("medood.sample", "epochs", 6, 36, "images"),
    "weak.main": ("weak.sample", "epochs", 8, 36, "image_labels"),
    "robust.main": ("robust.volume_sample", "epochs", 10, 30, "data"),
}


@pytest.fixture(params=MAINS)
def sampled(request, monkeypatch):
    """What reads the arguments of a main.py, and what its sample changes."""
    script = importlib.import_module(request.param)
    module, *changed = MAINS[request.param]
    monkeypatch.setattr(sys, "argv", [f"{request.param.replace('.', '/')}.py"])
    return lambda *arguments: parse(script.MainConfig(), list(arguments), module), *changed


def test_a_sample_has_settings_of_its_own_over_which_an_argument_wins(sampled):
    read, setting, value, default, _ = sampled
    for arguments, asked in (("--no_sample --sample", True), ("--sample --no_sample", False)):
        found = read(*arguments.split())
        assert (found.sample, getattr(found, setting)) == (asked, value if asked else default)
    for value in (default, 7):  # also with the default of config.py
        assert getattr(read("--sample", f"--{setting}", str(value)), setting) == value
    assert read("--folds", "79", "158", "237", "--sample").folds == (79, 158, 237)


def test_data_named_beside_a_sample_are_refused_as_it_draws_its_own(sampled):
    read, *_, data = sampled
    with pytest.raises(UserError, match=f"--{data}: --sample draws its own data"):
        read("--sample", f"--{data}", "of_mine", *["--masks", "m"] * (data == "images"))


def test_importing_config_changes_no_hook_of_another_program(tmp_path):
    program = "import sys; before = sys.excepthook; import config; assert sys.excepthook is before"
    (tmp_path / "own.py").write_text(program)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, tmp_path / "own.py"], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_while_python_imports_shows_no_traceback(tmp_path):
    (tmp_path / "pydantic.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "stopped\n")


def test_a_package_that_is_missing_is_named_with_the_cure():
    given = [sys.executable, "-S", "main.py"]  # without what is installed
    done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the package pydantic is not installed: ")
    assert done.stderr.count("\n") == 1
