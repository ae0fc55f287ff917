"""Small volumes to train and test on, and a plan for them."""

import nibabel
import torch

from robust.volumes import Plan, Volume, read_task, read_volume, split_cases

CPU = torch.device("cpu")
PLAN = Plan((1.0, 1.0, 1.0), (24, 24, 24), ((1, 1, 1),) * 2 + ((2, 2, 2),), [[0.1, 0.9, 0.5, 0.2]])
IMAGE, LABEL = "imagesTr/sample_01.nii.gz", "labelsTr/sample_01.nii.gz"


def rewrite(path, change):
    image = nibabel.load(path)
    values, affine = change(image.get_fdata(), image.affine)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def training_volumes(cfg):
    task = read_task(cfg.data)
    cases, _ = split_cases(task.cases, 79, 0)
    return task, [read_volume(task, case) for case in cases]


def volume_of(label, image=None, spacing=(1.0, 1.0, 1.0)):
    label = torch.as_tensor(label, dtype=torch.uint8)
    image = torch.rand(1, *label.shape) if image is None else image
    return Volume("a", image, label, spacing)
