"""Networks under attack, from the workspace to scores, table and report; and free training."""

import dataclasses
import json
import re
import shutil

import pytest
import torch

import robust.attacked
from config import UserError
from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels
from medood.attacks.measuring import CLEAN, conditions_of
from medood.commands import command
from medood.data.dataset import load_patches
from medood.data.folds import read_fold
from medood.data.workspace import id_files, model_folder
from medood.evaluation.objects import SIZES
from medood.evaluation.tables import AT_ARGMAX
from medood.training.loop import train_epoch
from robust.attack import attack, quick, spread_out
from robust.attacked import ATTACKS, Attacked, attacks_of, trials_of, try_fold
from robust.corruptions import OF_IMAGES
from robust.free import FreeTrainer, Noise
from robust.report import draw_scores, scores_by_attack, shares_by_size, signs
from robust.settings import AttackConfig, FreeConfig
from robust.train_free import FREE, train_free
from tests.conftest import TINY, as_settings_of, printed_in, quick_reports, write_region


@pytest.fixture(scope="module")
def attacked(whole_run, tmp_path_factory):
    """Settings of a first look at a whole run, after it, and the folder of the results."""
    workspace = tmp_path_factory.mktemp("attacked") / "run"
    shutil.copytree(whole_run, workspace)
    few = {"steps": 1, "queries": 3, "patches": 2, "eps": (8.0, 2.0), "folds": (1, 2)}
    cfg = as_settings_of(AttackConfig, TINY, workspace=workspace, **few)
    with quick_reports():
        attack(cfg)
    return cfg, workspace / "reports" / "robust" / "unet_tu-test_resnet"


def results(cfg, out, fold=1):
    """Return what try_fold reads back."""
    names = spread_out(read_fold(cfg, fold).test, cfg.patches, cfg.seed)
    networks = {"baseline": model_folder(cfg, fold, False), "ood": model_folder(cfg, fold, True)}
    return try_fold(cfg, networks, names, fold, out / "parts", trials_of(cfg)[ATTACKS])


def test_scores_name_every_fold_network_eps_and_attack(attacked):
    cfg, out = attacked
    scores = json.loads((out / "scores.json").read_text())
    assert {fold: list(of) for fold, of in scores.items()} == dict.fromkeys(
        "12", ["baseline", "ood"]
    )
    page = (out / "index.html").read_text()
    assert "baseline and Med-OoD under attack" in page
    assert len(re.findall('<img src="data:', page)) == 4  # scores, sizes, examples of each network
    names = "noise apgd_ce apgd_dlr sea_masked_ce_balanced sea_masked_ce sea_js fab square"
    names = f"{names} apgd_ce_tenth sea worst_case worst_case_greedy".split()
    of_eps = {eps: list(of) for eps, of in scores["1"]["ood"].items()}
    assert of_eps == {"0": ["clean"], **dict.fromkeys("28", names)}
    counted = {*AT_ARGMAX, "iou", "dice", "confusion", "fooled", "largest_change"}
    counted |= {"objects_by_size", "found_by_size"}
    assert scores["1"]["ood"]["8"]["fab"].keys() == counted
    for of_fold in scores.values():
        for eps in "28":  # no attack moves a pixel by more
            found = of_fold["baseline"][eps]
            assert 0 < max(of["largest_change"] for of in found.values()) <= int(eps) / 255
            assert found["worst_case_greedy"]["miou"] <= found["worst_case"]["miou"]


def test_the_worst_case_is_the_lowest_of_all_attacks_and_falls_with_eps(attacked):
    cfg, out = attacked
    for found in results(cfg, out).values():
        dice = dict(zip(found.pairs, found.dice, strict=True))
        for eps in (2.0, 8.0):
            others = [dice[eps, name] for name in attacks_of(cfg) if name != "noise"]
            assert (dice[eps, "worst_case"] == torch.stack(others).amin(0)).all()
        assert (dice[8.0, "worst_case"] <= dice[2.0, "worst_case"]).all()
        assert (dice[2.0, "worst_case"] <= dice[0.0, "clean"]).all()


def test_an_attack_that_was_stopped_goes_on_after_its_last_batch(attacked, monkeypatch, tmp_path):
    cfg, done, plain = attacked[0], [], robust.attacked._count
    cfg = dataclasses.replace(cfg, attacks=("noise",))
    monkeypatch.setattr(robust.attacked, "_count", lambda *args: done.append(1) or plain(*args))
    before = results(cfg, tmp_path)
    assert len(done) == 2  # both networks
    (tmp_path / "parts" / "1_ood" / "0.pt").unlink()
    again = results(cfg, tmp_path)
    assert len(done) == 3
    assert torch.equal(again["ood"].dice, before["ood"].dice)
    results(dataclasses.replace(cfg, eps=(8.0,)), tmp_path)
    assert len(done) == 5  # other settings


def test_checkpoints_are_attacked_and_corrupted(attacked, quick_report, capsys):
    cfg, _ = attacked
    networks = tuple(model_folder(cfg, 1, ood) for ood in (False, True))
    few = {"attacks": ("noise",), "eps": (2.0,), "corruptions": True}
    attack(dataclasses.replace(cfg, checkpoint=networks, **few))
    name = "1_unet_tu-test_resnet"
    out = cfg.workspace / f"reports/robust/checkpoints/{name}_vs_{name}_ood"
    scores, corrupted = (
        json.loads((out / f"{name}.json").read_text()) for name in ("scores", "corruptions")
    )
    assert list(scores) == ["1"]  # the other fold's test patches were trained on
    found = corrupted["1"][f"{name}_ood"]
    assert {kind: list(rows) for kind, rows in found.items()} == {
        "clean": ["0"],
        **dict.fromkeys(OF_IMAGES, list("12345")),
    }
    assert found["clean"]["0"]["confusion"] != found["noise"]["5"]["confusion"]
    said = capsys.readouterr().out
    assert "mCE" in said
    assert "worst case, 2/255" in said


def found_of(names, pairs, **known):
    """Return an attacked network of which only some fields are known."""
    unknown = dict.fromkeys(field.name for field in dataclasses.fields(Attacked))
    return Attacked(**unknown | {"names": names, "pairs": pairs} | known)


def test_the_share_of_objects_found_has_an_interval_over_patients():
    """Patient a has ten objects of 8 pixels, five found; b ten of 512, all found."""
    objects = torch.zeros(1, 2, SIZES, 2, dtype=torch.int64)
    objects[0, 0, 12] = torch.tensor([10, 5])
    objects[0, 1, 36] = torch.tensor([10, 10])
    found = found_of(["a_0.png", "b_0.png"], [CLEAN], objects=objects)
    shares = shares_by_size(as_settings_of(AttackConfig, TINY), {1: {"baseline": found}})
    of_sizes = list(shares["baseline", 0.0, "clean"].values())
    assert [share.mean for share in of_sizes] == [0.5, 1.0]
    assert of_sizes[0].low == of_sizes[0].high == 0.5  # in every resample that has a's objects


def test_patches_are_spread_over_regions_and_drawn_at_random_in_them():
    names = [f"r{region}_{k}.png" for region in "abcd" for k in range(4)]
    found = [spread_out(names[::-1], 4, seed) for seed in range(9)]
    assert {tuple(name[1] for name in chosen) for chosen in found} == {tuple("abcd")}
    assert len({name[3] for chosen in found for name in chosen}) == 4
    assert spread_out(names, None, 0) == names
    assert spread_out(names, 99, 0) == names


def test_a_first_look_takes_the_largest_eps_and_never_more_than_was_asked_for():
    cfg = as_settings_of(AttackConfig, TINY, steps=3)
    assert quick(cfg) == dataclasses.replace(cfg, eps=(8.0,), queries=100, patches=16)


@pytest.mark.parametrize(
    ("dice", "sentence"),
    [
        ({"noise": 0.79, "apgd_ce_tenth": 0.35, "apgd_ce": 0.3, "square": 0.5}, None),
        ({"noise": 0.79, "square": 0.2}, "Square, which uses no gradient, leaves a Dice of 0.200"),
        ({"noise": 0.79, "apgd_ce_tenth": 0.2}, "a tenth of the steps leaves a Dice of 0.200"),
        ({"noise": 0.5}, "random noise alone lowers Dice from 0.800 to 0.500"),
    ],
)
def test_what_speaks_against_the_attacks_is_said(dice, sentence):
    """Dice by attack at eps 8, of 0.8 on clean images and 0.3 where none is given."""
    cfg = as_settings_of(AttackConfig, TINY, eps=(8.0,), attacks=("noise", "apgd_ce", "square"))
    pairs = conditions_of(attacks_of(cfg), cfg.eps)
    rows = [0.8, *(dice.get(name, 0.3) for _, name in pairs[1:])]
    found = found_of(["a_0.png"], pairs, dice=torch.tensor(rows)[:, None])
    said = signs(cfg, {1: {"baseline": found}}, "baseline")
    verdicts = [text.words for text in said if text.kind == "verdict"]
    assert len(verdicts) == (sentence is not None)
    for words in verdicts:
        assert sentence in words
        assert ("gradients are masked" in words) == ("noise" not in sentence)


def test_eps_0_is_a_point_of_the_curve_too(tmp_path):
    row = {"miou": 0.5}
    of_eps = {"0": {"clean": row, "worst_case": row}, "8": {"worst_case": {"miou": None}}}
    draw_scores(tmp_path / "scores.svg", {1: {"baseline": of_eps}})
    assert "baseline, worst case" in (tmp_path / "scores.svg").read_text()


def test_an_image_is_fooled_below_half_of_the_mean_clean_dice():
    dice = torch.tensor([[0.9, 0.5], [0.36, 0.34], [0.3, 0.1]])  # clean, noise, worst case
    counts = torch.ones(3, 2, 7, 7, dtype=torch.int64)
    shares = torch.ones(3, 2, dtype=torch.float64)
    known = {"dice": dice, "change": dice, "confusion": counts, "iou_paper": shares}
    known |= {"dice_paper": shares, "objects": torch.zeros(3, 2, 100, 2, dtype=torch.int64)}
    found = found_of(["a_0.png", "b_0.png"], conditions_of(["noise"], [8.0]), **known)
    of_eps = scores_by_attack({1: {"baseline": found}})[1]["baseline"]
    assert of_eps["0"]["clean"]["fooled"] == 0
    assert of_eps["8"]["noise"]["fooled"] == 0.5  # below 0.35
    assert of_eps["8"]["worst_case"]["fooled"] == 1


def test_the_noise_steps_eps_up_the_loss_and_stays_within_it():
    noise = Noise((2, 1, 2), eps=3, low=0, high=255)
    images = torch.tensor([[[0.0, 100.0]]])
    for slope in (-1, -1, 0.5, 0.5):  # no step remembers the gradients before it
        (noise(images) * torch.tensor([slope, -slope])).sum().backward()
        noise.ascend()
    assert noise.noise.tolist() == [[[3.0, -3.0]], [[0.0, 0.0]]]
    assert noise(images).tolist() == [[[3.0, 97.0]]]
    assert noise(torch.tensor([[[254.0, 1.0]]])).tolist() == [[[255.0, 0.0]]]


def test_an_epoch_drives_the_noise_to_eps(patched):
    """Every batch is replayed three times; the noise climbs, and no weight of it descends."""
    cfg = as_settings_of(FreeConfig, patched, replays=3)
    patches = load_patches(
        id_files(cfg.workspace, read_fold(cfg, 1).train), cfg.patch_size, len(cfg.class_names)
    )
    trainer = FreeTrainer(cfg, 1, patches, torch.device("cpu"))
    losses = train_epoch(trainer, 0)["loss"]
    noise = trainer.noise.noise.detach().abs()
    assert 0.9 * 8 < noise.max() <= 8
    assert noise.mean() > 4  # nearly everywhere, not in a pixel
    assert losses.isfinite().all()
    steps = {int(state["step"]) for state in trainer.optimiser.state.values()}
    assert steps == {3 * len(losses)}
    assert trainer.noise.noise not in set(trainer.optimiser.state)
    trainer.begin_epoch(1)
    assert not trainer.noise.noise.any()


def test_free_training_divides_the_epochs_and_its_networks_are_attacked(
    attacked, quick_report, tmp_path
):
    cfg = dataclasses.replace(attacked[0], workspace=tmp_path / "run")
    shutil.copytree(attacked[0].workspace, cfg.workspace)  # others read what it changes
    free = as_settings_of(FreeConfig, cfg, replays=2)
    train_free(free)
    quickly = dataclasses.replace(cfg, attacks=("apgd_ce",), eps=(8.0,), steps=1)
    run = json.loads((FREE.path(cfg, 1) / "run.json").read_text())
    assert run["settings"]["epochs"] == 1
    assert run["made_from"]["free"] == {"eps": 8.0, "replays": 2}
    assert "each batch 2 times, with noise" in (FREE.path(cfg, 1) / "README.md").read_text()
    attack(quickly)
    out = cfg.workspace / attacked[1].relative_to(attacked[0].workspace)
    assert list(json.loads((out / "scores.json").read_text())["2"]) == ["baseline", "ood", "free"]
    path = FREE.path(cfg, 2) / "run.json"
    path.write_text(path.read_text().replace('"eps": 8.0', '"eps": 4.0'))
    with pytest.raises(UserError, match=r"_free is out of date \(eps was 4.0, is 8.0\)") as caught:
        attack(quickly)
    made = dataclasses.replace(free, folds=(2,))
    assert printed_in(str(caught.value)) == command(made, "robust/train_free.py", FreeConfig)


@pytest.mark.slow
@pytest.mark.long
def test_free_training_withstands_what_as_many_replays_without_noise_do_not(tmp_path):
    """At equal budget: `miou` under APGD within 8 / 255 is 5 points higher, at least."""
    for seed in range(8):
        write_region(tmp_path, f"region_{seed}", 192, 192, seed)
    network = {"encoder": "tu-resnet10t", "lr": 2e-3, "epochs": 60, "patch_size": 64}
    cfg = dataclasses.replace(TINY, workspace=tmp_path, folds=(1,), **network)
    generate_semantic_labels(cfg)
    generate_patches(cfg)
    networks = []
    for eps in (0.0, 8.0):
        train_free(as_settings_of(FreeConfig, cfg, eps=eps))
        networks.append(FREE.path(cfg, 1).rename(tmp_path / "models" / f"eps_{eps:g}"))
    attacks = {"attacks": ("apgd_ce",), "eps": (8.0,), "steps": 20}
    attack(as_settings_of(AttackConfig, cfg, checkpoint=tuple(networks), **attacks))
    path = tmp_path / "reports/robust/checkpoints/eps_0_vs_eps_8/differences.json"
    gain = json.loads(path.read_text())["eps_8"]["8"]["miou"]
    assert gain["mean"] > 0.05
