"""Preparing the data on the workers of a dask cluster: the same bytes, the same messages."""

import dataclasses
import os
import socket
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from config import UserError
from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels
from generate_unfiltered_oods import generate_unfiltered_oods
from medood.runs.jobs import dask_cluster, for_each
from tests.conftest import TINY, draw_regions
from tests.faults import tree


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers, each a process of its own, on this machine alone and in another folder."""
    distributed = pytest.importorskip("distributed")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    # dask sets one thread, for its workers and here: later tests' processes would round otherwise
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):
        patch.chdir(elsewhere)
        own = {"host": "127.0.0.1", "dashboard_address": None}
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **own) as cluster:
            yield cluster


@pytest.fixture
def over_dask(cluster):
    return dataclasses.replace(TINY, dask_scheduler=cluster.scheduler_address)


def prepare(folder, dask_scheduler, monkeypatch):
    """Prepare three regions, one of them bad, in `folder`, named as seen from it; return a tree."""
    draw_regions(folder / "workspace")
    (folder / "workspace" / "Labels" / "region_2.mat").write_bytes(b"no label")
    monkeypatch.chdir(folder)
    cfg = dataclasses.replace(TINY, workspace=Path("workspace"), dask_scheduler=dask_scheduler)
    with pytest.raises(UserError, match="1 file cannot be used") as refused:
        generate_semantic_labels(cfg)
    cfg = dataclasses.replace(cfg, skip_bad_files=True)
    generate_patches(cfg)
    generate_unfiltered_oods(cfg)
    return tree(folder), str(refused.value)


@pytest.mark.slow
def test_data_and_messages_are_those_of_threads_to_the_byte(tmp_path, over_dask, monkeypatch):
    for name in ("threads", "dask"):
        (tmp_path / name).mkdir()
    made, said = prepare(tmp_path / "threads", None, monkeypatch)
    assert "workspace/Labels/region_2.mat is not" in said
    assert prepare(tmp_path / "dask", over_dask.dask_scheduler, monkeypatch) == (made, said)


@pytest.mark.slow
def test_a_script_sends_what_it_defines_itself(tiny, over_dask, run_script):
    """The workers cannot import it: there, `__main__` is another one."""
    arguments = ["--workspace", tiny.workspace, "--dask_scheduler", over_dask.dask_scheduler]
    done = run_script("generate_semantic_labels.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "3 class masks" in done.stdout


@pytest.mark.slow
def test_results_come_in_order_from_both_processes_with_a_bar(
    over_dask, tmp_path, monkeypatch, capsys
):
    def process_of(path, seconds):
        time.sleep(seconds)
        return path.name, os.getpid()

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    cfg = dataclasses.replace(over_dask, workspace=tmp_path)
    jobs = [(tmp_path / str(i), 0.3 if i == 0 else 0.05) for i in range(12)]
    names, processes = zip(*for_each(process_of, jobs, cfg, "a task", {}), strict=True)
    assert names == tuple(map(str, range(12)))
    assert len(set(processes)) == 2
    assert "a task: 100%" in capsys.readouterr().err


@pytest.mark.slow
def test_workers_without_the_workspace_or_this_repository_are_said(
    over_dask, tmp_path, monkeypatch
):
    cfg = dataclasses.replace(over_dask, workspace=tmp_path / "not_there")
    with pytest.raises(UserError, match=r"does not see .*not_there: move the workspace to a disk"):
        for_each(print, [(tmp_path,)], cfg, "a task", {})
    monkeypatch.setattr("medood.runs.jobs.sees", lambda _: __import__("no_such_module"))
    with pytest.raises(UserError, match=r"cannot import .*No module named 'no_such_module'"):
        for_each(print, [(tmp_path,)], over_dask, "a task", {})


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_named_within_seconds(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("medood.runs.jobs.PATIENCE", 1)
    with socket.socket() as bound:  # and not listening: nobody answers, nobody else takes the port
        bound.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{bound.getsockname()[1]}"
        cfg = dataclasses.replace(TINY, dask_scheduler=address)
        with pytest.raises(UserError, match=f"answers at {address}: start them"), dask_cluster(cfg):
            pytest.fail("has begun to work")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    cfg = dataclasses.replace(TINY, dask_scheduler="tcp://127.0.0.1:8786")
    says = r"run `pip install \"dask\[distributed\]\"`"
    with pytest.raises(UserError, match=says), dask_cluster(cfg):
        pass
