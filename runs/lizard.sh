#!/usr/bin/env bash
# Med-OoD on Lizard.
#
#   runs/lizard.sh WORKSPACE ENCODER_WEIGHTS PART [FOLD ...]
#
# WORKSPACE holds Lizard as its archives unpack. ENCODER_WEIGHTS is a file of mobilenet_v2's, or
# `imagenet`. PART is one of those below; by default all folds are run, or fold 79 where it says so.
# Each finished training becomes a file in runs/lizard/ and is not repeated, so the parts can be
# divided between days and machines. On 103 of Lizard's 238 regions (3,339 patches), a training of
# 12 epochs on the ID patches took 31 minutes on one core of an AMD EPYC without a GPU, with other
# work beside it.
#
# Written down before the first run:
# - Contrast: Med-OoD less the baseline of equal steps. The plain baseline is shown with them.
# - Scores: ap and bg_to_fg_matched of pixels; nuclei_invented, nuclei_missed and mpq of nuclei.
# - Units: slides, under Lizard's official split; one seed.
# - Stop after three folds and one seed. What their intervals leave open stays open.
set -euo pipefail
cd "$(dirname "$0")/.."

workspace=$1 weights=$2 part=$3
shift 3

study() { # folds, then what differs
    local folds=$1
    shift
    # shellcheck disable=SC2086
    python studies/controls.py --workspace "$workspace" --results runs/lizard \
        --split official --folds $folds --seeds 1 \
        --architecture unet --encoder mobilenet_v2 --encoder_weights "$weights" \
        --loss dice_ce --lr 3e-4 --mirrors --epochs 12 "$@"
}

case $part in
    # does Med-OoD help?
    main) study "${*:-79 158 237}" --arms baseline Med-OoD "Med-OoD, inpaint" ;;
    # in which share of the steps is the paper's recipe reached?
    time) study "${*:-79}" --arms "3 epochs" "6 epochs" "24 epochs" "paper's recipe" ;;
    # does it help where data are few? As many steps as on all of them
    few) for share in 0.25 0.5; do study "${*:-79}" --share "$share" --arms Med-OoD; done ;;
    # do stains that vary, or rare classes drawn oftener, make a stronger baseline?
    recipe) study "${*:-79}" --arms "stain 0.05" "stain 0.2" "rare classes" ;;
    *) echo "PART is main, time, few or recipe" >&2 && exit 1 ;;
esac
