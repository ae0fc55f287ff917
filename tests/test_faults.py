"""Kill anything, any time: nothing half-written, nothing lost, one run at a time."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import filelock
import pytest

from config import UserError
from generate_patches import generate_patches
from medood.data.files import whole
from medood.data.records import fresh_folder
from medood.runs.command_line import run
from medood.runs.locks import locked
from tests.conftest import ROOT

OFTEN = pytest.param(20, 100, marks=pytest.mark.endurance)


# stopped: at least so many; one strike in time may come too late
@pytest.mark.parametrize(("points", "stopped"), [pytest.param(1, 4, marks=pytest.mark.long), OFTEN])
def test_steps_that_are_stopped_end_as_undisturbed_ones(tmp_path, points, stopped):
    command = [sys.executable, "-m", "tests.faults", str(tmp_path), str(points)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["failures"], json.dumps(found["failures"], indent=2)
    assert found["stopped"] > stopped  # of 8 strikes a point


def test_a_file_takes_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "text"
    path.write_text("before")
    with pytest.raises(KeyError), whole(path) as partial:
        raise KeyError(partial.write_text("half"))
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("text", "before")]
    (tmp_path / ".text.partial").write_text("half, by a killed run")
    with whole(path) as partial:
        partial.write_text("after")
        assert path.read_text() == "before"
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("text", "after")]


def test_a_replaced_folder_is_put_back_if_its_successor_cannot_take_its_name(tmp_path, monkeypatch):
    with fresh_folder(tmp_path / "made", {}) as out:
        (out / "a.png").write_text("before")
    rename = Path.rename

    def fail_for_new(path, target):
        if path.name.endswith(".partial"):
            raise OSError
        return rename(path, target)

    (tmp_path / ".made.partial").mkdir()  # as a killed run leaves it
    (tmp_path / ".made.partial" / "half").touch()
    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(OSError), fresh_folder(tmp_path / "made", {}) as out:  # noqa: PT011
        (out / "a.png").write_text("after")
    assert (tmp_path / "made/a.png").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


HOLD = """
import sys, time
from pathlib import Path
from medood.runs.locks import locked
with locked(Path(sys.argv[1]), sys.argv[2:]):
    print("held", flush=True); time.sleep(60)
"""


@pytest.fixture
def other_run(tmp_path):
    """Start another process that works in the folder; killed at the end."""
    with ExitStack() as stack:

        def start(*parts):
            command = [sys.executable, "-c", HOLD, str(tmp_path), *parts]
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout.readline() == "held\n"
            return process

        yield start


def test_the_network_of_another_run_is_refused_with_its_name_until_that_is_killed(
    tmp_path, other_run
):
    other = other_run("79_unet")
    with (
        pytest.raises(UserError, match=rf"process {other.pid} on .* is writing .*79_unet"),
        locked(tmp_path, ["158_unet", "79_unet"]),
    ):
        pass
    with locked(tmp_path, ["158_unet"]):  # another fold is free
        pass
    other.kill()
    other.wait()
    with locked(tmp_path, ["79_unet"]):
        pass


def test_two_runs_do_not_make_the_same_patches(patched, other_run):
    other_run("Image_Patchs")
    generate_patches(patched)  # what is there stays
    with pytest.raises(UserError, match="another run .* is writing .*Image_Patchs"):
        generate_patches(dataclasses.replace(patched, patch_size=64))
    with locked(patched.workspace / "misspelt", ["79_unet"]):
        assert (patched.workspace / "misspelt").is_dir()
    assert not (patched.workspace / "misspelt").exists()  # a folder that was not there


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "free some space and run the same command again"),
        (errno.EROFS, "name a folder that can be written to"),
    ],
)
def test_a_disk_that_takes_no_file_is_said_with_the_cure(tmp_path, monkeypatch, number, cure):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), "x")

    monkeypatch.setattr(sys, "argv", ["train.py", f"--workspace={tmp_path}"])
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SystemExit) as stop:
        run(refuse)
    assert str(stop.value).startswith(f"error: {os.strerror(number)}, x: {cure}")


def test_output_into_a_pipe_that_closes_is_no_traceback():
    command = f"{sys.executable} train.py --help | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""


def test_sigterm_ends_a_step_like_ctrl_c(patched):
    command = [sys.executable, "train.py", f"--workspace={patched.workspace}", "--folds=1"]
    options = ["--patch_size=32", "--encoder=tu-test_resnet", "--encoder_weights=none"]
    process = subprocess.Popen(
        [*command, *options, "--device=cpu", "--epochs=500"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    resume = patched.workspace / "models" / "1_unet_tu-test_resnet" / "resume.pt"
    while not resume.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, "stopped: the same command continues from here\n")


def test_a_drive_that_knows_no_locks_is_said_once_and_used(tmp_path, monkeypatch, capsys):
    def unknown(_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "_acquire", unknown)
    with locked(tmp_path, ["79_unet", "158_unet"]), locked(tmp_path, ["79_unet"]):
        said = capsys.readouterr().out
    assert said.count("this disk has no file locks ([Errno") == said.count("\n") == 1
