"""The commands in messages: each works when copied, in the folder where this run was started."""

import os
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import get_type_hints

from tyro.conf import Positional, UseAppendAction

from config import Data

ROOT = Path(__file__).resolve().parents[1]


def command(cfg: Data, script: str, kind: type[Data] = Data, **changed: object) -> str:
    """Return the command that runs a script with the settings of this run.

    script: as seen from the repository root. kind: of the settings that it takes. changed: its
    settings that are to differ from those of this run. Settings at their defaults are left out.
    """
    wanted = replace(as_kind(cfg, kind), **changed)
    hints = get_type_hints(kind, include_extras=True)
    named, flagged = [], []  # names first: a list of values would take those behind it as values
    for field in fields(kind):
        value = getattr(wanted, field.name)
        if value == field.default:
            continue
        marks = getattr(hints[field.name], "__metadata__", ())
        if Positional in marks:
            named += _texts(value)
        else:
            flagged += _words(field.name, value, marks)
    return shlex.join(["python", os.path.relpath(ROOT / script), *named, *flagged])


def as_kind(cfg: Data, kind: type[Data]) -> Data:
    """Return settings for another script: those that both scripts share, and its own defaults.

    A name that two classes declare, such as `eps`, means two settings: it is not shared.
    """
    shared = [field.name for field in fields(kind) if field in fields(cfg)]
    return kind(**{name: getattr(cfg, name) for name in shared})


def _words(name: str, value: object, marks: tuple) -> list[str]:
    """Return what sets a setting on the command line. marks: tyro's, of how it is given."""
    if isinstance(value, bool):
        return [f"--{'' if value else 'no_'}{name}"]
    values = _texts(value)
    if UseAppendAction in marks:
        return [word for each in values for word in (f"--{name}", each)]
    if values and values[0].startswith("-"):  # after a space it would be read as an option
        return [f"--{name}={values[0]}", *values[1:]]
    return [f"--{name}", *values]


def _texts(value: object) -> list[str]:
    """Return a value as words, one for each part of a tuple, all the way down.

    A path that starts with - is written so that it is not read as an option.
    """
    if isinstance(value, tuple):
        return [text for part in value for text in _texts(part)]
    text = str(value)
    return [f"./{text}" if isinstance(value, Path) and text.startswith("-") else text]
