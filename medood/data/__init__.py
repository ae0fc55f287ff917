"""What is in a workspace, and how it is read and written.

files      read, and written whole or not at all
images     images and class masks: checked before they are decoded
labels     Lizard's labels and the user's own masks
records    what a product was made from: made_from.json
workspace  where everything is
patients   whose a patch is: its region, and its patient
folds      which patches train and which test
ood_set    the ranked OoD patches of a fold, and how many of them are used
dataset    patches as tensors
"""
