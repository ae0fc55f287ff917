#!/usr/bin/env bash
# Med-OoD on Lizard.
#
#   runs/lizard.sh WORKSPACE ENCODER_WEIGHTS PART [FOLD ...]
#
# WORKSPACE holds Lizard as its archives unpack. ENCODER_WEIGHTS is a file of mobilenet_v2's, or
# `imagenet`; PART `paper` needs those of vgg11_bn. PART is one of those below; by default all folds
# are run, or fold 79 where it says so.
# Each finished training becomes a file in runs/lizard/ and is not repeated, so the parts can be
# divided between days and machines. On 103 of Lizard's 238 regions (3,339 patches) and one core of
# an AMD EPYC without a GPU, the trainings of `main` took 2.1, 1.4 and 1.3 hours for folds 79, 158
# and 237, without `Med-OoD, inpaint`, which was not run. Expected of the three, Med-OoD less the
# baseline of equal steps: ap 85.7 - 86.7 = -1.1 [-1.3, -0.8], nuclei_invented +1.0 [0.1, 1.8],
# mpq -1.4 [-2.1, -0.7].
#
# Written down before the first run:
# - Contrast: Med-OoD less the baseline of equal steps. The plain baseline is shown with them.
#   Arms of other settings: less the plain baseline of as many epochs. `time`: the epochs of the
#   strong recipe after which its ap reaches that of the paper's recipe after 24.
# - A setting (stain, rare classes, background split, which is gone since) stays only if ap or mpq
#   gains and the interval leaves out 0.
# - Scores: ap and bg_to_fg_matched of pixels; nuclei_invented, nuclei_missed and mpq of nuclei.
# - Units: slides, under Lizard's official split; one seed.
# - Stop after three folds and one seed. What their intervals leave open stays open.
set -euo pipefail
cd "$(dirname "$0")/.."

workspace=$1 weights=$2 part=$3
shift 3

data=(--workspace "$workspace" --encoder_weights "$weights" --architecture unet)
strong=(--encoder mobilenet_v2 --loss dice_ce --lr 3e-4 --mirrors --epochs 12)

study() { # folds, then what differs
    local folds=$1
    shift
    # shellcheck disable=SC2086
    python studies/controls.py "${data[@]}" --results runs/lizard --split official --folds $folds \
        --seeds 1 "$@"
}

case $part in
    # does Med-OoD help?
    main) study "${*:-79 158 237}" "${strong[@]}" --arms baseline Med-OoD "Med-OoD, inpaint" ;;
    # the same with the paper's network, by its loss and by that of its public code
    paper) for loss in dice paper_code; do
        study "${*:-79}" --encoder vgg11_bn --loss $loss --epochs 12 --arms baseline Med-OoD
    done ;;
    # in which share of the steps is the paper's recipe reached?
    time) study "${*:-79}" "${strong[@]}" --arms "3 epochs" "6 epochs" "24 epochs" "paper's recipe" ;;
    # does it help where data are few? As many steps as on all of them
    few) for share in 0.25 0.5; do
        study "${*:-79}" "${strong[@]}" --share "$share" --arms baseline Med-OoD
    done ;;
    # do other settings make a stronger baseline?
    recipe) study "${*:-79}" "${strong[@]}" \
        --arms "stain 0.05" "stain 0.2" "rare classes" ;;
    # how much does a split by patch add to the scores? In a workspace of its own: other fold lists
    leakage) python studies/leakage.py "${data[@]}" "${strong[@]}" --split patch --seeds 1 ;;
    *) echo "PART is main, paper, time, few, recipe or leakage" >&2 && exit 1 ;;
esac
