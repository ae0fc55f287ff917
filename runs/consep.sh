#!/usr/bin/env bash
# Med-OoD on CoNSeP.
#
#   runs/consep.sh WORKSPACE ENCODER_WEIGHTS PART [OPTION ...]
#
# WORKSPACE holds 27 regions of 500 x 500 pixels (20x) of the training part of CoNSeP in Lizard's
# layout. ENCODER_WEIGHTS is a file of mobilenet_v2's, or `imagenet`. PART is one of those below;
# OPTIONs, such as --plan or --folds 79, go to its script. `main`, `recipe` and `variants` split by
# region, the others by patch: give each kind a workspace of its own, as both write k_folds/.
#
# Compared (docs/results.md has the tables; 2 cores of an AMD EPYC, no GPU):
#   main      Med-OoD less baseline, equal epochs. Expected: ap 0.7 [-0.4, 2.2]
#   recipe    each change less dice_ce, 2.5 hours. Expected: together, on the test side, 5.5 [3.7, 7.0]
#             of ap more than dice
#   variants  each arm less the baseline of equal steps. Expected: Med-OoD -1.5 [-4.7, -0.3] of ap
#   paper     Med-OoD less baseline as in the paper, 0.5 hours. Expected: miou -0.2 [-2.0, 0.9]
#   classes   the same class by class, seconds after `paper`
#   controls  each arm less the baseline of equal steps, 1.2 hours; the arm `+ external` needs
#             --ood_source FOLDER. Expected: Med-OoD -2.6 [-6.1, 0.7] of miou
#   tables    the paper's Tables 2 to 4, 0.5 hours. Expected: miou 28.6 (pct 0) to 34.3 (pct 1)
#   weak      masks from image labels, 0.3 hours with --folds 79. Expected: miou 3.5 of 33.2 by full
#             supervision, with outlines 5.3
#   leakage   split by patch less split by region, 0.1 hours after `tables`. Expected: miou 2.9
#             [1.4, 4.7]
# The hours of `main` and `variants` were not recorded for the arms as they are now: use --plan.
# Units: regions; one seed, `controls` three.
set -euo pipefail
cd "$(dirname "$0")/.."

workspace=$1 weights=$2 part=$3
shift 3

data=(--workspace "$workspace" --encoder mobilenet_v2 --encoder_weights "$weights")
strong=(--loss dice_ce --lr 3e-4 --mirrors)

case $part in
    main) python main.py "${data[@]}" --split region "$@" ;;
    recipe) python studies/recipe.py "${data[@]}" --split region --parts 1 "$@" ;;
    variants) python studies/controls.py "${data[@]}" --split region "${strong[@]}" --seeds 1 \
        --arms baseline Med-OoD "Med-OoD, inpaint" "$@" ;;
    paper) python main.py "${data[@]}" "$@" ;;
    classes) python studies/paper.py figure4 "${data[@]}" "$@" ;;
    controls) python studies/controls.py "${data[@]}" --epochs 10 --folds 79 --seeds 3 "$@" ;;
    tables) for table in table2 table3 table4; do
        python studies/paper.py $table "${data[@]}" --epochs 10 --pcts 1 0.8 0.6 0.4 "$@"
    done ;;
    weak)
        python weak/label_patches.py --workspace "$workspace"
        for outline in --no_outline --outline; do
            python weak/main.py --workspace "$workspace/weak$outline" \
                --images "$workspace/Image_Patchs" --masks "$workspace/Mask_Patchs" \
                --image_labels "$workspace/image_labels.csv" --mask_values 1 2 3 6 \
                --encoder mobilenet_v2 --encoder_weights "$weights" --method unet --size 0.1 \
                --classifiers 1 --classifier_lr 5e-4 --batch_size 16 --epochs 12 --lr 1e-3 \
                --loss dice_ce "$outline" "$@"
        done
        ;;
    leakage) python studies/leakage.py "${data[@]}" --epochs 10 --seeds 1 "$@" ;;
    *) echo "PART is main, recipe, variants, paper, classes, controls, tables, weak or leakage" >&2 && exit 1 ;;
esac
