"""The benchmarks: each runs once at its smallest, and the page shows what they measured.

No time is judged here: what a benchmark measures on a few small patches means nothing.
"""

import dataclasses
import json
from unittest import mock

import pytest
import torch

from bench import attack, common, gpu, mine, page, prepare, train
from config import UserError
from tests.conftest import TINY, write_region

SETTINGS = {
    **vars(TINY),
    **{"precision": "auto", "folds": (79,), "epochs": 1, "sizes": ((128, 96),), "rounds": 1},
}
TIMED = {
    "attack": (attack, {"steps": 1}),
    "mine": (mine, {"patches": 8, "trained": 1, "searched": 60}),
    "prepare": (prepare, {"regions": 2}),
    "train": (train, {"patches": 8}),
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A workspace of its own; a matrix product that takes long is made short."""
    monkeypatch.setattr(common, "matrix_rate", lambda *_, **__: 1e9)
    (tmp_path / "workspace").mkdir()
    return tmp_path / "workspace"


@pytest.mark.parametrize("name", TIMED)
def test_a_benchmark_writes_the_figures_that_the_page_shows(name, small, tmp_path):
    bench, own = TIMED[name]
    written = tmp_path / f"{name}.json"
    bench.bench(bench.BenchConfig(**SETTINGS | own | {"workspace": small, "json": written}))
    committed = list(page.RESULTS.glob(f"{name}*.json"))
    assert committed
    assert all(set(compared(written)) >= set(compared(path)) for path in committed)
    assert any("(" in table for table in page.tables(tmp_path))
    assert list(small.iterdir()) == []


def compared(path):
    return [row["what"].split(",")[0] for row in json.loads(path.read_text())["rows"]]


def dry(small, **own):
    return gpu.BenchConfig(**SETTINGS | {"dry_run": True, "workspace": small} | own)


def test_the_parts_of_a_dry_run_find_one_device_equal_to_itself(small, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "python", lambda *_: None)
    write_region(tmp_path / "data", "region_0", 128, 128, seed=0)
    write_region(tmp_path / "data", "region_1", 128, 96, seed=1)
    before = sorted((tmp_path / "data").rglob("*"))
    cfg = dry(small, data=tmp_path / "data", json=tmp_path / "found.json")
    gpu.prepare(cfg)
    found = {}
    for part in (name for name in gpu.PARTS if "mobilenet" not in name):  # dry, it is the same
        gpu.measure(dataclasses.replace(cfg, part=part))
        found[part] = json.loads(cfg.json.read_text())
    assert "at most 0.000 points apart" in found["devices"]
    assert "the same bytes" in found["deterministic"]
    assert "the main experiment, estimated" in found["data vgg11_bn"]
    assert sorted((tmp_path / "data").rglob("*")) == before


def test_a_part_that_fails_stops_no_other(small, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.subprocess, "run", mock.Mock(side_effect=OSError))
    with pytest.raises(UserError, match="^tests, devices, .*, sample failed"):
        gpu.bench(dry(small, json=tmp_path / "gpu.json"))
    assert json.loads((tmp_path / "gpu.json").read_text()).keys() >= gpu.PARTS.keys()
    assert sum(seconds for seconds, _ in gpu.PARTS.values()) < 9 * 60


def test_without_a_gpu_or_data_it_says_what_to_do(small, monkeypatch):
    with pytest.raises(UserError, match="no image with a label in .*: name a workspace"):
        gpu.bench(dry(small, data=small))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU is here: try --dry_run"):
        gpu.bench(dry(small, dry_run=False))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="no data: name a workspace"):
        gpu.bench(dry(small, dry_run=False))
