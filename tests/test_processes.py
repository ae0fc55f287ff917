"""Two processes as one: the same losses, the same files, one writer, no process left waiting."""

import dataclasses
import os
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
from datetime import timedelta
from unittest import mock

import numpy as np
import pytest
import torch

from config import UserError
from main import main
from medood import processes
from medood.commands import command
from medood.data.files import TIMES, read_table
from medood.data.workspace import model_folder
from medood.training import losses
from medood.training.batches import shard_of
from medood.training.losses import segmentation_loss
from tests.conftest import ROOT, TINY, draw_regions, kind_of, quick_reports, quick_resamples

TORCHRUN = ("torch.distributed.run", "--nproc-per-node=2", "--standalone")
FORK = ("tests.test_processes",)  # see the end of this file


def launched(script, cfg, launcher=TORCHRUN):
    """How to start a script in two processes of one thread each."""
    _, *script_and_settings = shlex.split(command(cfg, script, kind_of(script)))
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    arguments = [sys.executable, "-m", *launcher, *script_and_settings]
    return {"args": arguments, "cwd": ROOT, "env": variables, "text": True}


def run(script, cfg, launcher=TORCHRUN):
    """Run a script and return how it ended."""
    return subprocess.run(**launched(script, cfg, launcher), capture_output=True, timeout=300)


def free_port():
    with socket.socket() as opened:
        opened.bind(("", 0))
        return str(opened.getsockname()[1])


def files_in(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".locks" not in path.parts
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Settings whose workspaces hold a whole run, one by one process, one by two.

    Without batch normalisation, which each process would compute on its own shard of a batch.
    """
    # Adam turns rounding into whole steps where a gradient is next to nothing: small ones
    own = {"batch_norm": False, "batch_size": 6, "lr": 1e-5, "select": "val", "folds": (1,)}
    cfgs = []
    for count in (1, 2):  # one name for both folders, as files hold it
        workspace = tmp_path_factory.mktemp(f"of_{count}") / "run"
        draw_regions(workspace)
        cfgs.append(dataclasses.replace(TINY, workspace=workspace, **own))
    with quick_reports():  # the names of its files are compared, no picture
        main(cfgs[0])
    done = run("main.py", cfgs[1], FORK)
    assert done.returncode == 0, done.stderr
    return cfgs


@pytest.mark.slow
def test_two_processes_lose_what_one_loses_and_write_the_same_files_once(both):
    """The losses of both epochs agree to rounding: those of the second follow from the first."""
    for ood in (False, True):
        logs = [read_table(model_folder(cfg, 1, ood) / "log.csv") for cfg in both]
        losses, scores = (
            [[float(row[column]) for row in log] for log in logs] for column in ("loss", "val_miou")
        )
        np.testing.assert_allclose(*losses, atol=2e-6)
        np.testing.assert_allclose(*scores, atol=1e-3)
        assert len(losses[0]) == 2
    one, two = (set(files_in(cfg.workspace)) for cfg in both)
    assert one == two
    # each writer adds a line to it
    steps = [[row["step"] for row in read_table(cfg.workspace / TIMES)] for cfg in both]
    assert steps[0] == steps[1]


@pytest.mark.long
def test_two_processes_mine_and_test_one_network_to_the_same_bytes(both, tmp_path):
    cfg = dataclasses.replace(both[0], workspace=tmp_path / "run")
    shutil.copytree(both[0].workspace, cfg.workspace)
    expected = files_in(cfg.workspace / "HardOoD")
    scores = (cfg.workspace / "reports" / cfg.model_name / "scores.json").read_bytes()
    for folder in ("HardOoD", "reports"):
        shutil.rmtree(cfg.workspace / folder)
    done = run("main.py", cfg)  # it keeps the networks
    assert done.returncode == 0, done.stderr
    assert "seconds" not in done.stdout  # and trains none
    ours = files_in(cfg.workspace / "HardOoD")
    rankings = [name for name in expected if name.endswith((".csv", ".json"))]
    assert len(rankings) == 3
    assert {name: ours[name] for name in rankings} == {name: expected[name] for name in rankings}
    assert (cfg.workspace / "reports" / cfg.model_name / "scores.json").read_bytes() == scores


@pytest.mark.slow
def test_a_mistake_is_said_once_and_no_process_waits_for_ever(both):
    done = run("train.py", dataclasses.replace(both[0], batch_size=3, epochs=1))
    assert done.returncode == 1
    assert done.stderr.count("error: batch_size = 3 leaves 2 processes fewer than two") == 1


@pytest.mark.long
def test_an_interrupted_training_goes_on_in_two_processes_to_the_same_bytes(both):
    folder = model_folder(both[1], 1, ood=False)
    weights = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder)
    with subprocess.Popen(**launched("train.py", both[1]), stdout=subprocess.PIPE) as process:
        next(line for line in process.stdout if line.split()[:1] == ["1"])  # this epoch is kept
        process.terminate()
    assert not (folder / "run.json").exists()
    done = run("train.py", both[1])
    assert "it continues after epoch 1" in done.stdout
    assert (folder / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 40, 41])
def test_shares_are_disjoint_in_order_whole_batches_and_cover_all(monkeypatch, size, count):
    found = []
    for rank in range(size):
        monkeypatch.setattr(processes, "_numbers", {"RANK": rank, "WORLD_SIZE": size})
        own = list(range(count))[processes.shard(count, 8)]
        assert not own or own[0] % 8 == 0
        found += own
    assert found == list(range(count))


@pytest.mark.parametrize(
    ("count", "size"), [(8, 2), (9, 2), (8, 3), (5, 2), (3, 2), (5, 4), (1, 1)]
)
def test_each_patch_of_a_batch_counts_once_over_all_processes(monkeypatch, count, size):
    batch, counted = torch.arange(count) + 10, torch.zeros(count)
    for rank in range(size):
        monkeypatch.setattr(processes, "_numbers", {"RANK": rank, "WORLD_SIZE": size})
        index, share = shard_of(batch)
        counted[index - 10] += share
        assert len(index) >= min(count, 2)  # what batch normalisation needs
    torch.testing.assert_close(counted, torch.ones(count))


@pytest.mark.parametrize("loss", ["dice", "dice_ce", "paper_code"])
def test_the_loss_and_gradient_of_a_batch_do_not_depend_on_how_it_is_dealt(monkeypatch, loss):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 7, 8, 8, generator=generator).requires_grad_()
    target = torch.randint(0, 7, (6, 8, 8), generator=generator)
    weight = torch.tensor([1, 1, 0.5, 1, 0.5, 1])
    whole = segmentation_loss(logits, target, weight, loss)
    (expected,) = torch.autograd.grad(whole, logits)

    halves, found = (slice(0, None, 2), slice(1, None, 2)), torch.zeros_like(logits)
    for half, other in (halves, halves[::-1]):
        calls = mock.Mock(side_effect=lambda sums: sums)
        monkeypatch.setattr(losses, "sum_over_processes", calls)
        segmentation_loss(logits[other], target[other], weight[other], loss)
        theirs = iter([call.args[0].detach() for call in calls.call_args_list])
        calls.side_effect = lambda sums, theirs=theirs: sums + next(theirs)
        value = segmentation_loss(logits[half], target[half], weight[half], loss)
        torch.testing.assert_close(value, whole)
        found += torch.autograd.grad(value, logits)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "Timed out"),
        ({"RANK": "1"}, "timed out"),
        ({"LOCAL_RANK": None}, "KeyError: 'LOCAL_RANK'"),
        ({"WORLD_SIZE": "two"}, "'two'"),
    ],
)
def test_a_process_without_others_says_so_in_time_with_the_cure(
    monkeypatch, capsys, variables, says
):
    port = free_port()
    monkeypatch.setattr(processes, "MEETING", timedelta(seconds=1))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    left = dict.fromkeys(processes.VARIABLES, "0") | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    left |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port} | variables
    for name, value in left.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, False)
    with (
        pytest.raises(UserError, match=f"do not meet .*{says}.*unset WORLD_SIZE"),
        processes.joined(),
    ):
        pytest.fail("has begun to work")
    if "imed out" in says:
        waits = f"process {left['RANK']} of WORLD_SIZE = 2 waits for the others at localhost:{port}"
        assert capsys.readouterr().err.startswith(waits)


def test_one_process_needs_no_other(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with processes.joined():
        assert (processes.rank(), processes.world_size()) == (0, 1)


if __name__ == "__main__":  # what torchrun does, but all is imported once
    rank = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2")
    rank |= {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    rank |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(int(os.fork() == 0)))
    os.environ.update(rank)
    sys.argv = sys.argv[1:]
    with quick_reports(), quick_resamples():
        runpy.run_path(sys.argv[0], run_name="__main__")
