#!/usr/bin/env bash
# weak/ on slices of brain tumours (FLAIR), with image labels alone.
#
#   runs/lgg.sh WORKSPACE DATA ENCODER_WEIGHTS PART [FOLD ...]
#
# DATA contains images/, masks/ (0, 1) and image_labels.csv (img_name, patient, tumour), as a user
# prepares them from the set of Buda et al. 2019. ENCODER_WEIGHTS is a file of mobilenet_v2's, or
# `imagenet`. PART is one of those below; all folds are run, or those named.
set -euo pipefail
cd "$(dirname "$0")/.."

workspace=$1 data=$2 weights=$3 part=$4
shift 4
folds=${*:-79 158 237}

run() { # workspace, labels, script, then what differs
    local place=$1 labels=$2 script=$3
    shift 3
    # shellcheck disable=SC2086
    python "weak/$script.py" --workspace "$place" --images "$data/images" \
        --image_labels "$labels" --normalise patient --image_size 64 --folds $folds \
        --encoder mobilenet_v2 --encoder_weights "$weights" --batch_size 16 --classifiers 1 \
        --classifier_lr 5e-4 --epochs 6 --lr 1e-3 --loss dice_ce --outline "$@"
}

case $part in
    # both routes without the control, whose training takes as long again as that of the maps
    main)
        run "$workspace" "$data/image_labels.csv" main --method unet
        run "$workspace" "$data/image_labels.csv" main --method transfer --iterations 400
        run "$workspace" "$data/image_labels.csv" evaluate_masks --method unet \
            --iterations 400 --masks "$data/masks"
        ;;
    # maps of classifiers without a decoder, with IRNet
    maps)
        run "$workspace/maps" "$data/image_labels.csv" main --method contrast --stages 4 --scales 1
        run "$workspace/maps" "$data/image_labels.csv" evaluate_masks --method contrast \
            --stages 4 --scales 1 --masks "$data/masks"
        ;;
    # all slices, whose place in the head says much of the label; with the control
    all)
        run "$workspace/all" "$data/image_labels_all.csv" main --method unet --masks "$data/masks"
        run "$workspace/all" "$data/image_labels_all.csv" main --method transfer --iterations 400 \
            --masks "$data/masks"
        ;;
    # after `all`: the network without mined negatives for as many steps as the one with them
    longer)
        run "$workspace/longer" "$data/image_labels_all.csv" main --method unet --epochs 9
        python runs/more_steps.py "$workspace"
        ;;
    # image labels, and pixel masks, of few patients: the same test patients, by fold, and about as
    # many steps as on all 46 or 47
    few)
        for fold in $folds; do
            for patients in 1 2 5 15; do
                place=$workspace/few_${fold}_$patients
                steps=(--epochs $((6 * 46 / patients)) --classifier_epochs $((8 * 46 / patients)))
                python runs/few_patients.py "$data/image_labels.csv" "$fold" "$patients" "$place"
                folds=$fold run "$place" "$place/few.csv" main --method unet "${steps[@]}"
                folds=$fold run "$place" "$place/few.csv" evaluate_masks --method unet \
                    --masks "$data/masks" "${steps[@]}"
            done
        done
        ;;
    *) echo "PART is main, maps, all, longer or few" >&2 && exit 1 ;;
esac
