#!/usr/bin/env bash
# Med-OoD on Lizard: what docs/results.md begins with.
#
#   runs/lizard.sh WORKSPACE ENCODER_WEIGHTS [FOLD ...]
#
# WORKSPACE holds Lizard as its archives unpack. ENCODER_WEIGHTS is a file of mobilenet_v2's, or
# `imagenet`. Each finished training is a file in runs/lizard/: what lies there is not trained
# again, so the runs can be divided between days and machines. On the 103 regions (3,339 patches)
# that docs/results.md speaks of, one of the trainings below takes 20 to 60 minutes on one core of
# an AMD EPYC, without a GPU.
#
# Written down before the first run:
# - Contrast: Med-OoD less the baseline of equal steps. The plain baseline is shown beside them.
# - Scores: ap and bg_to_fg_matched for pixels; nuclei_invented, nuclei_missed and mpq for nuclei.
# - Units: slides, under Lizard's official split; one seed, and a second where time allows.
# - Stop after three folds and one seed. What the intervals of these leave open stays open.
set -euo pipefail
cd "$(dirname "$0")/.."

workspace=$1 weights=$2
shift 2
folds=("${@:-79 158 237}")

# a. the strong recipe, at 12 epochs
# shellcheck disable=SC2068
python studies/controls.py --workspace "$workspace" --results runs/lizard \
    --split official --folds ${folds[@]} --seeds 1 \
    --architecture unet --encoder mobilenet_v2 --encoder_weights "$weights" \
    --loss dice_ce --lr 3e-4 --mirrors --epochs 12 \
    --arms baseline Med-OoD "Med-OoD, inpaint"
