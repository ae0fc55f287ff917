"""Figure 3: image, truth, baseline and Med-OoD in rows.

Writes  reports/studies/figure3_<model>.csv, .json, .md, .png

The rows are chosen by a rule from the test patches of all folds: the patch where Med-OoD helps
most, the median, and the patch where it hurts most.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from medood.data.dataset import Patches
from medood.data.workspace import data_name
from medood.evaluation.figures import choose_examples, draw_examples, share_right
from medood.evaluation.tables import SCORES, markdown
from medood.evaluation.testing import score_networks
from medood.runs.command_line import run
from studies.common import StudyConfig, baseline, med_ood, prepare, run_arms
from studies.report import compare, write_study


def figure3(cfg: StudyConfig) -> None:
    """Draw the test patches where Med-OoD helps most, the median, and where it hurts most."""
    prepare(cfg)
    results = run_arms(cfg, {"baseline": baseline, "Med-OoD": med_ood})
    if cfg.plan:
        return
    tests = []
    for key in results["baseline"]:
        folders = {arm: of_arm[key].folder for arm, of_arm in results.items()}
        recipe = results["baseline"][key].recipe
        tests.append(score_networks(cfg, folders, recipe.test, recipe.id_files, f"fold {key[0]}"))
    shares = [share_right(test.patches, test.predictions) for test in tests]
    right = {arm: torch.cat([share[arm] for share in shares]) for arm in results}
    where = [(test, i) for test in tests for i in range(len(test.patches))]
    chosen = choose_examples(right)
    rows = [
        [rule, where[i][0].patches.names[where[i][1]]]
        + [f"{100 * right[arm][i]:.1f}" for arm in results]
        for rule, i in chosen.items()
    ]
    gains = compare(results, "Med-OoD", "baseline")
    tables = {
        "Patches shown": markdown(
            ["", "patch", *(f"{arm}, pixels right" for arm in results)], rows
        ),
        "All test patches, Med-OoD less baseline": markdown(
            [f"`{name}`" for name in SCORES], [[gains[name].text() for name in SCORES]]
        ),
    }
    out = write_study(cfg, "figure3", results, tables, {"Med-OoD - baseline": gains})
    shown = [where[i] for i in chosen.values()]
    patches = Patches(
        [test.patches.names[i] for test, i in shown],
        *(
            torch.stack([getattr(test.patches, part)[i] for test, i in shown])
            for part in ("images", "masks", "is_ood")
        ),
    )
    seen = {arm: torch.stack([test.predictions[arm][i] for test, i in shown]) for arm in results}
    title = f"{data_name(cfg.workspace)}, {cfg.model_name}, test patches of all folds"
    draw_examples(Path(f"{out}.png"), title, patches, seen, cfg.classes)
    print(f"{out}.csv, .json, .md, .png")


if __name__ == "__main__":
    run(figure3, StudyConfig())
