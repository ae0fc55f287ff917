"""Damage files of every kind and read them: nothing worse than a sentence may come of it.

A tiny workspace with one trained network is made. Of each file that a user or a stranger could put
there, bytes are changed at random, and what reads the file is called: it must return or raise
UserError within seconds, and must not write outside the folder.
"""

import dataclasses
import importlib
import math
import random
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat
from tifffile import imwrite

from config import Config, UserError
from medood.data.files import csv_text, write_text
from medood.data.folds import read_fold, read_official
from medood.data.images import image_size, read_image, read_mask
from medood.data.labels import KEYS, read_own_mask, read_region_label
from medood.data.ood_set import chosen_oods, read_hard_oods
from medood.data.records import is_kept, record_of
from medood.data.workspace import fold_path, pct_path, ranking_path
from medood.evaluation.model_card import write_card
from medood.models.checkpoints import load_model, read_run, seen_in_training, with_settings_of
from medood.predicting.slides import open_image
from tests.conftest import STEPS, TINY, draw_regions, write_slide
from tests.faults import written

SECONDS = 20  # that a reader may take
PICTURES = ("tif", "bmp", "jpg")
WORDS = (b"../../escaped.png", b"-1", b"1e999", b"null", b'"', b",", b"[", b"{}", b"NaN", b"\r\n")
WORDS += (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff")

Reader = Callable[[Path], object]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with a few changes: bits, bytes, words, pieces cut out, doubled or moved."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 2, 16))):
        place, length = rng.randrange(len(out) + 1), rng.choice((1, 4, 64, 1024))
        piece = out[place : place + length]
        new = rng.choice((rng.randbytes(1), rng.choice(WORDS), piece, b""))
        out[place : place + rng.choice((0, len(new), length))] = new
    return bytes(out)


def prepare(folder: Path) -> Config:
    """Make a workspace in which every kind of file lies."""
    cfg = dataclasses.replace(TINY, workspace=folder, folds=(1,), epochs=1)
    draw_regions(folder)
    rows = [(f"region_{number}", "drawn", number + 1) for number in range(3)]
    write_text(folder / "Labels" / "info.csv", csv_text(["FileName", "Source", "Split"], rows))
    plain = folder / "Labels" / "region_1.mat"  # as older programs write it: not compressed
    content = loadmat(plain, variable_names=KEYS)
    savemat(plain, {name: content[name] for name in KEYS})
    for step in STEPS[:-2]:
        getattr(importlib.import_module(step), step)(cfg)
    own = folder / "own"
    own.mkdir()
    with Image.open(next((folder / "Mask_Patchs").glob("*.png"))) as mask:
        for ending in ("tif", "bmp"):
            mask.save(own / f"mask.{ending}")
        imwrite(own / "wide.tif", np.array(mask, np.int64))
    with Image.open(folder / "Lizard_Images" / "region_2.png") as image:
        for ending in PICTURES:
            image.save(own / f"image.{ending}")
        write_slide(own / "slide.tif", np.array(image))
    network = load_model(folder / "models" / f"1_{cfg.model_name}", cfg)
    torch.save(network, own / "whole.pth")
    torch.save(network.state_dict(), own / "weights.pth")
    return cfg


def targets(cfg: Config) -> dict[str, list[tuple[Path, Reader, int]]]:
    """Return, for each kind, files with what reads them and how often they are to be damaged."""
    work, own = cfg.workspace, cfg.workspace / "own"
    model, classes = work / "models" / f"1_{cfg.model_name}", len(cfg.class_names)
    patch = next((work / "Image_Patchs").glob("*.png"))
    mask, record = work / "Mask_Patchs" / patch.name, work / "Image_Patchs/made_from.json"
    fold, estimate = fold_path(cfg.workspace, 1), pct_path(cfg, 1)

    def describe(path: Path) -> None:
        run = read_run(path.parent)
        with_settings_of(cfg, path.parent)
        if "data" in run:
            write_card(work / "made_from_network", run)

    def label(path: Path) -> object:
        return read_region_label(path, cfg)

    def picture(path: Path) -> object:
        return image_size(path), read_image(path)

    def own_mask(path: Path) -> object:
        return read_own_mask(path, (), classes)

    def checkpoint(path: Path) -> object:
        return load_model(path, cfg)

    return {
        ".mat": [(work / f"Labels/region_{number}.mat", label, 10) for number in (1, 2)],
        ".png": [
            (patch, picture, 12),
            (mask, lambda path: (read_mask(path, classes), own_mask(path)), 8),
        ],
        ".tif, .bmp, .jpg": [
            *((own / f"image.{ending}", picture, 4) for ending in PICTURES),
            *((own / name, own_mask, 3) for name in ("mask.tif", "mask.bmp", "wide.tif")),
            (own / "slide.tif", lambda path: open_image(path).rows(0, 9, 9, 9), 4),
        ],
        ".csv": [
            (fold, lambda _: read_fold(cfg, 1), 5),
            (work / "Labels/info.csv", lambda _: read_official(work, []), 3),
            (ranking_path(cfg, 1), lambda _: read_hard_oods(cfg, 1), 4),
            (model / "trained_on.txt", lambda path: seen_in_training(path.parent), 1),
        ],
        ".json": [
            (model / "run.json", describe, 5),
            (model / "config.json", lambda path: checkpoint(path.parent), 2),
            (estimate, lambda _: chosen_oods(cfg, 1), 4),
            (record, lambda _: (is_kept(patch.parent, {}), record_of(patch.parent).bad_files), 3),
            (fold.with_suffix(".json"), lambda _: is_kept(fold, {}), 2),
        ],
        ".safetensors": [(model / "model.safetensors", lambda _: checkpoint(model), 6)],
        ".pth": [(own / f"{name}.pth", checkpoint, 3) for name in ("whole", "weights")],
    }


def fuzz(folder: Path, count: int) -> tuple[dict, list[str]]:
    """Damage `count` files; return the refused share of each kind, and all that must not happen."""
    cfg = prepare(folder / "work")
    kinds = targets(cfg)
    share = count / sum(weight for files in kinds.values() for *_, weight in files)
    rng, wrong, refused, is_over = random.Random(0), [], {}, []

    def hear(event: str, arguments: tuple) -> None:  # Python keeps a hook as long as it runs
        path = None if is_over else written(event, arguments)
        if path is not None and not path.startswith((str(folder), "/dev/")):
            wrong.append(f"outside: {event} {path}")

    def stop(*_: object) -> None:
        raise TimeoutError

    sys.addaudithook(hear)
    before = signal.signal(signal.SIGALRM, stop)
    with warnings.catch_warnings(action="ignore"):
        for kind, files in kinds.items():
            answers = []
            for path, reader, weight in files:
                whole = path.read_bytes()
                reader(path)  # what is whole is accepted
                for _ in range(math.ceil(weight * share)):
                    damaged = mutate(whole, rng)
                    path.write_bytes(damaged)
                    signal.alarm(SECONDS)
                    try:
                        reader(path)
                        answers.append(False)
                    except UserError:
                        answers.append(True)
                    except BaseException as error:
                        kept = folder / f"wrong_{len(wrong)}{path.suffix}"
                        kept.write_bytes(damaged)
                        wrong.append(f"{path.name}: {type(error).__name__}: {error} ({kept})")
                    signal.alarm(0)
                path.write_bytes(whole)
            refused[kind] = sum(answers) / len(answers)
    is_over.append(True)
    signal.signal(signal.SIGALRM, before)
    return refused, wrong


OFTEN = pytest.param(10_000, marks=pytest.mark.endurance)


@pytest.mark.parametrize("count", [pytest.param(300, marks=pytest.mark.slow), OFTEN])
def test_damaged_files_end_in_a_sentence(tmp_path, count):
    refused, wrong = fuzz(tmp_path, count)
    assert wrong == []
    for kind, share in refused.items():
        assert share > 0.2, kind  # they were really damaged
