"""Kill anything, any time: nothing half-written, nothing lost, one run at a time."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import portalocker
import pytest

from config import UserError
from generate_patches import generate_patches
from medood.data.files import tidy, whole
from medood.data.records import fresh_folder
from medood.runs.command_line import run
from medood.runs.locks import alone_in, holder_of, in_use

ROOT = Path(__file__).parents[1]


def sabotage(folder, points):
    command = [sys.executable, "tests/faults.py", str(folder), "--points", str(points)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_steps_that_are_stopped_end_as_undisturbed_ones(tmp_path):
    done = sabotage(tmp_path, points=2)
    assert not done["failures"], json.dumps(done["failures"], indent=2)
    assert done["stopped"] > 8  # of 16 strikes; one in time may come too late


@pytest.mark.endurance
def test_steps_that_are_stopped_at_20_points_end_as_undisturbed_ones(tmp_path):
    done = sabotage(tmp_path, points=20)
    print(done["strikes"], "strikes,", done["stopped"], "stopped the step")
    assert not done["failures"], json.dumps(done["failures"], indent=2)
    assert done["stopped"] > 100  # of 160


# ---------------------------------------------------------------- what is left, and put right


def test_a_file_takes_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "text"
    path.write_text("before")

    def stop():
        with whole(path) as partial:
            partial.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        stop()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("text", "before")]
    with whole(path) as partial:
        partial.write_text("after")
        assert path.read_text() == "before"
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("text", "after")]


def test_what_a_kill_left_is_removed_and_what_it_was_replacing_put_back(tmp_path):
    for name in (".Image_Patchs.x1.partial", "models/.1_unet.replaced", "models/2_unet"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "models/.2_unet.replaced").mkdir()  # its successor stands
    (tmp_path / "models/2_unet/.resume.pt.99999999.partial").write_text("half")
    exporting = f"models/2_unet/.model.onnx.{os.getpid()}.partial"  # by a process at work
    (tmp_path / exporting).write_text("half")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data").write_text("the user's")
    (tmp_path / ".Mask_Patchs.replaced").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "Mask_Patchs").mkdir()
    (tmp_path / "notes.partial").write_text("the user's")
    (tmp_path / ".hidden").write_text("the user's")
    tidy(tmp_path)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    kept = {"models/1_unet/file", "models/2_unet/file", "notes.partial", ".hidden"}
    assert left == {*kept, exporting, "elsewhere/data"}
    assert not (tmp_path / ".Mask_Patchs.replaced").is_symlink()


def test_a_linked_folder_is_replaced_and_what_it_leads_to_is_not_touched(patched, tmp_path):
    folder = patched.workspace / "Image_Patchs"
    folder.rename(patched.workspace / "elsewhere")
    folder.symlink_to(patched.workspace / "elsewhere")
    before = sorted(path.name for path in (patched.workspace / "elsewhere").iterdir())
    cfg = dataclasses.replace(patched, patch_size=64)
    with in_use(cfg.workspace):
        generate_patches(cfg)
    assert not folder.is_symlink()
    assert sorted(path.name for path in (patched.workspace / "elsewhere").iterdir()) == before
    with in_use(cfg.workspace):
        generate_patches(cfg)


def test_lists_are_not_drawn_again_while_another_run_reads_them(patched, other_run):
    with in_use(patched.workspace, ["2_unet"]):
        generate_patches(patched)
        other_run("1_unet")
        generate_patches(patched)  # what is there stays
        with pytest.raises(UserError, match="another run"):
            generate_patches(dataclasses.replace(patched, seed=5))


def test_a_replaced_folder_is_put_back_if_its_successor_cannot_take_its_name(tmp_path, monkeypatch):
    with fresh_folder(tmp_path / "made", {}) as out:
        (out / "a.png").write_text("before")
    rename = Path.rename

    def fail_for_new(path, target):
        if path.name.endswith(".partial"):
            raise OSError
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(OSError), fresh_folder(tmp_path / "made", {}) as out:  # noqa: PT011
        (out / "a.png").write_text("after")
    assert (tmp_path / "made/a.png").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


# ---------------------------------------------------------------- one run at a time

HOLD = """
import sys, time
from pathlib import Path
from medood.runs.locks import alone_in, in_use
folder, *parts = sys.argv[1:]
with in_use(Path(folder), parts):
    if "alone" in parts:
        with alone_in(Path(folder)):
            print("held", flush=True); time.sleep(60)
    print("held", flush=True); time.sleep(60)
"""


@pytest.fixture
def other_run(tmp_path):
    """Start another process that works in the folder; killed at the end."""
    started = []

    def start(*parts):
        command = [sys.executable, "-c", HOLD, str(tmp_path), *parts]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_the_part_of_another_run_is_refused_with_its_name(tmp_path, other_run):
    other = other_run("79_unet")
    with (
        pytest.raises(UserError, match=rf"process {other.pid} on .* works in .* on 79_unet"),
        in_use(tmp_path, ["158_unet", "79_unet"]),
    ):
        pass
    with in_use(tmp_path, ["158_unet"]):  # another fold is free
        pass


def test_data_are_not_made_anew_while_another_run_reads_them(tmp_path, other_run):
    other_run("79_unet")
    with in_use(tmp_path, ["158_unet"]):
        with pytest.raises(UserError, match="another run") as refused, alone_in(tmp_path):
            pass
        assert str(os.getpid()) not in str(refused.value)  # this run is not the other one


def test_no_run_begins_while_another_makes_the_data(tmp_path, other_run, monkeypatch):
    monkeypatch.setattr("medood.runs.locks.PATIENCE", 0.3)
    other_run("alone")
    with pytest.raises(UserError, match="another run"), in_use(tmp_path, ["158_unet"]):
        pass


def test_a_killed_run_holds_nothing_and_leaves_nothing_half_written(tmp_path, other_run):
    other = other_run("79_unet", "alone")
    (tmp_path / ".Image_Patchs.abc.partial").mkdir()
    other.kill()
    other.wait()
    with in_use(tmp_path, ["79_unet"]), alone_in(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".locks"]


def test_a_run_that_is_at_work_is_not_tidied_up_after(tmp_path, other_run):
    other_run("79_unet")
    (tmp_path / ".at_work.1.partial").write_text("its own")
    with in_use(tmp_path, ["158_unet"]):
        assert (tmp_path / ".at_work.1.partial").exists()


def test_a_second_run_is_refused_on_the_command_line(patched):
    command = [sys.executable, "train.py", f"--workspace={patched.workspace}", "--folds=1"]
    with in_use(patched.workspace, ["1_unet_vgg11_bn"]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "another run" in done.stderr


def test_a_folder_that_was_not_there_is_not_left_behind(tmp_path):
    with in_use(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- disks and pipes


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(UserError, match=r"cannot be written to \(Read-only file system\)"),
        in_use(tmp_path),
    ):
        pass


def test_a_full_disk_is_said_with_the_cure(tmp_path, monkeypatch, capsys):
    def fill(cfg):
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(sys, "argv", ["train.py", f"--workspace={tmp_path}"])
    with pytest.raises(SystemExit) as stop:
        run(fill)
    assert str(stop.value).startswith("error: No space left on device, ")
    assert "free some space and run the same command again" in str(stop.value)


def test_output_into_a_pipe_that_closes_is_no_traceback():
    command = f"{sys.executable} train.py --help | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""


def test_sigterm_ends_a_step_like_ctrl_c(patched):
    command = [sys.executable, "train.py", f"--workspace={patched.workspace}", "--folds=1"]
    options = ["--patch_size=32", "--encoder=tu-mobilenetv3_small_050", "--encoder_weights=none"]
    process = subprocess.Popen(
        [*command, *options, "--device=cpu", "--epochs=500"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    resume = patched.workspace / "models" / "1_unet_tu-mobilenetv3_small_050" / "resume.pt"
    while not resume.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, "stopped: the same command goes on from here\n")


# ---------------------------------------------------------------- the same bytes


def test_another_number_of_workers_gives_the_same_bytes(patched, tmp_path_factory):
    from tests.faults import tree

    once = tree(patched.workspace)
    more = dataclasses.replace(patched, workers=3)
    for path in patched.workspace.glob("*_Patchs/made_from.json"):
        path.write_text("{}")  # made from nothing: it is made again
    os.utime(patched.workspace)
    generate_patches(more)
    from generate_unfiltered_oods import generate_unfiltered_oods

    generate_unfiltered_oods(more)
    assert tree(patched.workspace) == once


def test_a_drive_that_knows_no_locks_is_said_once_and_used_but_not_tidied(
    tmp_path, monkeypatch, capsys
):
    def unknown(*_):
        raise portalocker.LockException("No locks available")

    for name in (".Image_Patchs.99999999.partial", "models/.1_unet.replaced"):  # of another node
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text("at work")
    monkeypatch.setattr(portalocker, "lock", unknown)
    with in_use(tmp_path, ["79_unet"]), alone_in(tmp_path):
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("file")}
    assert left == {".Image_Patchs.99999999.partial/file", "models/.1_unet.replaced/file"}
    said = capsys.readouterr().out
    assert said.count("no lock is to be had here (No locks available)") == 1
    assert said.count("\n") == 1


def test_what_another_machine_is_writing_is_left_for_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr("medood.data.files.HOST", "node-1.cluster")  # a process of this number
    writing = []
    for age in (0, 23, 25):
        with whole(tmp_path / f"{age}.json") as partial:
            partial.write_text("half")
            writing.append(partial)
    monkeypatch.setattr("medood.data.files.HOST", "node-2.cluster")  # does not run there
    monkeypatch.setattr(os, "kill", lambda *_: 1 / 0)
    now = time.time()
    for partial, age in zip(writing, (0, 23, 25), strict=True):
        partial.write_text("half")
        os.utime(partial, (now - 3600 * age, now - 3600 * age))
    with in_use(tmp_path):
        assert [partial.exists() for partial in writing] == [True, True, False]


def test_two_machines_write_one_file_under_two_names(tmp_path, monkeypatch):
    names = set()
    for host in ("node-1", "node-2"):
        monkeypatch.setattr("medood.data.files.HOST", host)
        with whole(tmp_path / "scores.json") as partial:
            partial.write_text("{}")
            names.add(partial.name)
    assert len(names) == 2


def test_a_lock_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    lock = tmp_path / ".locks" / "folder"

    def refuse(path, *_, **__):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=rf"{lock} cannot be written to"), in_use(tmp_path):
        pass


def test_a_network_is_exported_while_its_workspace_is_held(tmp_path, monkeypatch):
    import runpy

    from medood.runs import command_line

    folder = tmp_path / "models" / "1_unet"
    folder.mkdir(parents=True)
    with in_use(tmp_path):
        pass
    assert holder_of(folder) == tmp_path
    assert holder_of(Path("models")) is None
    held = []
    monkeypatch.setattr(
        command_line, "_held", lambda *held_by: held.append(held_by) or nullcontext()
    )
    monkeypatch.setattr(sys, "argv", ["export.py", str(folder)])
    with pytest.raises(SystemExit, match="no network"):
        runpy.run_path(str(ROOT / "export.py"), run_name="__main__")
    assert held == [(tmp_path, [])]
