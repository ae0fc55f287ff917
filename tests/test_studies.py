"""The studies: each runs on a tiny workspace, keeps what is trained, and can only plan."""

import dataclasses
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from config import UserError
from medood.data.files import read_table
from medood.data.folds import read_fold
from medood.data.images import read_mask, write_png
from medood.data.patients import region_of
from studies import common, controls, paper, recipe
from studies.common import StudyConfig
from studies.controls import EQUAL
from tests.conftest import TINY, draw_regions, quick_reports, write_region
from tests.test_pipeline import NAMES, OWN

NETWORK = TINY.model_name
SETTINGS = {**vars(TINY), "folds": (1,), "epochs": 1}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder of four regions in which the studies of this module find each other's networks."""
    folder = tmp_path_factory.mktemp("studies")
    for seed in range(4):
        write_region(folder, f"region_{seed}", 96, 96, seed)
    return with_source(folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A workspace with all that is made before a training, for plans, which write nothing."""
    folder = with_source(tmp_path_factory.mktemp("prepared"))
    draw_regions(folder)
    common.prepare(settings(StudyConfig, folder, ood_source=folder / "external", plan=True))
    return folder


def with_source(folder):
    (folder / "external").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    write_png(folder / "external" / "noise.png", noise)
    return folder


def settings(kind, workspace, **changed):
    return kind(**(SETTINGS | {"workspace": workspace} | changed))


def written(workspace, study):
    """The JSON of a study, once its other files are there and agree with it."""
    out = workspace / "reports" / "studies" / f"{study}_{NETWORK}"
    content = json.loads(out.with_suffix(".json").read_text())
    rows = read_table(out.with_suffix(".csv"))
    assert [row["network"] for row in rows] == [row["network"] for row in content["rows"]]
    assert set(rows[0]) >= {"arm", "fold", "seed", "steps", *OWN, "IoU plasma"}
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "percent" in out.with_suffix(".md").read_text()
    for of_pair in content["differences"].values():
        assert set(of_pair) >= set(NAMES)
    return content


@pytest.mark.parametrize(
    ("study", "arms", "changed"),
    [
        ("table1", 2, {"methods": (NETWORK,)}),
        ("table2", 2, {"pcts": (1.0,)}),
        ("table3", 4, {}),
        ("table4", 3, {}),
        ("figure3", 2, {}),
        ("figure4", 2, {}),
    ],
)
def test_a_study_runs_from_raw_data_to_its_table_and_figure(workspace, study, arms, changed):
    drawn = nullcontext() if study == "table2" else quick_reports()  # it draws by itself
    with drawn:
        paper.paper(settings(paper.PaperConfig, workspace, what=study, **changed))
    rows = written(workspace, study)["rows"]
    assert len(rows) == len({row["arm"] for row in rows}) == arms


@pytest.mark.usefixtures("quick_report")
def test_what_main_trained_is_not_trained_again_nor_by_another_study(report, capsys):
    cfg, folder = report
    for what, arms in (("figure4", ["baseline", "Med-OoD"]), ("table2", ["pct 0"])):
        cfg = settings(paper.PaperConfig, cfg.workspace, what=what, epochs=2, pcts=(0.4,))
        capsys.readouterr()
        paper.paper(cfg)
        headings = capsys.readouterr().out.count("seconds")  # of the log of a training
        assert headings == (what == "table2")
        rows = [row for row in written(cfg.workspace, what)["rows"] if row["arm"] in arms]
        assert [row["network"] for row in rows] == [f"1_{NETWORK}", f"1_{NETWORK}_ood"][: len(rows)]
        scores = json.loads((folder / "scores.json").read_text())["1"]
        expected = [scores[arm]["miou"] for arm in ("baseline", "ood")]
        assert [row["miou"] for row in rows] == expected[: len(rows)]


def test_two_seeds_are_two_trainings_on_one_list(workspace):
    cfg = settings(StudyConfig, workspace, seeds=2)
    common.prepare(cfg)
    first, second = common.run_arms(cfg, {"baseline": common.baseline})["baseline"].values()
    assert first.folder != second.folder
    assert first.counts.patches.tolist() == second.counts.patches.tolist()


def test_a_plan_from_the_command_line_trains_nothing(prepared, run_script):
    arguments = ["--patch_size=32", f"--encoder={TINY.encoder}", "--folds=1", "--seeds=1"]
    arguments += ["--epochs=7", "--batch_size=8", "--plan"]
    done = run_script("studies/controls.py", f"--workspace={prepared}", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    steps = 7 * 3  # 24 training patches in batches of 8
    assert f"| {steps:5d} |" in done.stdout
    assert "10 trainings" in done.stdout
    assert "hours" in done.stdout
    assert "name a folder of nucleus-free images with --ood_source" in done.stdout
    for made in ("studies", "models", "reports"):
        assert not (prepared / made).exists()


@pytest.fixture(scope="module")
def plan(prepared):
    """Settings of a plan, in which every candidate counts as hard: no network is needed."""
    changed = {"ood_source": prepared / "external", "plan": True, "epochs": 8}
    return settings(controls.ControlsConfig, prepared, **changed)


@pytest.mark.parametrize("arm", [arm for arm in controls.ARMS if arm[0] in "+M"])
def test_every_control_adds_as_many_patches_as_med_ood(plan, arm):
    cfg = dataclasses.replace(plan, ood_source=None) if arm != "+ external" else plan
    med_ood = common.med_ood(dataclasses.replace(plan, ood_source=None), 1)
    assert med_ood.ood_patches > 0
    found = controls.ARMS[arm](cfg, 1)
    assert len(found.files) == len(med_ood.files)
    assert found.steps == med_ood.steps
    assert found.files[:24] == med_ood.files[:24]  # the ID patches
    assert found.test == med_ood.test
    assert {image.name for image, _ in found.files}.isdisjoint(found.test)


def test_a_share_of_the_regions_is_trained_on_for_as_many_steps(plan):
    def regions(recipe):
        return {region_of(image.name) for image, _ in recipe.files}

    whole = dataclasses.replace(plan, epochs=3, ood_source=None)
    cfg = dataclasses.replace(whole, share=0.5)
    few, every, med_ood = common.baseline(cfg, 1), common.baseline(whole, 1), common.med_ood(cfg, 1)
    assert set(few.files) < set(every.files)
    assert len(regions(few)) == -(-len(regions(every)) // 2)
    assert few.cfg.epochs == 6
    assert few.test == every.test
    assert regions(med_ood) == regions(few)
    assert med_ood.ood_patches > 0
    assert controls.equal_steps(cfg, 1).steps == med_ood.steps


def test_time_to_quality_is_drawn_by_steps(tmp_path):
    def of(steps, ap):
        return {(79, 0): SimpleNamespace(sizes={"steps": steps}, scores={"ap": ap})}

    results = {"baseline": of(40, 0.8), "3 epochs": of(10, 0.7), "paper's recipe": of(80, 0.75)}
    controls.draw_time(results | {"stain 0.2": of(40, 0.1)}, tmp_path / "time.svg", "")
    drawn = (tmp_path / "time.svg").read_text()
    assert "paper's recipe, 80 steps" in drawn
    assert "stain" not in drawn


def test_nucleus_free_patches_hold_no_nucleus(plan, tmp_path):
    copy = shutil.copytree(plan.workspace, tmp_path / "copy")
    cfg = dataclasses.replace(plan, workspace=copy, ood_source=None)
    train = read_fold(cfg, 1).train
    write_png(cfg.workspace / "Mask_Patchs" / train[0], np.zeros((32, 32), np.uint8))
    added = controls.nucleus_free(cfg, 1).files[len(train) :]
    assert added
    assert not any(read_mask(mask, 7).any() for _, mask in added)


def test_silhouettes_move_into_the_background_and_keep_their_shape():
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (64, 64, 3), np.uint8)  # no black pixel
    mask = np.zeros((64, 64), np.uint8)
    cv2.circle(mask, (12, 12), 7, 2, -1)
    cv2.ellipse(mask, (45, 40), (12, 4), 30, 0, 360, 6, -1)
    moved = controls.move_silhouettes(image, mask, rng)
    hole = (moved == 0).all(-1)
    assert not hole[mask > 0].any()  # every nucleus is still there
    np.testing.assert_array_equal(moved[~hole], image[~hole])

    def pieces(binary):
        count, labels = cv2.connectedComponents(binary.astype(np.uint8))
        found = [np.argwhere(labels == piece) for piece in range(1, count)]
        return sorted((where - where.min(0)).tolist() for where in found)

    assert hole.sum() == (mask > 0).sum()
    assert pieces(hole) == pieces(mask > 0)
    elsewhere = controls.move_silhouettes(image, mask, np.random.default_rng(1))
    assert not np.array_equal(moved, elsewhere)
    mask = np.ones((64, 64), np.uint8)
    mask[0] = 0  # no nucleus fits there
    np.testing.assert_array_equal(controls.move_silhouettes(image, mask, rng), image)


@pytest.mark.usefixtures("quick_report")
def test_controls_run_to_their_tables_and_figure(workspace):
    named = "Med-OoD", "Med-OoD, inpaint", "+ silhouettes moved", "+ external", "rare classes"
    changed = {"arms": named, "ood_source": workspace / "external"}
    controls.controls(settings(controls.ControlsConfig, workspace, **changed))
    found = written(workspace, "controls")
    rows = {row["arm"]: row for row in found["rows"]}
    assert {*rows} == {*named, EQUAL, "baseline"}  # and what they are compared with
    assert "rare classes - baseline" in found["differences"]
    assert f"rare classes - {EQUAL}" not in found["differences"]
    assert rows["baseline"]["steps"] == rows["rare classes"]["steps"]
    assert rows["baseline"]["steps"] < rows["Med-OoD"]["steps"] == rows["+ external"]["steps"]
    assert 0 < float(rows["+ silhouettes moved"]["moved"]) <= 1


@pytest.mark.usefixtures("quick_report")
def test_finished_trainings_are_files_that_need_no_network(workspace, tmp_path, capsys):
    changed = {"results": tmp_path, "seeds": 1, "arms": ("Med-OoD", "+ duplicated ID")}
    cfg = settings(controls.ControlsConfig, workspace, **changed)
    controls.controls(cfg)
    first = written(workspace, "controls")
    files = sorted(tmp_path.iterdir())
    names = [path.name[:-14] for path in files]
    assert names == ["1_0_baseline-equal-steps", "1_0_duplicated-id", "1_0_med-ood"]
    content = json.loads(files[2].read_text())
    assert content["command"].startswith("python studies/")
    assert content["sizes"]["ood_patches"] > 0
    assert content["scores"]["mpq"] is not None
    capsys.readouterr()
    shutil.copytree(workspace, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "studies")
    controls.controls(dataclasses.replace(cfg, workspace=tmp_path / "copy"))
    assert "seconds" not in capsys.readouterr().out  # the heading of a training's log
    again = written(tmp_path / "copy", "controls")
    assert again["rows"] == first["rows"]
    for pair, of_pair in first["differences"].items():
        for name, found in of_pair.items():
            assert again["differences"][pair][name] == pytest.approx(found, abs=0.002, nan_ok=True)
    files[2].write_text(files[2].read_text()[:2000])  # half a file
    with pytest.raises(UserError, match=r"_med-ood_.* is damaged .* to repeat the training"):
        controls.controls(cfg)
    other = dataclasses.replace(cfg, lr=2e-3, plan=True)  # other settings: other files
    assert controls.common.run_arms(other, {"Med-OoD": common.med_ood}, tmp_path) == {}
    assert "Med-OoD" in capsys.readouterr().out


def test_arms_and_results_that_are_none_are_refused(plan):
    with pytest.raises(UserError, match="arms: 'medood' is not one of baseline, baseline, equal"):
        controls.controls(dataclasses.replace(plan, arms=("medood",)))
    with pytest.raises(UserError, match="results: .* is a file: name a folder"):
        controls.controls(dataclasses.replace(plan, results=Path(__file__)))


def test_networks_of_earlier_versions_are_found_by_their_names(tmp_path, monkeypatch):
    """A name that moves makes every study train again: this one is of commit 9e4c37e."""
    monkeypatch.setattr(common, "train_fold", lambda *_: None)
    cfg = dataclasses.replace(TINY, workspace=tmp_path)
    found = common.train_recipe(common.Recipe(cfg, [], [], []), 1)
    assert found.name == f"1_{NETWORK}_b5cc1ccffe23"


def test_a_method_that_cannot_be_built_is_refused_before_anything_is_trained(tmp_path, tiny):
    methods = (NETWORK, "unet_mobilenet_v9")
    with pytest.raises(UserError, match="mobilenet_v9.* is unknown"):
        paper.paper(settings(paper.PaperConfig, tmp_path, what="table1", methods=methods))
    assert not (tmp_path / "studies").exists()


def test_a_change_of_the_recipe_is_settings_or_more_epochs():
    plain = common.Recipe(TINY, [], [], [])
    longer = recipe.changed(plain, recipe.CHANGES["twice as long"])
    assert longer.cfg == dataclasses.replace(TINY, loss="dice_ce", epochs=2 * TINY.epochs)
    assert recipe.changed(plain, recipe.CHANGES["dice"]).cfg == TINY


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"loss": "dice_ce"}, "the study sets the loss itself"),
        ({"split": "region"}, "fold 1: fewer than 3 regions train"),
    ],
)
def test_what_the_study_of_the_recipe_cannot_compare_is_refused(tiny, changed, said):
    with pytest.raises(UserError, match=said):
        recipe.recipe(settings(recipe.RecipeConfig, tiny.workspace, **changed))


@pytest.mark.usefixtures("quick_report")
def test_the_study_of_the_recipe_runs_to_its_tables_and_figure(tmp_path):
    for seed in range(6):
        write_region(tmp_path, f"region_{seed}", 64, 64, seed)
    changed = {"split": "region", "arms": ("mirrors", "together"), "parts": 1}
    recipe.recipe(settings(recipe.RecipeConfig, tmp_path, **changed))
    content = written(tmp_path, "recipe")
    rows = content["rows"]
    assert [row["arm"] for row in rows[:3]] == ["dice_ce", "mirrors", "together"]
    assert [row["arm"] for row in rows[3:]] == ["dice, test", "dice_ce, test", "together, test"]
    assert rows[0]["network"] == rows[1]["network"] != rows[2]["network"]  # mirrors only test
    assert set(content["differences"]) >= {"mirrors - dice_ce", "together, test - dice, test"}
