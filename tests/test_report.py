"""The report: the answer that the numbers give, the data as they are, and one file for all."""

import dataclasses
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.io import loadmat

from generate_patches import patch_of, tile
from medood.evaluation.report import describe_data, floor_caveat, steps_caveat, verdict
from medood.evaluation.statistics import Difference
from tests.conftest import TINY

NAN = float("nan")


def gains(miou, fg_to_bg=(0, -0.1, 0.1), bg_to_fg=(0, -0.1, 0.1)):
    named = {"miou": miou, "fg_to_bg": fg_to_bg, "bg_to_fg": bg_to_fg}
    return {name: Difference(*values) for name, values in named.items()}


@pytest.mark.parametrize(
    ("miou", "answer"),
    [
        ((0.02, 0.01, 0.03), "Med-OoD is better than baseline: 2.0 [1.0, 3.0] points of mean IoU."),
        ((-0.02, -0.03, -0.01), "Med-OoD is worse than baseline"),
        ((0.02, -0.01, 0.03), "No difference is shown between Med-OoD and baseline: 2.0 [-1.0, 3"),
        ((0.02, NAN, NAN), "One region was tested, so no interval can be given: 2.0 (no"),
        ((NAN, NAN, NAN), "No foreground class occurs"),
    ],
)
def test_the_answer_is_what_the_interval_says(miou, answer):
    assert verdict(gains(miou), "Med-OoD", "baseline")[0].startswith(answer)


def test_each_confusion_is_said_with_its_direction():
    found = gains((0, -0.1, 0.1), fg_to_bg=(0.02, 0.001, 0.034), bg_to_fg=(-0.01, -0.02, -0.005))
    _, (missed, false) = verdict(found, "Med-OoD", "baseline")
    assert missed.endswith("2.0 [0.1, 3.4] points: Med-OoD does this more.")
    assert false.endswith("-1.0 [-2.0, -0.5] points: Med-OoD does this less.")
    _, (open_, _) = verdict(gains((0, -0.1, 0.1)), "Med-OoD", "baseline")
    assert open_.endswith("no difference shown.")


def test_more_steps_are_said_and_only_where_there_were_more():
    def run(patches, epochs=2):
        settings = {"epochs": epochs, "batch_size": 8}
        return {"id_patches": 100, "ood_patches": patches - 100, "settings": settings}

    said = steps_caveat([(run(100), run(147))], "Med-OoD", "baseline")
    assert said.startswith("Med-OoD took about 47 % more optimiser steps than baseline.")
    assert "50 % fewer" in steps_caveat([(run(100), run(100, epochs=1))], "B", "A")
    assert steps_caveat([(run(100), run(100))], "B", "A") is None
    assert steps_caveat([(run(100), {})], "B", "A") is None  # from elsewhere


@pytest.mark.parametrize("size", [(90, 128), (97, 100), (64, 64), (33, 200)])
def test_the_patch_of_a_point_is_the_tile_that_shows_it(size):
    for y, x in ((0, 0), (size[0] - 1, size[1] - 1), (31, 32), (20, 19)):
        image = np.zeros(size, np.uint8)
        image[y, x] = 1
        (expected,) = np.nonzero(tile(image, 32).any((1, 2)))[0]
        assert patch_of(x, y, *size, 32) == expected


def test_the_data_are_counted_as_they_are(patched):
    described = describe_data(patched, [1, 2, 3])
    assert (described["patches"], described["regions"]) == (37, 3)
    assert sum(row[3] for row in described["by_fold"]) == 37  # every patch is tested once
    assert described["shared"]  # split = patch
    true = np.zeros(7, int)
    for path in (patched.workspace / "Labels").iterdir():
        true += np.bincount(loadmat(path)["class"].ravel(), minlength=7)
    of_class = {
        row[0]: dict(zip(described["header"], row, strict=True)) for row in described["by_class"]
    }
    for value, name in enumerate(patched.class_names[1:], start=1):
        row = of_class[name]
        assert row["nuclei"] == true[value] == sum(row[f"{fold} nuclei"] for fold in (1, 2, 3))
        assert row["1 train"] + row["1 test"] == row["2 train"] + row["2 test"]


def test_patches_without_their_regions_have_no_count_of_nuclei(patched):
    (patched.workspace / "Mask_Patchs" / "nuclei.csv").unlink()
    assert "nuclei" not in describe_data(patched, [1])["header"]


def test_the_page_holds_all_it_shows(whole_run):
    page = (whole_run / "reports/unet_mobilenet_v2/index.html").read_text()
    sources = re.findall(r'<img src="([^"]{0,40})', page)
    # differences, classes, confusion, examples, curves; three pictures of each fold's OoD patches
    assert len(sources) == 5 + 3 * 2
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert page.count('alt="') == len(sources)
    for said in ("Med-OoD", "all background", "miou_paper", "region", "torch", "training 1_unet"):
        assert said in page
    assert all(name in page and colour in page for name, colour in TINY.classes)


def test_the_sample_says_that_it_is_no_tissue(whole_run, tmp_path):
    from medood.data.workspace import SAMPLE_MARK
    from test import evaluate

    copy = tmp_path / "sample"
    shutil.copytree(whole_run, copy)
    (copy / SAMPLE_MARK).touch()
    cfg = dataclasses.replace(TINY, workspace=copy, folds=(1, 2))
    evaluate(cfg)
    page = (copy / "reports/unet_mobilenet_v2/index.html").read_text()
    assert "drawn by a program" in page
    assert (
        "drawn by a program" not in (whole_run / "reports/unet_mobilenet_v2/index.html").read_text()
    )


@pytest.mark.slow
def test_a_browser_shows_every_figure_on_a_phone_and_on_paper_and_asks_nobody(whole_run, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    sync_api = pytest.importorskip("playwright.sync_api")
    if chromium is None:
        pytest.skip("there is no chromium")
    page_file = whole_run / "reports/unet_mobilenet_v2/index.html"
    said, asked = [], []
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        for width in (390, 1200):
            page = browser.new_page(viewport={"width": width, "height": 800})
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(page_file.as_uri())
            shown = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.clientWidth])")
            assert len(shown) == 11
            assert all(natural > 0 and 0 < on_page <= width for natural, on_page in shown)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.pdf(path=tmp_path / "page.pdf", format="A4")
        browser.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {page_file.as_uri()}
    assert (tmp_path / "page.pdf").stat().st_size > 50_000


def test_a_class_that_differs_and_a_network_below_the_floor_are_said():
    found = gains((0, -0.1, 0.1)) | {
        "IoU plasma": Difference(0.05, 0.01, 0.09),
        "IoU connective": Difference(0.05, -0.01, 0.09),
    }
    _, claims = verdict(found, "Med-OoD", "baseline")
    assert [claim for claim in claims if "plasma" in claim] == [
        "Classes whose interval leaves zero out, in points: IoU plasma 5.0 [1.0, 9.0]."
    ]
    scores = {"all_background": 0.7, "baseline": 0.69, "ood": 0.71}
    test = SimpleNamespace(scores={name: {"miou_paper": x} for name, x in scores.items()})
    labels = {"baseline": "baseline", "ood": "Med-OoD"}
    assert "everywhere is better than baseline:" in floor_caveat({79: test}, labels)
    scores["baseline"] = 0.7
    test.scores["baseline"] = {"miou_paper": 0.7}
    assert floor_caveat({79: test}, labels) is None
