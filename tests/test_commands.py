"""The commands that messages print: what the printed script reads is what the run had."""

import importlib
import re
import runpy
import shlex
import sys
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import get_args, get_type_hints
from unittest import mock

import pytest

from config import CONFIG, Data, UserError
from medood.commands import as_kind, command
from medood.runs import command_line
from medood.runs.command_line import parse
from robust import settings as robust
from tests.conftest import ROOT, printed_in
from weak.settings import MasksConfig, TransferConfig

SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("", "robust", "weak", "studies")
    for path in (ROOT / folder).glob("*.py")
    if re.search(r"^    run\(", path.read_text(), re.MULTILINE)
)
# values that a shell, a parser or a careless hand would take for something else
VALUES = [
    *(None, True, False, 0, 1, 2, 3, 32, 64, 1024, -1, 0.0, 0.1, 0.25, 0.5, 1e-05, 7.25),
    *(Path("a b"), Path("it's"), Path("-x"), Path("--epochs"), Path("constrain.py_data/$HOME")),
    *("none", "tu-hf_hub:a/b", "a 'b' \"c\"", "-x", "$(x); y", "-(case [0-9]+)_.*|(?:#)&", "x.csv"),
    *("tcp://10.0.0.1:8786", "a\nb", ""),
    *((7,), (3, 1, 2), (0.25, 1.0), (0.5,), (), ("a b", "c -d"), ("unet_vgg11_bn",)),
    *((Path("-a"), Path("b c")), (Path("#d"),)),
]
OF_DATA = {"classes": (("-x", "#000000"), ("#", "#0072b2")), "mask_values": (255, 7)}
TOGETHER = [  # settings that fit no other value alone
    {"images": Path("my scans"), "masks": Path("-masks")},
    {"images": Path("a;b"), "masks": Path("c"), **OF_DATA},
    {"classes": (("tumour #1", "#d55e00"), ("it's", "#0072b2"))},
]


@cache
def kind_of(script: str) -> type[Data]:
    """Return the class of the settings that a script takes."""
    with mock.patch.object(command_line, "run") as run, mock.patch.object(sys, "argv", [script]):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    _, defaults = (*run.call_args.args, CONFIG)[:2]
    name = type(defaults).__name__
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    return getattr(module, name, type(defaults))  # that of the module has a source to read


def arrived(printed: str, kind: type[Data], monkeypatch) -> Data:
    """Return the settings that a printed command reaches its script with."""
    python, script, *arguments = shlex.split(printed)
    assert python == "python"
    monkeypatch.setattr(sys, "argv", [str(ROOT / script)])
    return parse(kind(), arguments)


@cache
def awkward(kind: type[Data], name: str) -> list:
    """Return values that a setting may have."""
    hint = get_type_hints(kind)[name]
    literals = [v for part in (hint, *get_args(hint)) for v in get_args(part)]
    found = []
    for value in [*VALUES, *literals, *[(v,) for v in literals]]:
        try:
            replace(kind(), **{name: value})
        except (UserError, ValueError):
            continue
        if value != getattr(kind(), name):
            found.append(value)
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_printed_command_reaches_its_script_with_the_settings_of_the_run(script, monkeypatch):
    """In each of three runs every setting has another of its values.

    Only the first word of a setting may start with "-": the parser knows no spelling of others.
    """
    kind = kind_of(script)
    values = {f.name: awkward(kind, f.name) for f in fields(kind)}
    alone = {name for each in TOGETHER for name in each}
    for turn, together in enumerate(TOGETHER):
        given = {
            name: found[(7 * turn + place) % len(found)]
            for place, (name, found) in enumerate(values.items())
            if found and name not in alone
        }
        cfg = replace(kind(), **given | {k: v for k, v in together.items() if k in values})
        printed = command(cfg, script, kind)
        assert arrived(printed, kind, monkeypatch) == cfg, printed


def test_a_name_that_two_scripts_declare_is_not_shared():
    """`eps` are the radii of attack.py, and the radius of train_free.py."""
    cfg = robust.AttackConfig(eps=(1.0, 2.0), steps=7, epochs=5)
    assert as_kind(cfg, robust.FreeConfig) == robust.FreeConfig(epochs=5)
    cfg = MasksConfig(outline=True, lesion="a b", epochs=3)
    assert shlex.split(command(cfg, "weak/train_transfer.py", TransferConfig, folds=(79,))) == [
        *("python", "weak/train_transfer.py", "--folds", "79", "--epochs", "3", "--lesion", "a b")
    ]


def test_the_printed_commands_lead_from_the_data_to_a_training(tiny, monkeypatch, run_script):
    """From a folder of the user's, whose name a shell would take apart."""
    from train import train

    def run(printed):
        _, script, *arguments = shlex.split(printed)
        return run_script(Path(script).resolve(), *arguments)

    home = tiny.workspace / "it's (my) $HOME"
    home.mkdir()
    for name in ("Lizard_Images", "Labels"):
        (tiny.workspace / name).rename(home / name)
    monkeypatch.chdir(home.parent)
    monkeypatch.setattr("medood.training.segmentation.train_fold", lambda *_: None)
    cfg = replace(tiny, workspace=Path(home.name), folds=(2,))
    followed = []
    for _ in range(2):
        try:
            train(cfg)
        except UserError as error:
            followed.append(printed_in(str(error)))
            while (done := run(followed[-1])).returncode:
                followed.append(printed_in(done.stderr))
    assert [Path(line.split()[1]).name for line in followed] == [
        "generate_patches.py",
        "generate_semantic_labels.py",
        "generate_patches.py",
    ]
    train(cfg)
