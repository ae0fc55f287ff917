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
from typing import Annotated, get_type_hints

import tyro

from config import CONFIG, Data, Network, UserError
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
    if not isinstance(cfg, Network):
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
    for a setting that the script does not take, and for data named together with a sample, which
    sets them to None to draw them itself.
    """
    values = _values(defaults, arguments)
    if sample is not None and values["sample"]:
        found = import_module(sample)
        settings = found.SETTINGS | getattr(found, "BY_METHOD", {}).get(values.get("method"), {})
        defaults = dataclasses.replace(defaults, **settings)
        values = _values(defaults, arguments)
        for name in settings:
            if settings[name] is None and values.get(name) is not None:
                raise UserError(f"--{name}: --sample draws its own data: remove one of the two")
    return dataclasses.replace(defaults, **values)


def _values(defaults: Data, arguments: list[str]) -> dict[str, object]:
    """Return the value of each setting of a script, by name: given, or of `defaults`.

    --help lists them, in the groups of config.py.
    """
    left = {field.name for field in dataclasses.fields(defaults)}
    groups = []
    for kind in type(defaults).__mro__:  # a script may declare a setting of config.py again
        names = [name for name in vars(kind).get("__annotations__", {}) if name in left]
        left = left.difference(names)
        if names:
            groups.insert(0, _group(kind, names, defaults))
    known = dataclasses.make_dataclass(
        "Settings", [(group.__name__, group, group()) for group in groups]
    )
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            found = tyro.cli(
                known,
                args=_spelt_as_flags(defaults, arguments),
                description=(sys.modules["__main__"].__doc__ or "").split("\n")[0],
                use_underscores=True,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if stop.code:
            cure = shlex.join(["python", sys.argv[0], "--help"])
            raise UserError(f"{_sentence(complaint.getvalue())}: see `{cure}`") from None
        sys.stdout.flush()  # a pipe that is closed shows here
        raise
    return {name: value for group in vars(found).values() for name, value in vars(group).items()}


def _group(kind: type, names: list[str], defaults: Data) -> type:
    """Return a dataclass of some settings that a class, of config.py or of a script, declares."""
    hints = get_type_hints(kind, include_extras=True)
    fields = [
        (
            name,
            Annotated[hints[name], tyro.conf.arg(help=kind.__pydantic_fields__[name].description)],
            dataclasses.field(default=getattr(defaults, name)),
        )
        for name in names
    ]
    title = kind.__name__.removesuffix("Config").lower()
    namespace = {"__doc__": kind.__doc__}
    return dataclasses.make_dataclass(title, fields, frozen=True, namespace=namespace)


def _sentence(box: str) -> str:
    """Return what tyro prints in a box as one sentence, with the options that it suggests."""
    lines = [line.strip("│| ") for line in box.splitlines() if line[:1] not in "╭╰+"]
    what, *others = re.split(r"\n[─-]+\n", "\n".join(lines))
    suggested = [part for part in others if part.startswith("Perhaps you meant")]
    close = " or ".join(re.findall(r"--\w+", "".join(suggested)))
    return " ".join(what.split()).rstrip(".") + (f", perhaps {close}" if close else "")


def _spelt_as_flags(defaults: Data, arguments: list[str]) -> list[str]:
    """Return the arguments with `--batch_norm False` as `--no_batch_norm`, which tyro takes."""
    kinds = get_type_hints(type(defaults))
    flags = "|".join(name.replace("_", "[-_]") for name, kind in kinds.items() if kind is bool)
    separator = "\0"  # no argument can hold it
    switch = re.compile(rf"--({flags})[={separator}](true|false)(?={separator}|$)", re.IGNORECASE)
    text = switch.sub(
        lambda found: f"--{'no_' if found[2].lower() == 'false' else ''}{found[1]}",
        separator.join(arguments),
    )
    return text.split(separator) if arguments else []
