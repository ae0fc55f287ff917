"""Volumes: read, planned for, resampled, and segmented by the lattice or a U-Net."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from config import UserError
from robust.lattice import Lattice
from robust.train_volumes import train_volumes
from robust.volumes import (
    Case,
    Segmenter,
    check_cases,
    make_plan,
    plan_strides,
    read_task,
    read_volume,
    resample,
    split_cases,
)
from tests.small_volumes import CPU, IMAGE, LABEL, PLAN, volume_of


def test_the_lattice_has_the_parameters_of_rogs_for_one_modality_and_three_classes():
    network = Lattice(1, 3, ((2, 2, 1), (2, 2, 1), (2, 2, 2)))
    assert sum(weight.numel() for weight in network.parameters()) == 2_596_347
    size = (33, 34, 9)  # no multiple of a stride
    assert network(torch.rand(1, 1, *size)).shape == (1, 3, *size)


def test_patch_and_strides_follow_from_the_median_size_and_the_smallest_structure():
    labels = [np.zeros((35, 50, side), np.uint8) for side in (30, 36, 100)]
    for label in labels:
        label[:10, :10, :10] = 1
        label[20:, 20:, 20:22] = 2
    plan = make_plan([volume_of(label) for label in labels], 3)
    assert plan.patch == (32, 48, 32)  # at most the medians 35, 50 and 36
    assert plan.strides == ((2, 2, 2), (1, 1, 1), (2, 2, 2))  # 900 voxels: four halvings
    assert plan_strides((128, 128, 24), 5) == ((2, 2, 1), (2, 2, 1), (2, 2, 2))  # 24 = 3 * 2^3


@pytest.mark.parametrize("size", [(20, 30, 27), (24, 24, 24), (50, 24, 20)])
def test_the_parts_of_a_volume_agree_with_the_whole_normalised_and_so_do_gradients(
    volume_cfg, size
):
    segmenter = Segmenter(volume_cfg, nn.Conv3d(1, 3, 1), PLAN, CPU)
    image = torch.rand(1, 1, *size).requires_grad_()
    whole = segmenter.network((image.clamp(0.1, 0.9) - 0.5) / 0.2)
    found, expected = (
        (each, *torch.autograd.grad(each[:, 1].sum(), image, retain_graph=True))
        for each in (segmenter(image), whole)
    )
    torch.testing.assert_close(found, expected)


def test_folds_divide_the_cases_and_every_case_is_tested_once():
    cases = [Case(f"case_{n}", Path(), Path()) for n in range(20)]
    tested = []
    for fold in (79, 158, 237):
        train, test = split_cases(cases, fold, seed=0)
        assert sorted(train + test) == sorted(cases)
        tested += test
    assert sorted(tested) == sorted(cases)


def test_resampling_brings_every_volume_to_one_spacing():
    volume = volume_of(np.repeat(np.eye(6, dtype=np.uint8)[..., None], 4, 2), spacing=(1, 1, 4.0))
    finer = resample(volume, (1.0, 1.0, 2.0))
    assert finer.image.shape == (1, 6, 6, 8)
    # slices 4 mm apart are taken as they are, so that nothing between them is made up
    torch.testing.assert_close(finer.image[..., ::2], volume.image, atol=1e-5, rtol=0)
    torch.testing.assert_close(finer.image[..., 1::2], volume.image, atol=1e-5, rtol=0)
    assert (finer.label == volume.label.repeat_interleave(2, 2)).all()
    # a volume thinner than a voxel keeps one
    thin = resample(volume_of(np.ones((1, 4, 2), np.uint8), spacing=(1, 1, 1.0)), (5.0, 1.0, 5.0))
    assert thin.image.shape == (1, 1, 4, 1)
    assert (thin.label == 1).all()


def edit(data, old, new):
    described = (data / "dataset.json").read_text()
    (data / "dataset.json").write_text("\ufeff" + described.replace(old, new), encoding="utf-8")


BAD = [
    (lambda data: (data / "dataset.json").unlink(), "dataset.json is missing"),
    (lambda data: edit(data, "{", ""), "does not describe an MSD task"),
    (lambda data: edit(data, '"labels": {\n', '"labels": {"4": "last",'), "does not describe"),
    (lambda data: edit(data, "labelsTr/sample_02", "labelsTr/sample_03"), "pairs .*2 with .*3"),
    (lambda data: (data / LABEL).unlink(), "labelsTr lacks sample_01 as .nii.gz or .nii"),
]


@pytest.mark.parametrize(("damage", "sentence"), BAD)
def test_bad_input_is_refused_in_one_sentence_and_nothing_is_written(damage, sentence, volume_cfg):
    damage(volume_cfg.data)
    with pytest.raises(UserError, match=sentence) as found:
        train_volumes(volume_cfg)
    assert "\n" not in str(found.value)
    assert not volume_cfg.home.exists()


def test_files_are_told_by_their_names_without_ending(volume_cfg, capsys):
    data = volume_cfg.data
    edit(data, "sample_01.nii.gz", "a.b.1.NII.GZ")
    for path in (data / IMAGE, data / LABEL):
        path.rename(path.with_name("a.b.1.NII.GZ"))
        (path.parent / "unnamed.nii.gz").write_bytes(b"")
    task = read_task(data)
    assert task.cases[0].name == "a.b.1"
    check_cases(task)
    assert "volumes that are ignored, as dataset.json lacks them: 1" in capsys.readouterr().out


@pytest.mark.parametrize("place", [0, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("cut_off", [True, False])
def test_a_file_cut_off_anywhere_or_with_a_wrong_bit_is_refused(volume_cfg, place, cut_off):
    task = read_task(volume_cfg.data)
    content = bytearray((volume_cfg.data / IMAGE).read_bytes())
    place = int(place * len(content))
    if cut_off:
        del content[place:]
    else:
        content[place] ^= 16  # if it is decompressed, it is another voxel
    (volume_cfg.data / IMAGE).write_bytes(content)
    with pytest.raises(UserError, match="sample_01.nii.gz cannot be read .*copy or save it again"):
        read_volume(task, task.cases[0])
