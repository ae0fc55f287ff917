"""The numbers that Gao and Xu print (SPIE 13442, 2025), for comparison: Lizard, in percent.

Their mIoU and DSC are our `miou_paper` and `dsc_paper` (medood/evaluation/scores.py); their D is
|pnr - 0.65|.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """A row of Table 1: mIoU, DSC and D of the baseline, then of Med-OoD."""

    miou: float
    dsc: float
    distance: float
    ood_miou: float
    ood_dsc: float
    ood_distance: float


TABLE1 = {
    ("unet", "vgg11_bn"): Row(87.4, 93.1, 0.317, 89.0, 94.0, 0.006),
    ("unet", "vgg16_bn"): Row(88.5, 93.7, 0.317, 89.2, 94.2, 0.012),
    ("unet", "vgg19_bn"): Row(87.6, 93.2, 0.317, 87.8, 93.3, 0.004),
    ("unetplusplus", "resnet18"): Row(88.2, 93.6, 0.317, 88.9, 94.0, 0.030),
    ("unetplusplus", "tu-resnet50d"): Row(89.3, 94.2, 0.317, 89.4, 94.3, 0.019),
    ("unetplusplus", "densenet169"): Row(88.5, 93.7, 0.317, 89.2, 94.2, 0.014),
    ("manet", "mobileone_s0"): Row(85.5, 91.9, 0.317, 85.9, 92.2, 0.019),
    ("manet", "mobilenet_v2"): Row(84.5, 91.3, 0.317, 84.6, 91.4, 0.003),
    ("manet", "tu-tinynet_d"): Row(84.1, 91.0, 0.317, 84.2, 91.1, 0.000),
}
# Table 2, unet vgg11_bn: training patches and mIoU, by pct. Fig. 5: pnr, by pct.
TABLE2 = {0.0: (12249, 87.4), 0.6: (18059, 89.0), 1.0: (21933, 86.3)}
FIGURE5_PNR = {1.0: 0.527, 0.6: 0.644, 0.4: 0.725}
TABLE3 = {"with batch norm": 89.0, "without": 88.2}  # Med-OoD, unet vgg11_bn, mIoU
# Fig. 4: the gain of Med-OoD in IoU, patch by patch
FIGURE4_GAIN = {
    **{"connective": 19.6, "epithelial": 4.0, "lymphocyte": 2.8},
    **{"neutrophil": 0, "plasma": 0, "eosinophil": 0},
}
# Table 4, patches of D_id that hold the class (D_ood holds none)
TABLE4_PATCHES = {
    "neutrophil": 1151,
    "epithelial": 8739,
    "lymphocyte": 7745,
    "plasma": 4213,
    "eosinophil": 1118,
    "connective": 8688,
}
TABLE4_MIOU = {"trained on D_id": 87.4, "trained on D_ood only": 76.1}
