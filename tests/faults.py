"""Kill every step in the middle, again and again, and compare what a second run makes of it.

`python -m tests.faults FOLDER 20` runs each step of the pipeline on a tiny data set once
undisturbed. Then, for each of 20 points, it runs the step again from where it began and stops it:
at a random moment, or at a random opening, renaming or removing of a file, by SIGKILL, SIGTERM,
Ctrl-C or a disk that is full. After that, every file under its final name must be the one of before
or the one of an undisturbed run, and the same command must end with the tree of such a run.

Steps run in forks of one process that has imported everything: a run costs its work alone.
"""

import errno
import hashlib
import json
import os
import random
import runpy
import shutil
import signal
import sys
import threading
import time
import traceback
from dataclasses import fields
from pathlib import Path

import torch

import medood.evaluation.report  # with the others, what the steps import late
import medood.models.checkpoints
import medood.training.segmentation  # noqa: F401
from tests.conftest import ROOT, STEPS, TINY, kind_of, write_region

SETTINGS = ("patch_size", "encoder", "encoder_weights", "epochs", "lr", "precision", "device")
WAYS = ("SIGKILL", "SIGTERM", "SIGINT", "disk full")
# what two equal runs differ in
UNEQUAL = ("times.csv", "index.html", ".locks", "__pycache__")


def written(event: str, arguments: tuple) -> str | None:
    """Return the file that an event of Python's audit hooks writes, renames or removes, or None."""
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return str(path) if writes else None
    is_one = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.system")
    return str(arguments[0]) if is_one else None


class Saboteur:
    """Counts what the process does to files below a folder, and strikes at one of them."""

    def __init__(self, folder: Path, at: int | None, way: str) -> None:
        self.folder, self.at, self.way, self.count = str(folder), at, way, 0
        self.lock = threading.Lock()
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple) -> None:
        path = written(event, arguments)
        if path is None or not path.startswith(self.folder) or ".locks" in path:
            return
        with self.lock:
            self.count += 1
            strike = self.count == self.at
        if strike and self.way == "disk full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if strike:
            os.kill(os.getpid(), getattr(signal, self.way))


def run(step: str, work: Path, log: Path, at: int | None, after: float | None, way: str) -> tuple:
    """Run a step in a fork and return its exit code, its seconds and how many events it had.

    at: the event to strike at. after: the seconds to strike after. Neither: it is left in peace.
    """
    started, note = time.monotonic(), log.with_suffix(".count")
    note.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = 99
        saboteur = Saboteur(work, at, way)
        try:
            used = {field.name for field in fields(kind_of(f"{step}.py"))}
            values = [f"--{name}={getattr(TINY, name)}" for name in SETTINGS if name in used]
            sys.argv = [f"{step}.py", f"--workspace={work}", "--folds=1", *values]
            runpy.run_path(str(ROOT / f"{step}.py"), run_name="__main__")
            code = 0
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, flush=True)
            code = stop.code if isinstance(stop.code, int) else 1
        except KeyboardInterrupt:
            code = 130  # while Python was still importing: not the step's to catch
        except BaseException:
            traceback.print_exc()
        finally:
            note.write_text(str(saboteur.count))
            sys.stdout.flush()
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(child, getattr(signal, way))
    _, status = os.waitpid(child, 0)
    count = int(note.read_text()) if note.exists() else 0
    return os.waitstatus_to_exitcode(status), time.monotonic() - started, count


def tree(folder: Path) -> dict[str, str]:
    """Return the hash of every file that equal runs make equal, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(name in path.parts for name in UNEQUAL)
    }


def half_written(work: Path, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return the files under a final name that are neither of before nor of an undisturbed run."""
    wrong = []
    for name, content in tree(work).items():
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        if name.endswith("resume.pt"):
            torch.load(work / name, weights_only=True)  # an epoch's of its own: it must be whole
        elif content not in (before.get(name), after.get(name)):
            wrong.append(name)
    return wrong


def sabotage(folder: Path, points: int) -> dict:
    """Strike each step at `points` points; return what was done and all that went wrong."""
    work, states, log = folder / "work", folder / "states", folder / "log"
    for number, (height, width) in enumerate([(64, 96), (40, 70)]):  # 6 + 6 patches
        write_region(work, f"region_{number}", height, width, number)
    shutil.copytree(work, states / "0")
    rng = random.Random(0)
    done = {"stopped": 0, "failures": []}
    for number, step in enumerate(STEPS, start=1):
        code, seconds, events = run(step, work, log, None, None, "")
        assert code == 0, log.read_text()
        shutil.copytree(work, states / str(number))
        before, expected = tree(states / str(number - 1)), tree(work)
        for point in range(points):
            way = WAYS[(number + point) % len(WAYS)]
            # a full disk strikes at a file; the others there or at any time
            by_event = way == "disk full" or rng.random() < 0.5
            at = rng.randint(1, events) if by_event else None
            after = None if by_event else rng.uniform(0, seconds)
            shutil.rmtree(work)
            shutil.copytree(states / str(number - 1), work)
            code, _, _ = run(step, work, log, at, after, way)
            said, wrong = log.read_text(), half_written(work, before, expected)
            again, _, _ = run(step, work, log, None, None, "")
            found = tree(work)
            differ = [n for n in found | expected if found.get(n) != expected.get(n)]
            done["stopped"] += code != 0
            if wrong or differ or again or "Traceback" in said:
                where = f"event {at}" if by_event else f"{after:.2f} of {seconds:.2f} s"
                told = log.read_text()[-600:] if again else ""
                found = {"half-written": wrong, "differ": differ, "said": said[-600:], "then": told}
                done["failures"].append({"strike": f"{step}, {way} at {where}", **found})
        shutil.rmtree(work)
        shutil.copytree(states / str(number), work)
    return done


if __name__ == "__main__":
    print(json.dumps(sabotage(Path(sys.argv[1]).resolve(), int(sys.argv[2]))))
