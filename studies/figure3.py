"""Figure 3: image, truth, baseline and Med-OoD in rows.

Writes  reports/studies/figure3_<model>.csv, .json, .md, .png

Shown are, of the test patches of all folds, the one where Med-OoD helps most, the median, and the
one where it hurts most: chosen by rule, never by hand.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from medood.cli import run
from medood.data import Patches
from medood.figures import choose_examples, draw_examples, share_right
from medood.files import data_name
from medood.tables import markdown
from medood.testing import score_networks
from studies.common import StudyConfig, baseline, compare, med_ood, prepare, run_arms, write_study


def figure3(cfg: StudyConfig) -> None:
    """Draw the patches that Med-OoD changes most, for better and for worse, and least."""
    prepare(cfg)
    results = run_arms(cfg, {"baseline": baseline, "Med-OoD": med_ood})
    if cfg.plan:
        return
    tests = []
    for key in results["baseline"]:
        folders = {arm: of_arm[key].folder for arm, of_arm in results.items()}
        test = results["baseline"][key].recipe.test
        tests.append(score_networks(cfg, folders, test, f"fold {key[0]}"))
    patches = Patches(
        [name for test in tests for name in test.patches.names],
        *(
            torch.cat([getattr(test.patches, part) for test in tests])
            for part in ("images", "masks", "is_ood")
        ),
    )
    seen = {arm: torch.cat([test.predictions[arm] for test in tests]) for arm in results}
    right = share_right(patches, seen)
    chosen = choose_examples(right)
    rows = [
        [said, patches.names[i], *(f"{100 * right[arm][i]:.1f}" for arm in results)]
        for said, i in chosen.items()
    ]
    table = markdown(["", "patch", *(f"{arm}, pixels right" for arm in results)], rows)
    differences = {"Med-OoD - baseline": compare(results, "Med-OoD", "baseline")}
    out = write_study(cfg, "figure3", results, {"Patches shown": table}, differences)
    title = f"{data_name(cfg.workspace)}, {cfg.model_name}, test patches of all folds"
    draw_examples(out.with_suffix(".png"), title, patches, seen)
    print(f"{out}.csv, .json, .md, .png")


if __name__ == "__main__":
    run(figure3, StudyConfig())
