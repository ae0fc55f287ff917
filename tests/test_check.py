"""The check before a run: all that is wrong with the data, with file and cure, nothing changed."""

import dataclasses
import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from config import UserError
from main import look
from medood.check import check, refuse_findings
from medood.data.images import write_png
from medood.data.workspace import fold_path
from medood.runs.provenance import survey
from tests.conftest import write_region


@pytest.fixture
def run_check(run_script):
    """A function that runs the command."""

    def start(cfg, *more):
        settings = ["--encoder=tu-test_resnet", "--encoder_weights=none", "--device=cpu"]
        places = [f"--workspace={cfg.workspace}", f"--patch_size={cfg.patch_size}"]
        return run_script("main.py", "--check", *places, *settings, *more)

    return start


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_look_at_good_data_says_what_is_there_and_changes_nothing(tiny, run_check):
    before = files(tiny.workspace)
    done = run_check(tiny)
    assert (done.returncode, done.stderr) == (0, "")
    assert files(tiny.workspace) == before
    for said in ("images, labels  3, 3", "regions that fit  3", "split by patch", "3 steps on"):
        assert said in done.stdout


def name_all(path, number):
    """Give all nuclei of a label one class."""
    content = {key: value for key, value in loadmat(path).items() if key[0] != "_"}
    savemat(path, content | {"class": content["class"] * 0 + number})


def truncate(path):
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 2])


PROBLEMS = {
    "image truncated": ("png", truncate, "is not a complete image file"),
    "image missing": ("png", Path.unlink, "has no image of the same name"),
    "image of another size": (
        "png",
        lambda path: write_png(path, np.zeros((9, 8, 3), np.uint8)),
        "is 8 x 9 pixels but its label",
    ),
    "label missing": ("mat", Path.unlink, "has no label of the same name"),
    "class 7": ("mat", lambda path: name_all(path, 7), "`class` contains 7, expected 1..6"),
}


def test_every_problem_is_named_at_once_with_its_file(tiny, run_check):
    for number, (ending, damage, _) in enumerate(PROBLEMS.values(), start=3):
        write_region(tiny.workspace, f"bad_{number}", 90, 90, seed=number)
        folder = {"png": "Lizard_Images", "mat": "Labels"}[ending]
        damage(tiny.workspace / folder / f"bad_{number}.{ending}")
    before = files(tiny.workspace)
    done = run_check(tiny)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert files(tiny.workspace) == before
    assert f"error: {len(PROBLEMS)} problems" in done.stderr
    for number, (*_, said) in enumerate(PROBLEMS.values(), start=3):
        assert re.search(rf"bad_{number}\..*{said}", done.stderr), said
    done = run_check(tiny, "--skip_bad_files")
    assert (done.returncode, "regions that fit  3" in done.stdout) == (0, True)


def test_files_are_listed_once_if_none_can_be_used(tiny):
    for path in (tiny.workspace / "Labels").iterdir():
        truncate(path)
    findings = check(tiny)
    assert len(findings.bad) == 3
    for cfg in (tiny, dataclasses.replace(tiny, skip_bad_files=True)):
        with pytest.raises(UserError, match="3 files cannot be used: correct them") as refused:
            refuse_findings(cfg, findings)
        assert str(refused.value).count("region_1.mat") == 1


def test_fold_lists_of_the_user_are_looked_at_before_there_are_patches(tiny, capsys):
    fold_path(tiny.workspace, 1).parent.mkdir()
    rows = "0,region_0_1.png,test\n1,region_0_3.png,test\n2,region_1_0.png,train\n"
    fold_path(tiny.workspace, 1).write_text(",img_name,obj_tag\n" + rows)
    fold_path(tiny.workspace, 2).write_text(",img_name,obj_tag\n0,gone_1.png,train\n")
    (problem,) = check(tiny).stops
    assert problem.startswith(f"{fold_path(tiny.workspace, 2)} names 1 patches that")
    assert (
        "user-supplied: 1 train, 2 test patches, 0 of 3 regions on both" in capsys.readouterr().out
    )


def test_weights_out_of_reach_do_not_hide_what_is_found_in_the_data(tiny, monkeypatch, capsys):
    unreachable = mock.Mock(side_effect=UserError("the weights could not be downloaded"))
    monkeypatch.setattr("medood.models.network.downloaded", unreachable)
    with pytest.raises(UserError, match=r"1 problem\n  the weights could not be downloaded"):
        look(dataclasses.replace(tiny, encoder_weights="imagenet"))
    assert "regions that fit  3" in capsys.readouterr().out


def test_what_comes_after_a_change_may_be_regenerated(ran):
    network, ranking = "models/2_unet_tu-test_resnet", "HardOoD/2_unet_tu-test_resnet.csv"
    assert {said for _, said in survey(ran).values()} == {"kept"}
    fate = survey(dataclasses.replace(ran, epochs=3))
    assert fate[network][1] == "regenerated: epochs was 2, is 3"
    assert fate[ranking][1] == "may be regenerated after baseline"
    assert fate[ranking.replace(".csv", "_pct.json")][1] == "may be regenerated after ranking"
    assert fate["OoD_Patchs"][1] == "kept"
    shutil.rmtree(ran.workspace / network)
    assert survey(ran)[ranking][1] == "may be regenerated after baseline"
