"""The report: the verdict that the numbers give, the data as they are, and its pictures."""

import re
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from medood.data.folds import read_fold
from medood.data.images import read_image
from medood.data.workspace import model_folder, ranking_path
from medood.evaluation import figures
from medood.evaluation.model_card import TEMPLATES
from medood.evaluation.report import (
    below_floor,
    logs_of,
    more_steps,
    pictures_of_oods,
    read_times,
)
from medood.evaluation.statistics import Difference
from medood.evaluation.tables import describe_data
from tests.conftest import TINY

NAN = float("nan")


def say(claim, *arguments):
    """Return what the page says, as words with single spaces."""
    text = getattr(TEMPLATES.get_template("claims.html").module, claim)(*arguments)
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("ap", "verdict"),
    [
        ((0.02, 0.01, 0.03), "Med-OoD separates .* better than baseline: 2.0 .1.0, 3.0. points"),
        ((-0.02, -0.03, -0.01), "Med-OoD separates .* worse than baseline"),
        ((0.02, -0.01, 0.03), "No difference is shown in how well .*: 2.0 .-1.0, 3.0. points"),
        ((0.02, NAN, NAN), "Only one region was tested, so there is no interval: 2.0 .no"),
        ((NAN, NAN, NAN), "No test patch contains foreground"),
    ],
)
def test_the_verdict_is_what_the_interval_says(ap, verdict):
    assert re.match(verdict, say("verdict", Difference(*ap), "Med-OoD", "baseline", "region"))


def test_each_confusion_is_said_with_its_direction():
    def claim(*difference):
        return say("change", "Missed", Difference(*difference), "Med-OoD")

    assert claim(0.02, 0.001, 0.034) == "Missed: 2.0 [0.1, 3.4] points: Med-OoD has more of it."
    assert claim(-0.01, -0.02, -0.005).endswith("-1.0 [-2.0, -0.5] points: Med-OoD has less of it.")
    assert claim(0, -0.1, 0.1).endswith("no difference shown.")
    assert claim(0.02, NAN, NAN) == "Missed: 2.0 (no interval) points."
    assert claim(NAN, NAN, NAN) == "Missed: not defined here."


def test_more_steps_are_said_and_only_where_there_were_more():
    def run(patches, epochs=2):
        settings = {"epochs": epochs, "batch_size": 8}
        return {"data": "x", "id_patches": 100, "ood_patches": patches - 100, "settings": settings}

    def claim(first, second):
        tests = {1: SimpleNamespace(runs={"baseline": first, "ood": second})}
        found = SimpleNamespace(gains={"miou": ()}, tests=tests)
        return say("steps", more_steps(found), "Med-OoD", "baseline")

    expected = "Med-OoD took about 47 % more optimiser steps than baseline."
    assert claim(run(100), run(147)).startswith(expected)
    assert "50 % fewer" in claim(run(100), run(100, epochs=1))
    assert claim(run(100), run(100)) == ""
    zero = run(100) | {"settings": {"epochs": 2, "batch_size": 0}}
    for elsewhere in ({}, {"data": "x", "settings": {"epochs": 2}}, zero):
        assert claim(run(100), elsewhere) == claim(elsewhere, run(100)) == ""


@pytest.mark.parametrize("text", ["", "loss\n1\n", "epoch,loss\n1\n", "epoch,loss\n1,x\n"])
def test_logs_and_times_that_no_step_wrote_are_left_out(tmp_path, text):
    (tmp_path / "log.csv").write_text("epoch,loss\n1,0.5\n")
    tests = {1: SimpleNamespace(folders={"ood": tmp_path})}
    found = SimpleNamespace(labels={"ood": "Med-OoD"}, tests=tests)
    assert logs_of(found) == {"Med-OoD": [{"epoch": [1.0], "loss": [0.5]}]}
    (tmp_path / "log.csv").write_text(text)
    assert logs_of(found) == {}
    (tmp_path / "times.csv").write_text(text)
    assert read_times(tmp_path) == {}


def test_the_data_are_counted_as_they_are(patched):
    described = describe_data(patched, {fold: read_fold(patched, fold) for fold in (1, 2, 3)})
    assert (described["patches"], described["regions"]) == (37, 3)
    assert sum(row[3] for row in described["by_fold"]) == 37  # every patch is tested once
    assert all(row[5] > 0 for row in described["by_fold"])  # split = patch shares regions
    columns = described["by_class"]
    assert columns["class"] == patched.class_names
    for value in range(1, 7):
        row = {name: column[value] for name, column in columns.items()}
        assert row["1 train"] + row["1 test"] == row["2 train"] + row["2 test"]


def test_the_page_holds_all_it_shows(whole_run):
    page = (whole_run / "reports/unet_tu-test_resnet/index.html").read_text()
    sources = re.findall(r'<img src="([^"]{0,40})', page)
    # example, rates, differences, classes, confusion, calibration, examples, pct, curves; the
    # hardest OoD patches of each fold
    assert len(sources) == 9 + 2
    assert sources[0].startswith("data:image/webp")  # it opens with a patch
    kinds = Counter(re.match("data:image/([^;]*);base64,", source)[1] for source in sources)
    assert kinds == {"svg+xml": 7, "webp": 2 + 2}
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert len(page) < 1_000_000
    assert "<script" not in page
    assert page.count('alt="') == len(sources)
    said = "Med-OoD", "all background", "miou_paper", "torch", "1 nuclei", "too narrow"
    for words in (*said, "python robust/attack.py"):
        assert words in page
    assert all(name in page and colour in page for name, colour in TINY.classes)


@pytest.mark.slow
def test_a_browser_shows_every_figure_on_a_phone_and_on_paper_and_asks_nobody(whole_run, tmp_path):
    chromium = shutil.which("chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    if chromium is None:
        pytest.skip("there is no chromium")
    page_file = whole_run / "reports/unet_tu-test_resnet/index.html"
    messages, requests = [], []
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        for width in (390, 1200):
            page = browser.new_page(viewport={"width": width, "height": 800})
            page.on("console", lambda message: messages.append(message.text))
            page.on("pageerror", lambda error: messages.append(str(error)))
            page.on("request", lambda request: requests.append(request.url))
            page.goto(page_file.as_uri())
            shown = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.clientWidth])")
            assert len(shown) == 11
            assert all(natural > 0 and 0 < on_page <= width for natural, on_page in shown)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.pdf(path=tmp_path / "page.pdf", format="A4")
        browser.close()
    assert messages == []
    assert {url for url in requests if not url.startswith("data:")} == {page_file.as_uri()}
    assert (tmp_path / "page.pdf").stat().st_size > 50_000


def test_a_class_that_differs_and_a_network_below_the_floor_are_said():
    unclear = {"IoU connective": Difference(0.05, -0.01, 0.09), "miou": Difference(0.05, 0.01, 0.1)}
    clear = {
        "IoU lymph": Difference(-0.05, -0.09, -0.01),
        "IoU plasma": Difference(0.05, 0.01, 0.1),
    }
    said = (
        "interval excludes 0, in points: IoU lymph -5.0 [-9.0, -1.0]; IoU plasma 5.0 [1.0, 10.0]."
    )
    assert say("clear_classes", unclear | clear).endswith(said)
    assert say("clear_classes", unclear) == ""
    scores = {"all_background": 0.7, "baseline": 0.69, "ood": 0.71}
    test = SimpleNamespace(scores={name: {"miou_paper": x} for name, x in scores.items()})
    labels = {"baseline": "baseline", "ood": "Med-OoD"}
    below = below_floor({79: test}, labels)
    assert "everywhere is better than baseline:" in say("floor", below)
    test.scores["baseline"] = {"miou_paper": 0.7}
    assert say("floor", below_floor({79: test}, labels)) == ""


def test_a_ranking_of_the_users_has_no_pictures_of_an_earlier_one(ran):
    networks = SimpleNamespace(folders={"ood": model_folder(ran, 1, ood=True)})
    found = SimpleNamespace(cfg=ran, tests={1: networks})
    assert list(pictures_of_oods(found)) == [1]
    ranking_path(ran, 1).with_suffix(".json").unlink()
    assert pictures_of_oods(found) == {}


def test_examples_are_the_best_the_median_and_the_worst_change():
    scores = {"baseline": torch.full((5,), 0.5), "Med-OoD": torch.tensor([0.6, 0.2, 0.5, 0.9, 0.4])}
    assert figures.choose_examples(scores) == {
        "best change": 3,
        "median change": 2,
        "worst change": 1,
    }


def test_bars_leave_out_what_no_run_defines(tmp_path):
    bars = {"baseline": {"x": [0.2, 0.4], "y": [None, None]}, "Med-OoD": {"x": [0.3, 0.5], "y": []}}
    figures.draw_bars(tmp_path / "bars.png", "title", "IoU", bars)
    with_y = {**bars, "baseline": {"x": [0.2, 0.4], "y": [0.5]}}
    figures.draw_bars(tmp_path / "more.png", "title", "IoU", with_y)
    without, more = (read_image(tmp_path / f"{name}.png").mean() for name in ("bars", "more"))
    assert without > more  # a bar is darker than none


def test_intervals_that_hold_zero_are_grey(tmp_path):
    blue = [int(figures.BLUE[i : i + 2], 16) for i in (1, 3, 5)]
    for low, is_blue in ((-0.1, False), (0.1, True)):
        figures.draw_intervals(tmp_path / "a.png", "title", "points", {"gain": (0.2, low, 0.3)})
        assert ((read_image(tmp_path / "a.png") == blue).all(-1).sum() > 50) == is_blue


def test_the_search_of_every_fold_is_drawn_also_of_more_than_there_are_colours(tmp_path):
    grid = [{"pct": 0.0, "pnr": 1.0}, {"pct": 1.0, "pnr": 0.5}]
    marks = []
    for folds in (5, 6):
        estimates = {k: {"pct": 1.0, "pnr": 0.5, "grid": grid} for k in range(folds)}
        figures.draw_pct_search(tmp_path / "pct.svg", estimates, 0.65)
        marks.append((tmp_path / "pct.svg").read_text().count("<path"))
    assert marks[1] > marks[0]
