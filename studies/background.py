"""The arm "background split" of controls.py: background as several kinds of tissue.

Saluja et al. 2025 (BackSplit, arXiv 2511.19394) name the tissues around a lesion instead of
calling all of them background. Without such labels, k-means on colour and texture replaces them.
"""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq
from torch import Tensor, nn

from config import Config
from medood.data.files import fingerprint
from medood.data.images import read_image, read_mask, write_png
from medood.data.labels import BACKGROUND
from medood.models.checkpoints import load_model
from studies.common import Recipe, StudyConfig, baseline, made

KINDS = 3  # of background
SAMPLED = 64  # pixels of each patch that decide the kinds
GREY = "#808080"  # of the kinds of background, which are not drawn


def describe_tissue(image: np.ndarray) -> np.ndarray:
    """Return colour and texture of each pixel of RGB `image` (H, W, 3), float32 (H, W, 4).

    They are CIE L*, a*, b* of a Gaussian blur of 2 pixels, and the standard deviation of L* under
    one of 4 pixels.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    light = lab[..., 0]
    mean, square = (cv2.GaussianBlur(of, (0, 0), 4) for of in (light, light**2))
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    return np.dstack([cv2.GaussianBlur(lab, (0, 0), 2), spread])


class BackgroundsSummed(nn.Module):
    """A network with several kinds of background, as one with a single background.

    The kinds are output 0 and those from `classes` on. Their probabilities are summed, which is the
    logarithm of the sum of their exponentials as a logit.
    """

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network, self.config = network, network.config | {"classes": classes}

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes, H, W)."""
        logits, classes = self.network(images), self.config["classes"]
        kinds = torch.cat([logits[:, :1], logits[:, classes:]], 1)
        return torch.cat([kinds.logsumexp(1, keepdim=True), logits[:, 1:classes]], 1)


def background_split(cfg: StudyConfig, fold: int) -> Recipe:
    """Return the baseline's training with kinds of background, by k-means on the ID patches."""
    plain, classes = baseline(cfg, fold), len(cfg.class_names)

    def split(out: Path) -> None:
        rng = np.random.default_rng([cfg.seed, fold])
        pixels = []
        for image, mask in plain.files:
            of_background = describe_tissue(read_image(image))[read_mask(mask, classes) == 0]
            order = rng.permutation(len(of_background))
            pixels.append(of_background[order[:SAMPLED]])
        pixels = np.concatenate(pixels)
        scale = pixels.std(0)
        centres, _ = kmeans2(pixels / scale, KINDS, minit="++", rng=rng)
        values = np.array([BACKGROUND, *range(classes, classes + KINDS - 1)], np.uint8)
        for image, mask in plain.files:
            kind, _ = vq((describe_tissue(read_image(image)) / scale).reshape(-1, 4), centres)
            truth = read_mask(mask, classes)
            kinds = values[kind].reshape(truth.shape)
            write_png(out / mask.name, np.where(truth == BACKGROUND, kinds, truth))

    name = f"Backgrounds_{fold}_{cfg.seed}"
    made_from = {"inputs": fingerprint([path for pair in plain.files for path in pair])}
    folder = made(cfg, name, made_from, split)
    kinds = tuple((f"background {kind}", GREY) for kind in range(2, KINDS + 1))

    def load(network: Path, cfg: Config) -> nn.Module:
        of_kinds = load_model(network, replace(cfg, classes=cfg.classes + kinds))
        return BackgroundsSummed(of_kinds, classes)

    files = [(image, folder / mask.name) for image, mask in plain.files]
    of_training = replace(plain.cfg, classes=cfg.classes + kinds)
    return replace(plain, cfg=of_training, files=files, load=load)
