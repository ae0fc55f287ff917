"""The benchmarks: each runs once at its smallest, and what it writes fits the page.

No time is judged here: what a benchmark measures on a few small patches means nothing.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tifffile import imwrite

import bench.common
from bench import (
    attack,
    gpu,
    gpu_parts,
    infer,
    intervals,
    lizard,
    mine,
    nuclei,
    page,
    prepare,
    roofline,
    scale,
    seeds,
    train,
    variants,
)
from config import UserError
from generate_semantic_labels import generate_semantic_labels
from medood import sample
from medood.data.images import read_mask
from tests.conftest import TINY, write_region

SETTINGS = {
    **{field.name: getattr(TINY, field.name) for field in dataclasses.fields(TINY)},
    **{"encoder": "tu-test_resnet", "precision": "auto", "folds": (79,), "epochs": 1},
}
SMALL = SETTINGS | {"sizes": ((128, 96),)}
ROUND = SMALL | {"rounds": 1}
TIMED = {  # the benchmarks that write figures, with the file in bench/results that they write
    "attack_mobilenet_v2": (attack.bench, attack.BenchConfig, ROUND | {"steps": 1}),
    "infer_mobilenet_v2": (infer.bench, infer.BenchConfig, ROUND | {"patches": 8}),
    "mine_mobilenet_v2": (
        *(mine.bench, mine.BenchConfig),
        ROUND | {"patches": 8, "trained": 1, "searched": 60},
    ),
    "prepare": (prepare.bench, prepare.BenchConfig, ROUND | {"regions": 2}),
    "roofline": (roofline.bench, bench.common.MeasureConfig, ROUND),
    "scale": (
        *(scale.bench, scale.BenchConfig),
        SMALL | {"factors": (1, 2), "regions": 2, "sizes": ((256, 384),)},
    ),
    "seeds": (seeds.bench, seeds.BenchConfig, ROUND | {"seeds": 1, "patch_size": 64}),
    "train_mobilenet_v2": (train.bench, train.BenchConfig, ROUND | {"patches": 8}),
    "variants_mobilenet_v2": (variants.bench, bench.common.MeasureConfig, ROUND),
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A workspace of its own; what would take long whatever the settings say is made short."""
    monkeypatch.setattr(sample, "REGIONS", 3)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # put back after the test
    (tmp_path / "workspace").mkdir()
    with torch.compiler.set_stance("force_eager"):  # a compilation takes a minute
        yield tmp_path / "workspace"


@pytest.mark.parametrize("name", TIMED)
def test_a_benchmark_writes_the_figures_that_the_page_shows(name, small, tmp_path, monkeypatch):
    measure, kind, settings = TIMED[name]
    before = contents_of_results()
    results = tmp_path / "results"
    shutil.copytree(page.RESULTS, results)
    monkeypatch.setattr(scale, "measure", in_this_process)
    written = results / f"{name}.json"
    written.unlink()

    measure(kind(**settings | {"workspace": small, "json": written}))

    figures, committed = (
        json.loads((folder / written.name).read_text()) for folder in (results, page.RESULTS)
    )
    assert shape(figures) == shape(committed)
    assert page.page(results) != page.page()  # StrictUndefined: no figure that it names is missing
    assert list(small.iterdir()) == []
    assert contents_of_results() == before


def in_this_process(step, cfg):
    """What scale.measure does, without the process of its own, which imports torch anew."""
    step(cfg)
    return 1.0, 1.0


def contents_of_results():
    return {path.name: path.read_bytes() for path in page.RESULTS.iterdir()}


def shape(value):
    """What a JSON holds, without its values: the names of objects, and what a list is of."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items()}
    if isinstance(value, list):
        return [shape(part) for part in value[:1]]
    return "number" if isinstance(value, int | float) else type(value)


def test_a_step_is_measured_in_a_process_of_its_own(tiny):
    seconds, memory = scale.measure(scale.preparation, tiny)
    assert seconds > 0
    assert memory > 50  # MB: the process holds the libraries


def test_the_size_of_lizard_at_the_smallest(small, capsys):
    settings = SMALL | {"regions": 2, "sizes": ((256, 384),), "workspace": small / "lizard"}
    lizard.bench(lizard.BenchConfig(**settings))
    lines = capsys.readouterr().out.splitlines()
    steps = [step.__name__ for step in lizard.STEPS]
    assert [line.split()[0] for line in lines[-len(steps) :]] == steps
    assert len(list((small / "lizard" / "Image_Patchs").glob("*.png"))) == 2 * 6
    with pytest.raises(UserError, match="is not empty: name a new folder with --workspace"):
        lizard.bench(lizard.BenchConfig(**settings))


def test_intervals_of_two_comparisons(capsys):
    intervals.main(comparisons=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["3", "9"]  # trainings
    assert all("a difference is claimed in" in line for line in lines)


def test_nuclei_in_the_true_masks_and_in_predicted_ones(small, tmp_path, capsys):
    write_region(small, "region_0", 96, 128, seed=0)
    cfg = nuclei.BenchConfig(**SETTINGS | {"workspace": small})
    nuclei.bench(cfg)
    of_truth = capsys.readouterr().out
    generate_semantic_labels(cfg)
    mask = read_mask(small / "Semantic_Labels" / "region_0.png", 7)
    imwrite(tmp_path / "region_0_mask.tif", mask)
    capsys.readouterr()
    nuclei.bench(dataclasses.replace(cfg, predicted=tmp_path))
    assert capsys.readouterr().out == of_truth  # a prediction that is the truth
    assert "1 regions" in of_truth
    assert "separated" in of_truth


def test_true_nuclei_are_matched_by_those_that_cover_more_than_half():
    true = np.zeros((4, 8), int)
    true[:, :4], true[:, 4:] = 1, 2
    found = np.zeros((4, 8), int)
    found[:, :3], found[:2, 4:] = 7, 9  # IoU 3/4 and 1/2
    assert nuclei.matched(true, found) == 1


# ---------------------------------------------------------------- bench/gpu.py


@pytest.fixture
def real_data(tmp_path):
    """A workspace of someone's, with all that was made in it so far."""
    write_region(tmp_path / "data", "region_0", 128, 128, seed=0)
    write_region(tmp_path / "data", "region_1", 128, 96, seed=1)
    (tmp_path / "data" / "times.csv").write_text("what,seconds\n")
    return tmp_path / "data"


def files_in(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def dry(small, **own):
    return gpu_parts.BenchConfig(**ROUND | {"dry_run": True, "workspace": small} | own)


def test_all_parts_of_a_dry_run_are_on_the_page_and_one_that_fails_stops_no_other(
    small, real_data, tmp_path, monkeypatch
):
    def command(*words):
        if "main.py" in words:
            raise UserError("no | luck")
        return "49 passed"

    monkeypatch.setattr(gpu_parts, "command", command)
    before, committed = files_in(real_data), contents_of_results()
    results = tmp_path / "results"
    shutil.copytree(page.RESULTS, results)
    written = results / "gpu_of_a_test.json"

    with pytest.raises(UserError, match="^sample failed"):
        gpu.bench(dry(small, data=real_data, json=written))

    assert files_in(real_data) == before
    assert contents_of_results() == committed
    assert list(small.iterdir()) == []
    parts = json.loads(written.read_text())["parts"]
    assert list(parts) == [part.name for part in gpu.PARTS]
    failed = parts.pop("sample")
    assert (failed["state"], failed["words"]) == ("failed", "no | luck")
    assert {part["state"] for part in parts.values()} == {"done"}
    assert parts["devices"]["points"] == 0  # one device twice
    assert parts["predict"]["same"] == 1
    text = page.page(results)
    for part in parts.values():
        assert part["words"] in text
    assert "sample, failed, 0 s: no | luck" in text
    assert "plain loop, bfloat16, batch ready" in text
    assert "No GPU has been measured" in page.page()
    assert "No GPU has been measured" not in text
    assert "Nothing has been measured on a GPU" not in text


def test_what_would_take_too_long_is_left_out_and_said(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "LIMIT", 0)
    gpu.bench(dry(small, json=tmp_path / "gpu.json"))
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {part["state"] for part in parts.values()} == {"skipped"}
    plan, _, rest = capsys.readouterr().out.partition(" s  in all")
    for part in gpu.PARTS:
        assert f"{part.seconds:5d} s  {part.name} " in plan
        assert f"---- {part.name} skipped" in rest


def test_the_parts_end_well_inside_of_nine_minutes():
    assert sum(part.seconds for part in gpu.PARTS) <= 450 < gpu.LIMIT <= 510


def test_without_a_gpu_or_data_it_says_what_to_do(small, real_data, monkeypatch):
    with pytest.raises(UserError, match="no image with a label in .*: name a workspace"):
        gpu.bench(dry(small, data=small))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU is here: try --dry_run"):
        gpu.bench(dry(small, data=real_data, dry_run=False))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="no data: name a workspace"):
        gpu.bench(dry(small, dry_run=False))


def finds(cfg):
    return {"words": cfg.encoder}


def dies(cfg):
    os._exit(3)


def hangs(cfg):
    time.sleep(600)


@pytest.mark.slow
def test_a_part_in_a_process_of_its_own_can_die_or_hang(small):
    cfg = dry(small)
    assert gpu.isolated(finds, cfg, 120) == {"state": "done", "words": "tu-test_resnet"}
    died = {"state": "failed", "words": "its process ended with code 3"}
    assert gpu.isolated(dies, cfg, 120) == died
    assert gpu.isolated(hangs, cfg, 1) == {"state": "failed", "words": "stopped after 1 s"}


def test_traffic_counts_each_operation_that_is_no_view():
    a, b = torch.zeros(8), torch.zeros(8)  # 32 bytes each
    with roofline.Traffic() as traffic:
        torch.add(a, b)
        a.view(2, 4).t()
        a.mul_(b)
        torch.empty(100)
    assert traffic.operations == {"add": 1, "mul_": 1}
    assert traffic.moved == {"add": 96, "mul_": 96}


@pytest.mark.slow
@pytest.mark.long
def test_the_dry_run_as_a_command(tmp_path):
    """Under a minute on an idle core: the figures mean nothing, and no time is judged here."""
    written, root = tmp_path / "gpu.json", Path(gpu.__file__).parents[1]
    command = [sys.executable, "bench/gpu.py", "--dry-run", "--json", str(written)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads(written.read_text())["parts"]
    assert {part["state"] for part in parts.values()} == {"done"}


@pytest.mark.parametrize("option", [["--json", "found.json"], ["--json=found.json"], []])
def test_a_result_holds_its_command_without_the_file_that_it_goes_to(monkeypatch, option):
    monkeypatch.setattr(sys, "argv", ["bench/train.py", "--epochs", "2", *option, "--lr=1"])
    assert bench.common._command() == ["bench/train.py", "--epochs", "2", "--lr=1"]
