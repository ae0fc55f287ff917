"""The benchmarks: each runs once at its smallest, and what it writes fits the page.

No time is judged here: what a benchmark measures on a few small patches means nothing.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from tifffile import imwrite

import bench.common
from bench import (
    attack,
    infer,
    intervals,
    lizard,
    mine,
    nuclei,
    page,
    prepare,
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
    "scale": (
        *(scale.bench, scale.BenchConfig),
        SMALL | {"factors": (1, 2), "regions": 2, "sizes": ((256, 384),), "max_memory": 1e-6},
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
