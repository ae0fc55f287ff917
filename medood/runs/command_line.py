"""From the command line to a step, and from a user's mistake to one sentence."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import tyro

from config import CONFIG, Config, UserError
from medood.processes import is_main, joined
from medood.runs.locks import in_use

CURES = {
    errno.ENOSPC: "free some space and run the same command again: nothing that was done is lost",
    errno.EROFS: "name a folder that can be written to",
    errno.EACCES: "allow it, or name another folder",
}


def networks_of(cfg: Config) -> list[str]:
    """Return the names of the networks that a run with these settings trains or uses."""
    return [f"{fold}_{cfg.model_name}".replace("/", "_") for fold in cfg.folds]


def run(
    step: Callable[[Config], object],
    defaults: Config = CONFIG,
    folder: Callable[[Config], Path | None] = lambda cfg: cfg.workspace,
    parts: Callable[[Config], list[str]] = networks_of,
) -> None:
    """Call `step` with the settings of `defaults`, changed as the command line says.

    `defaults` is CONFIG, or an instance of a subclass with the arguments that one script adds.
    folder, parts: from the settings, where the step writes, and what of it no other run may write
    at the same time. A mistake that the user can mend ends in one sentence on standard error and
    exit code 1.
    """
    try:
        with joined():
            cfg = _parse(defaults)
            with nullcontext() if not is_main() else _held(folder(cfg), parts(cfg)):
                step(cfg)
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # whoever read the output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        known = [str(part) for part in (error.strerror, error.filename) if part]
        cure = f": {CURES[error.errno]}" if error.errno in CURES else ""
        sys.exit(f"error: {', '.join(known) or error}{cure}")
    except MemoryError:
        sys.exit(
            "error: the memory is full: close other programs, or lower max_pixels or max_memory"
        )
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        sys.exit(130)


@contextmanager
def _held(folder: Path | None, parts: list[str]) -> Iterator[None]:
    """Hold the folder that a step writes to, if any, and be stopped by SIGTERM as by Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # of schedulers
    with in_use(folder, parts) if folder else nullcontext():
        yield


def _parse(defaults: Config) -> Config:
    """Return the settings that the command line asks for."""
    summary = sys.modules["__main__"].__doc__.split("\n")[0]
    try:
        kind = type(defaults)
        return tyro.cli(kind, default=defaults, description=summary, use_underscores=True)
    except SystemExit as stop:
        sys.stdout.flush()
        sys.exit(1 if stop.code else 0)
