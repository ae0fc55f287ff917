"""All that is to be known of a GPU, in one command of under 9 minutes: `python bench/gpu.py DATA`.

DATA is a workspace with images and labels in Lizard's layout; nothing is written into it. The
script prints what it will do, looks whether the GPU gives what the CPU gives, and times a step and
the work on as many patches as Lizard has. It writes bench/results/gpu_<name>.json, which
bench/page.py shows. Each part runs in a process of its own, so that one that fails leaves the
others be; the exit code is then 1.

`--dry_run` does the same on the CPU in a minute, tiny and with one process: its figures mean
nothing.
"""

import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import (
    Figures,
)
from bench.gpu_parts import (
    FOLD,
    ROOT,
    BenchConfig,
    compiled,
    data,
    deterministic,
    devices,
    labelled,
    predicting,
    prepare,
    sample,
    step,
    tests,
)
from bench.roofline import NETWORKS
from config import UserError
from medood.runs.command_line import run

LIMIT = 510  # seconds: a part that would pass it is left out
RUNAWAY = 2  # times its seconds, a part is stopped
# settings of a dry run
TINY = {"encoder": "tu-test_resnet", "encoder_weights": "none", "patch_size": 32, "rounds": 1}
TINY |= {"device": "cpu", "sizes": ((96, 128),)}


@dataclass(frozen=True)
class Part:
    """A part of the measurement, and the seconds that it may take on a GPU."""

    name: str
    seconds: int
    measure: Callable[[BenchConfig], dict]  # found, with `words` for the reader

    @property
    def about(self) -> str:
        """What it does, in a line."""
        function = getattr(self.measure, "func", self.measure)
        return function.__doc__.splitlines()[0]


PARTS = (
    Part("prepare", 10, prepare),
    Part("tests", 45, tests),
    Part("devices", 40, devices),
    Part("predict", 15, predicting),
    Part("deterministic", 20, deterministic),
    Part("compile", 45, compiled),
    *(Part(f"step {encoder}", 60, partial(step, encoder=encoder)) for encoder in NETWORKS),
    *(Part(f"data {encoder}", 40, partial(data, encoder=encoder)) for encoder in NETWORKS),
    Part("sample", 50, sample),
)


def attempt(measure: Callable[[BenchConfig], dict], cfg: BenchConfig) -> dict:
    """Return what a part found, or why it failed in one line."""
    try:
        # nothing is compiled in a dry run: it takes a minute
        with torch.compiler.set_stance("force_eager") if cfg.dry_run else nullcontext():
            return {"state": "done", **measure(cfg)}
    except Exception as error:  # whatever it is, the other parts are worth their time
        traceback.print_exc()
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return {"state": "failed", "words": reason}


def isolated(measure: Callable[[BenchConfig], dict], cfg: BenchConfig, seconds: float) -> dict:
    """Do what `attempt` does in a process of its own, and stop it after some seconds.

    A fault on the GPU spoils all that its process does with the GPU after it.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_in_group, args=(measure, cfg, sender))
    child.start()
    sender.close()
    try:
        if receiver.poll(seconds):
            return receiver.recv()
        return {"state": "failed", "words": f"stopped after {seconds:.0f} s"}
    except EOFError:
        child.join()
        return {"state": "failed", "words": f"its process ended with code {child.exitcode}"}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # with the processes that it has started
        child.kill()
        child.join()


def _in_group(measure: Callable, cfg: BenchConfig, sender: Connection) -> None:
    os.setsid()
    sender.send(attempt(measure, cfg))


def result_of(part: Part, cfg: BenchConfig, left: float) -> dict:
    """Return the result of a part with its state and seconds; left: what is left of LIMIT."""
    print(f"\n---- {part.name}: {part.about}", flush=True)
    started = time.perf_counter()
    if part.seconds > left:
        words = f"left out: its {part.seconds} s would pass {LIMIT} s in all"
        found = {"state": "skipped", "words": words}
    elif cfg.dry_run:
        found = attempt(part.measure, cfg)
    else:
        found = isolated(part.measure, cfg, min(RUNAWAY * part.seconds, left))
    found["seconds"] = round(time.perf_counter() - started, 1)
    print(f"---- {part.name} {found['state']}, {found['seconds']} s: {found['words']}", flush=True)
    return found


def bench(cfg: BenchConfig) -> None:
    """Run every part, and write what each found."""
    if not cfg.dry_run and not torch.cuda.is_available():
        raise UserError("no GPU is here: try --dry_run, which runs on the CPU")
    if not cfg.dry_run and cfg.data is None:
        raise UserError("no data: name a workspace, `python bench/gpu.py workspace`")
    if cfg.data is not None:
        labelled(cfg)
    started = time.perf_counter()
    cfg = replace(cfg, folds=(FOLD,), split="patch", select="last", compile=False)
    cfg = replace(cfg, **TINY) if cfg.dry_run else replace(cfg, device="cuda")
    figures = Figures("gpu", f"all parts{', tiny and on the CPU' * cfg.dry_run}")
    figures.content["command"] = f"python bench/gpu.py {'--dry_run' if cfg.dry_run else 'DATA'}"
    results = figures.content.setdefault("parts", {})
    device, path = figures.content["machine"]["device"], cfg.json
    if path is None and not cfg.dry_run:
        name = "_".join(re.findall("[a-z0-9]+", device.lower()))
        path = ROOT / "bench" / "results" / f"gpu_{name}.json"
    for part in PARTS:
        print(f"{part.seconds:5d} s  {part.name:<18}  {part.about}")
    allotted = sum(part.seconds for part in PARTS)
    print(f"{allotted:5d} s  in all, on a GPU; what would pass {LIMIT} s is left out")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/compiled"  # nothing from before
        cfg = replace(cfg, workspace=Path(folder) / "workspace")
        cfg.workspace.mkdir()
        for part in PARTS:
            left = LIMIT - (time.perf_counter() - started)
            results[part.name] = result_of(part, cfg, left)
            figures.write(path)  # after each part: the machine may be gone before the last one
    print()
    for name, found in results.items():
        print(f"{found['seconds']:6.1f} s  {name:<18}  {found['state']}: {found['words']}")
    print(f"{time.perf_counter() - started:6.1f} s in all" + (f": {path}" if path else ""))
    failed = [name for name, found in results.items() if found["state"] == "failed"]
    if failed:
        raise UserError(f"{', '.join(failed)} failed: the reasons are above")


if __name__ == "__main__":
    run(bench, BenchConfig(), lambda cfg: None)
