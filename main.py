"""Run the whole experiment: data, baseline, OoD patches, Med-OoD, scores of both.

`python main.py` runs on the data in the workspace; `python main.py --sample` draws a small
synthetic data set first and runs on that.
"""

from dataclasses import replace
from pathlib import Path

from config import CONFIG, Config, settings
from estimate_pct import estimate_pct
from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels
from generate_unfiltered_oods import generate_unfiltered_oods
from medood.data.workspace import region_labels, require_data
from medood.processes import on_main
from medood.runs.command_line import run
from rank_prune_ood import rank_prune_ood
from test import evaluate
from train import train
from train_ood import train_ood


@settings
class MainConfig(Config):
    """The settings of main.py only."""

    sample: bool = False
    """Draw a small data set in <workspace>/sample and run on it, with small settings of its own."""
    check: bool = False
    """Check the data, report problems and the expected time, and change nothing."""


def main(cfg: Config = CONFIG) -> None:
    """Run every step in order; products of the same settings and inputs are kept."""
    look(cfg)
    prepare(cfg)
    train(cfg)
    rank_prune_ood(cfg)
    estimate_pct(cfg)
    train_ood(cfg)
    evaluate(cfg)


def prepare(cfg: Config) -> None:
    """Write patches, folds and OoD patches."""
    if region_labels(cfg):
        generate_semantic_labels(cfg)
    generate_patches(cfg)
    generate_unfiltered_oods(cfg)


@on_main
def look(cfg: Config) -> None:
    """Find now what would stop the run after an hour: wrong data, encoder, weights or device."""
    require_data(cfg)
    from medood.check import check, refuse_findings
    from medood.models.network import build_model, pick_device

    findings = check(cfg)
    with findings.noted():
        pick_device(cfg.device)
    with findings.noted():
        build_model(cfg)  # with its weights: the download may fail
    refuse_findings(cfg, findings)


def workspace_of(cfg: MainConfig) -> Path:
    """Return where to work: the sample has a folder of its own."""
    return cfg.workspace / "sample" if cfg.sample else cfg.workspace


def start(cfg: MainConfig) -> None:
    """Run, or only check, the sample if asked, else the workspace."""
    if cfg.sample:
        from medood.sample import draw_sample

        cfg = replace(cfg, workspace=workspace_of(cfg))
        if not cfg.check:
            draw_sample(cfg)
    if cfg.check:
        look(cfg)
    else:
        main(cfg)


if __name__ == "__main__":
    # a check changes nothing, so it needs no lock
    run(
        start,
        MainConfig(),
        lambda cfg: None if cfg.check else workspace_of(cfg),
        sample="medood.sample",
    )
