#!/usr/bin/env bash
# Med-OoD on the hippocampus in MRI.
#
#   runs/hippocampus.sh WORKSPACE IMAGES MASKS PATIENTS ENCODER_WEIGHTS PART [OPTION ...]
#
# IMAGES and MASKS hold 1,517 coronal slices of 60 patients of Task04_Hippocampus of the Medical
# Segmentation Decathlon, 128 x 128 pixels; 1 in a mask is anterior, 2 posterior. PATIENTS is a CSV
# with img_name and patient. ENCODER_WEIGHTS is a file of mobilenet_v2's, or `imagenet`. PART is one
# of those below; OPTIONs, such as --folds 79, or --plan for `controls`, go to its script.
#
# Compared (docs/results.md has the tables; one core of an AMD EPYC, no GPU):
#   main      Med-OoD less baseline, equal epochs, 0.5 hours. Expected: ap -0.2 [-1.3, 0.7]
#   controls  Med-OoD and Med-OoD with filled holes less the baseline of equal steps, 0.6 hours
#             after `main`. Expected: ap -1.1 [-2.8, 1.6] and -0.9 [-3.6, 1.6]
# Units: patients; three folds, one seed.
set -euo pipefail
cd "$(dirname "$0")/.."

workspace=$1 images=$2 masks=$3 patients=$4 weights=$5 part=$6
shift 6

settings=(--workspace "$workspace" --images "$images" --masks "$masks" --patients "$patients"
    --classes anterior "#d55e00" posterior "#0072b2" --split region --epochs 10
    --encoder mobilenet_v2 --encoder_weights "$weights")

case $part in
    main) python main.py "${settings[@]}" "$@" ;;
    controls) python studies/controls.py "${settings[@]}" --seeds 1 \
        --arms baseline Med-OoD "Med-OoD, inpaint" "$@" ;;
    *) echo "PART is main or controls" >&2 && exit 1 ;;
esac
