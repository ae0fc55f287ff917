"""From the command line to a step, and from a user's mistake to one sentence."""

import dataclasses
import errno
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from importlib import import_module
from pathlib import Path

import tyro

from config import CONFIG, Data, UserError
from medood.processes import is_main, joined
from medood.runs.locks import locked

CURES = {
    errno.ENOSPC: "free some space and run the same command again: finished work is kept",
    errno.EROFS: "name a folder that can be written to",
    errno.EACCES: "allow it, or name another folder",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler, or `kill`, ends the run; it stops as after Ctrl-C."""


def _terminate(*_: object) -> None:
    raise Terminated


def networks_of(cfg: Data) -> list[str]:
    """Return the names of the networks that a run with these settings trains or uses."""
    if not hasattr(cfg, "model_name"):
        return []
    return [f"{fold}_{cfg.model_name}".replace("/", "_") for fold in cfg.folds]


def run(
    step: Callable[[Data], object],
    defaults: Data = CONFIG,
    folder: Callable[[Data], Path | None] = lambda cfg: cfg.workspace,
    parts: Callable[[Data], list[str]] = networks_of,
    sample: str | None = None,
) -> None:
    """Call `step` with the settings of `defaults`, changed as the command line says.

    `defaults` is CONFIG, or an instance of a subclass with the arguments that one script adds.
    folder, parts: from the settings, where the step writes, and what of it no other run may write
    at the same time. sample: the module of the script's sample, see `parse`. A mistake that the
    user can correct ends in one sentence on standard error and exit code 1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # so that any name can be shown, in any encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        with joined():
            cfg = parse(defaults, sys.argv[1:], sample)
            place = None
            if is_main():
                place = folder(cfg)
                signal.signal(signal.SIGTERM, _terminate)
            with locked(place, parts(cfg)) if place else nullcontext():
                step(cfg)
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # the program that read the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        known = [str(part) for part in (error.strerror, error.filename) if part]
        cure = f": {CURES[error.errno]}" if error.errno in CURES else ""
        sys.exit(f"error: {', '.join(known) or error}{cure}")
    except MemoryError:
        sys.exit("error: the memory is full: close other programs, or cut large images into parts")
    except KeyboardInterrupt as stop:
        print("stopped: the same command continues from here", file=sys.stderr)
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        sys.exit(128 + number)  # as shells and schedulers expect


def parse(defaults: Data, arguments: list[str], sample: str | None = None) -> Data:
    """Return the settings of `defaults` as the arguments change them.

    sample: the module whose SETTINGS replace `defaults` with --sample. The arguments are then read
    again, so that a given one wins, even if it repeats a default of config.py. Raises UserError
    for an argument that the script does not take, and for data named together with a sample, which
    sets them to None to draw them itself.
    """
    cfg = _read(defaults, arguments)
    if sample is not None and cfg.sample:
        found = import_module(sample)
        by_method = getattr(found, "BY_METHOD", {})
        settings = found.SETTINGS | by_method.get(getattr(cfg, "method", None), {})
        cfg = _read(dataclasses.replace(defaults, **settings), arguments)
        for name, value in settings.items():
            if value is None and getattr(cfg, name) is not None:
                raise UserError(f"--{name}: --sample draws its own data: remove one of the two")
    return cfg


def _read(defaults: Data, arguments: list[str]) -> Data:
    """Return the settings of `defaults` as the arguments change them; --help prints them."""
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(
                type(defaults),
                default=defaults,
                args=arguments,
                description=(sys.modules["__main__"].__doc__ or "").split("\n")[0],
                use_underscores=True,
            )
    except SystemExit as stop:
        if stop.code:
            cure = shlex.join(["python", sys.argv[0], "--help"])
            raise UserError(f"{_sentence(complaint.getvalue())}: see `{cure}`") from None
        sys.stdout.flush()  # a pipe that is closed shows here
        raise


def _sentence(box: str) -> str:
    """Return what tyro prints in a box as one sentence, with the options that it suggests."""
    lines = [line.strip("│| ") for line in box.splitlines() if line[:1] not in "╭╰+"]
    what, *others = re.split(r"\n[─-]+\n", "\n".join(lines))
    what = re.sub(r"^Error parsing \w+Config: ", "", what)  # a rule of several settings names them
    suggested = [part for part in others if part.startswith("Perhaps you meant")]
    close = " or ".join(re.findall(r"--\w+", "".join(suggested)))
    return " ".join(what.split()).rstrip(".") + (f", perhaps {close}" if close else "")
